//! `onelane serve`: the real binary on a tiny model, over loopback.

use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use onelane::Engine;
use onelane_engines::{ClassificationModel, DeviceName, EmbeddingConfig, EmbeddingModel};
use serde_json::{Value, json};

use crate::binary::{finish, texts};
use crate::common::{TinyBert, WIDTH, difference, in_time, text};
use crate::onelane;

/// A server that is killed with its test.
struct Server {
    process: Child,
    address: String,
}

impl Server {
    fn start(model: &Path, more: &[&str]) -> Self {
        let mut command = onelane(["serve", "--port", "0", "--model-id"]);
        command.arg(format!("tiny={}", model.display())).args(more);
        if !more.contains(&"--drain-delay") {
            command.args(["--drain-delay", "0"]);
        }
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
fn vectors_of_tokens_are_those_of_the_engine() {
    in_time(|| {
        let dir = TinyBert::new().write();
        let model =
            EmbeddingModel::open(dir.path(), DeviceName::Cpu, EmbeddingConfig::default()).unwrap();
        let mut engine = model.load().unwrap();
        let of = some_texts();
        for isolate in [&[][..], &["--isolate"]] {
            let server = Server::start(dir.path(), isolate);
            let body = json!({"inputs": of}).to_string();
            let (status, said) = server.call("POST", "/embed_all", &body);
            assert_eq!(status, 200, "{said}");
            let served: Vec<Vec<Vec<f32>>> = serde_json::from_str(&said).unwrap();
            for (served, text) in served.iter().zip(&of) {
                let item = model.tokeniser().encode(text).unwrap().with_each_token();
                assert_eq!((served.len(), served[0].len()), (item.ids().len(), WIDTH));
                let expected = engine.infer(&[item]).unwrap().remove(0);
                assert!(difference(&served.concat(), &expected) <= 1e-5);
            }
            assert_eq!(server.stop(), Some(0));
        }
    });
}

/// A BERT with a head of so many labels.
fn with_head(labels: usize) -> tempfile::TempDir {
    let mut tiny = TinyBert::new();
    let number = |i: usize| ((i * 37 % 101) as f32 / 50.0 - 1.0) / 2.0;
    let tensors = std::mem::take(&mut tiny.tensors);
    tiny.tensors = tensors.into_iter().map(|(name, t)| (format!("bert.{name}"), t)).collect();
    for (name, rows) in [("bert.pooler.dense", WIDTH), ("classifier", labels)] {
        let weight = (0..rows * WIDTH).map(number).collect();
        tiny.tensors.insert(format!("{name}.weight"), (vec![rows, WIDTH], weight));
        tiny.tensors.insert(format!("{name}.bias"), (vec![rows], (0..rows).map(number).collect()));
    }
    tiny.config["architectures"] = json!(["BertForSequenceClassification"]);
    let names: serde_json::Map<String, Value> =
        (0..labels).map(|label| (label.to_string(), json!(format!("label {label}")))).collect();
    tiny.config["id2label"] = Value::Object(names);
    tiny.write()
}

#[test]
fn a_head_of_one_label_reranks_and_one_of_more_classifies() {
    in_time(|| {
        let (one, three) = (with_head(1), with_head(3));
        let open = |dir: &Path| {
            ClassificationModel::open(dir, DeviceName::Cpu, EmbeddingConfig::default()).unwrap()
        };
        let (reranker, classifier) = (open(one.path()), open(three.path()));
        let texts: Vec<String> = (0..9).map(|i| text(3 + 11 * i, i)).collect();
        let pairs: Vec<_> = texts
            .iter()
            .map(|text| reranker.tokeniser().encode_pair("w1 w2", text).unwrap())
            .collect();
        let one_by_one = |engine: &mut dyn FnMut(usize) -> Vec<f32>| -> Vec<Vec<f32>> {
            (0..texts.len()).map(engine).collect()
        };
        let mut engine = reranker.load().unwrap();
        let scores = one_by_one(&mut |i| engine.infer(&pairs[i..=i]).unwrap().remove(0));
        for isolate in [&[][..], &["--isolate"]] {
            let classes = format!("classes={}", three.path().display());
            let more = [&["--model-id", classes.as_str()], isolate].concat();
            let server = Server::start(one.path(), &more);
            let body = json!({"query": "w1 w2", "texts": texts, "raw_scores": true});
            let (status, ranks) = server.call("POST", "/rerank", &body.to_string());
            assert_eq!(status, 200, "{ranks}");
            let ranks: Vec<Value> = serde_json::from_str(&ranks).unwrap();
            assert_eq!(ranks.len(), texts.len());
            for rank in &ranks {
                let index = rank["index"].as_u64().unwrap() as usize;
                let score = rank["score"].as_f64().unwrap() as f32;
                assert!((score - scores[index][0]).abs() < 1e-4, "{rank}: {:?}", scores[index]);
            }
            let body = json!({"model": "classes", "inputs": texts[4], "raw_scores": true});
            let (status, found) = server.call("POST", "/predict", &body.to_string());
            assert_eq!(status, 200, "{found}");
            let found: Vec<Value> = serde_json::from_str(&found).unwrap();
            let item = classifier.tokeniser().encode(&texts[4]).unwrap();
            let expected = classifier.load().unwrap().infer(&[item]).unwrap().remove(0);
            for (label, expected) in expected.iter().enumerate() {
                let name = format!("label {label}");
                let of = found.iter().find(|one| one["label"] == json!(name)).unwrap();
                assert!((of["score"].as_f64().unwrap() as f32 - expected).abs() < 1e-4, "{of}");
            }
            assert_eq!(server.stop(), Some(0));
        }
    });
}

/// Stops the clients, also when the test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}

/// Clients that embed until they are told to stop; what was answered, and what else came.
fn under_load<T>(
    server: &Server,
    during: impl FnOnce(&AtomicUsize) -> T,
) -> (T, usize, Vec<String>) {
    let (answered, stop) = (AtomicUsize::new(0), AtomicBool::new(false));
    let failures = std::sync::Mutex::new(Vec::new());
    let texts = some_texts();
    let during = std::thread::scope(|scope| {
        for client in 0..8 {
            let (texts, answered, stop, failures) = (&texts, &answered, &stop, &failures);
            scope.spawn(move || {
                for i in 0.. {
                    if stop.load(Ordering::SeqCst) {
                        return;
                    }
                    let some = &texts[(client + i) % 30..][..1 + i % 5];
                    let body = json!({"inputs": some}).to_string();
                    let (status, said) = server.call("POST", "/embed", &body);
                    answered.fetch_add(1, Ordering::SeqCst);
                    if status != 200 {
                        failures.lock().unwrap().push(format!("{status}: {said}"));
                    }
                }
            });
        }
        let _stop = StopAtEnd(&stop);
        during(&answered)
    });
    (during, answered.into_inner(), failures.into_inner().unwrap())
}

/// Waits until so many more calls have been answered.
fn more(answered: &AtomicUsize, count: usize) {
    let (until, start) = (answered.load(Ordering::SeqCst) + count, Instant::now());
    while answered.load(Ordering::SeqCst) < until {
        assert!(start.elapsed() < Duration::from_secs(60), "calls are not answered");
        std::thread::yield_now();
    }
}

#[test]
fn a_termination_under_load_loses_no_call() {
    in_time(|| {
        let model = TinyBert::new().write();
        let mut server = Server::start(model.path(), &["--drain-delay", "60"]);
        let pid = server.process.id().to_string();
        let ((), answered, failures) = under_load(&server, |answered| {
            more(answered, 50);
            assert!(Command::new("kill").arg(&pid).status().unwrap().success());
            // As whoever sends traffic does: it looks at /ready, and goes on until that fails.
            while server.call("GET", "/ready", "").0 == 200 {}
            assert_eq!(server.call("GET", "/live", "").0, 200);
            more(answered, 50);
        });
        assert_eq!(failures, Vec::<String>::new(), "of {answered}");
        // The second one ends the delay.
        assert!(Command::new("kill").arg(&pid).status().unwrap().success());
        assert_eq!(server.process.wait().unwrap().code(), Some(1));
    });
}

#[test]
fn children_killed_under_load_cost_no_call() {
    in_time(|| {
        let model = TinyBert::new().write();
        let server = Server::start(model.path(), &["--isolate"]);
        let parent = server.process.id().to_string();
        let ((), answered, failures) = under_load(&server, |answered| {
            for _ in 0..3 {
                more(answered, 50);
                let killed = Command::new("pkill").args(["-KILL", "-P", &parent]).status().unwrap();
                assert!(killed.success(), "there was no child");
            }
            more(answered, 50);
        });
        assert_eq!(failures, Vec::<String>::new(), "of {answered}");
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
