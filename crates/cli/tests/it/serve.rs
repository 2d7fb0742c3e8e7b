//! `onelane serve`: the real binary on a tiny model, over loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::binary::{finish, texts};
use crate::common::{TinyBert, difference, in_time, text};
use crate::onelane;

/// A server that is killed with its test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(model: &Path, more: &[&str]) -> Self {
        let mut command = onelane(["serve", "--port", "0", "--drain-delay", "0", "--model-id"]);
        command.arg(format!("tiny={}", model.display())).args(more);
        let mut process = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = BufReader::new(process.stderr.take().unwrap());
        let mut line = String::new();
        stderr.read_line(&mut line).unwrap();
        let address = line.trim().strip_prefix("listening on http://");
        let address = address.unwrap_or_else(|| panic!("it said {line:?}")).to_owned();
        // What it says later must not block it.
        std::thread::spawn(move || std::io::copy(&mut stderr, &mut std::io::sink()));
        let server = Self { process, address };
        let start = Instant::now();
        while server.call("GET", "/ready", "").0 != 200 {
            assert!(start.elapsed() < Duration::from_secs(120), "it does not become ready");
            std::thread::yield_now();
        }
        server
    }

    fn call(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let length = body.len();
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\
             content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        );
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }

    fn embed(&self, texts: &[String]) -> Vec<Vec<f32>> {
        let (status, body) = self.call("POST", "/embed", &json!({"inputs": texts}).to_string());
        assert_eq!(status, 200, "{body}");
        serde_json::from_str(&body).unwrap()
    }

    /// SIGTERM, and how it ended.
    fn stop(mut self) -> Option<i32> {
        let killed = Command::new("kill").arg(self.process.id().to_string()).status().unwrap();
        assert!(killed.success());
        self.process.wait().unwrap().code()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn some_texts() -> Vec<String> {
    (0..40).map(|i| text((i * 29 + 3) % 140, i)).collect()
}

/// What `onelane embed` makes of the same texts.
fn expected(model: &Path, of: &[String]) -> Vec<Vec<f32>> {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("texts");
    fs::write(&file, of.join("\n")).unwrap();
    let mut command = onelane(["embed", "--model"]);
    command.arg(model).arg(&file);
    let output = finish(command);
    let vector = |line: &str| {
        let line: Value = serde_json::from_str(line).unwrap();
        serde_json::from_value(line["embedding"].clone()).unwrap()
    };
    texts(&output).0.lines().map(vector).collect()
}

#[test]
fn it_embeds_as_embed_does_and_drains() {
    in_time(|| {
        let model = TinyBert::new().write();
        let server = Server::start(model.path(), &[]);
        let of = some_texts();
        for (served, expected) in server.embed(&of).iter().zip(expected(model.path(), &of)) {
            assert!(difference(served, &expected) <= 1e-5);
        }
        let (_, tokens) = server.call("POST", "/tokenize", r#"{"inputs": "w3 w7"}"#);
        let tokens: Value = serde_json::from_str(&tokens).unwrap();
        let all: Vec<&str> =
            tokens[0].as_array().unwrap().iter().map(|t| t["text"].as_str().unwrap()).collect();
        assert_eq!(all, ["[CLS]", "w3", "w7", "[SEP]"]);
        assert_eq!((&tokens[0][2]["start"], &tokens[0][2]["stop"]), (&json!(3), &json!(5)));
        assert_eq!(server.stop(), Some(0));
    });
}

#[test]
fn an_isolated_model_answers_alike_and_outlives_its_child() {
    in_time(|| {
        let model = TinyBert::new().write();
        let server = Server::start(model.path(), &["--isolate"]);
        let of = some_texts();
        let first = server.embed(&of);
        for (served, expected) in first.iter().zip(expected(model.path(), &of)) {
            assert!(difference(served, &expected) <= 1e-5);
        }
        let parent = server.process.id().to_string();
        let killed = Command::new("pkill").args(["-KILL", "-P", &parent]).status().unwrap();
        assert!(killed.success(), "there was no child");
        for (again, first) in server.embed(&of).iter().zip(&first) {
            assert!(difference(again, first) <= 1e-5);
        }
        assert_eq!(server.stop(), Some(0));
    });
}

#[test]
fn what_cannot_be_served_ends_with_2() {
    let model = TinyBert::new().write();
    let good = format!("tiny={}", model.path().display());
    let empty = tempfile::tempdir().unwrap();
    let empty = empty.path().to_str().unwrap();
    for (args, said) in [
        (vec!["--model-id", "/no/such/folder"], "is not a directory"),
        (vec!["--model-id", empty], "config.json does not exist"),
        (vec!["--model-id", "=x"], "give NAME=DIR"),
        (vec!["--model-id", &good, "--model-id", &good], "two models are called \"tiny\""),
        (vec!["--model-id", &good, "--hostname", "256.0.0.1"], "cannot listen on"),
        (vec!["--model-id", &good, "--request-timeout", "soon"], "number of seconds"),
    ] {
        let mut command = onelane(["serve", "--port", "0"]);
        command.args(&args);
        let output = finish(command);
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        assert!(texts(&output).1.contains(said), "{args:?}: {}", texts(&output).1);
    }
}
