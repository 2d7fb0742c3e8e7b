//! `onelane embed` and `onelane devices`: the real binary on a tiny model.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::binary::{ended, finish, texts};
use crate::common::{TinyBert, difference, text, write_json};
use crate::onelane;

/// A model and a place for files.
struct Place {
    model: TempDir,
    files: TempDir,
}

impl Place {
    fn new() -> Self {
        Self { model: TinyBert::new().write(), files: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    fn file(&self, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, contents).unwrap();
        path
    }

    fn embed(&self, input: &Path, more: &[&str]) -> Command {
        let mut command = onelane(["embed", "--model"]);
        command.arg(self.model.path()).args(more).arg(input);
        command
    }

    /// What lies in the place, but for the input.
    fn left(&self) -> Vec<String> {
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        let names = fs::read_dir(self.files.path()).unwrap().map(name);
        let mut names: Vec<String> = names.map(|name| name.into_string().unwrap()).collect();
        names.retain(|name| name != "in.txt");
        names.sort();
        names
    }
}

fn code(output: &Output) -> i32 {
    let code = output.status.code().expect("no signal ended it");
    assert!(!texts(output).1.contains("panicked"), "{}", texts(output).1);
    code
}

/// The lines of an output, each checked to be the right one.
fn embeddings(output: &str) -> Vec<Result<Vec<f32>, String>> {
    let line = |(i, line): (usize, &str)| {
        let line: Value = serde_json::from_str(line).unwrap();
        assert_eq!(line["index"], i, "input order");
        assert_eq!(line.as_object().unwrap().len(), 2);
        match line.get("error") {
            Some(error) => Err(error.as_str().unwrap().to_owned()),
            None => Ok(serde_json::from_value(line["embedding"].clone()).unwrap()),
        }
    };
    output.lines().enumerate().map(line).collect()
}

fn many_texts(count: usize) -> Vec<String> {
    (0..count).map(|i| text((i * 29 + 3) % 140, i)).collect()
}

#[test]
fn every_line_gets_its_embedding_in_input_order() {
    let place = Place::new();
    let texts_in = many_texts(500);
    let input = place.file("in.txt", texts_in.join("\n"));
    let run = |more: &[&str]| {
        let output = finish(place.embed(&input, more));
        assert_eq!(code(&output), 0, "{}", texts(&output).1);
        output
    };
    let many = run(&["--threads", "8"]);
    let alone = run(&["--threads", "1", "--max-batch-size", "1", "--priority", "bulk"]);
    let (many_out, alone_out) = (embeddings(texts(&many).0), embeddings(texts(&alone).0));
    assert_eq!((many_out.len(), alone_out.len()), (500, 500));
    for (i, (many, alone)) in many_out.iter().zip(&alone_out).enumerate() {
        let (many, alone) = (many.as_ref().unwrap(), alone.as_ref().unwrap());
        assert!(difference(many, alone) < 1e-5, "line {i}");
    }
    let distinct = |i: usize, j: usize| {
        difference(many_out[i].as_ref().unwrap(), many_out[j].as_ref().unwrap()) > 1e-3
    };
    assert!(distinct(1, 2) && distinct(100, 200), "texts are told apart");

    // The closing line, and nothing else, is on stderr.
    let closing = texts(&many).1;
    assert_eq!(closing.lines().count(), 1, "{closing}");
    for part in
        ["500 texts in ", "texts/s", " batches, ", " texts a batch", "% padding", "distinct shapes"]
    {
        assert!(closing.contains(part), "{closing:?} lacks {part:?}");
    }
    assert!(texts(&alone).1.contains("500 batches, 1.0 texts a batch"), "{}", texts(&alone).1);
}

#[test]
fn an_output_file_is_written_whole_and_replaces_the_old_one() {
    let place = Place::new();
    let input = place.file("in.txt", many_texts(50).join("\n") + "\n");
    let target = place.file("out.jsonl", "old");
    let output = finish(place.embed(&input, &["--output", target.to_str().unwrap()]));
    assert_eq!(code(&output), 0, "{}", texts(&output).1);
    assert_eq!(texts(&output).0, "");
    let written = fs::read_to_string(&target).unwrap();
    assert_eq!(embeddings(&written).len(), 50, "a newline at the end begins no text");
    assert_eq!(place.left(), ["out.jsonl"]);
}

#[test]
fn standard_input_is_read_and_answered_line_by_line() {
    let place = Place::new();
    let mut command = place.embed(Path::new("-"), &[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
    ended(command, |command| {
        let mut child = command.spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap()).lines();
        for i in 0..3 {
            // Each answer comes before the next text is sent: nothing waits for a full batch.
            writeln!(stdin, "w{i}").unwrap();
            let line: Value = serde_json::from_str(&stdout.next().unwrap().unwrap()).unwrap();
            assert_eq!(line["index"], i);
        }
        drop(stdin);
        assert!(stdout.next().is_none());
        assert!(child.wait().unwrap().success());
    });
}

#[test]
fn empty_input_and_empty_lines_have_a_stated_meaning() {
    let place = Place::new();
    let input = place.file("in.txt", "");
    let output = finish(place.embed(&input, &[]));
    assert_eq!((code(&output), texts(&output).0), (0, ""));
    assert!(texts(&output).1.starts_with("0 texts"), "{}", texts(&output).1);

    let input = place.file("in.txt", "\nw1\r\n\n  \nw1");
    let output = finish(place.embed(&input, &[]));
    assert_eq!(code(&output), 0);
    let embeddings = embeddings(texts(&output).0);
    assert_eq!(embeddings.len(), 5);
    // An empty line is an empty text; the line end is no part of a text.
    assert_eq!(embeddings[0], embeddings[2]);
    assert_eq!(embeddings[0], embeddings[3]);
    assert_eq!(embeddings[1], embeddings[4]);
    assert_ne!(embeddings[0], embeddings[1]);
}

#[test]
fn a_line_that_is_not_utf8_fails_alone() {
    let place = Place::new();
    let input = place.file("in.txt", b"w1\nw\xff2\nw1\n\xc3\n");
    let target = place.path("out.jsonl");
    let output = finish(place.embed(&input, &["--output", target.to_str().unwrap()]));
    assert_eq!(code(&output), 1);
    let out = fs::read_to_string(&target).unwrap();
    let lines = embeddings(&out);
    assert_eq!(lines.len(), 4);
    assert_eq!(lines[0], lines[2]);
    assert!(lines[0].is_ok());
    assert!(lines[1].as_ref().unwrap_err().contains("not UTF-8: byte 2"));
    assert!(lines[3].is_err());
    let stderr = texts(&output).1;
    assert!(stderr.contains("error: line 2: not UTF-8"), "{stderr}");
    assert_eq!(stderr.matches("error:").count(), 1, "said once: {stderr}");
    assert!(stderr.contains("2 failed"), "{stderr}");
}

#[test]
fn a_text_that_is_too_long_is_truncated_and_told_once() {
    let place = Place::new();
    write_json(place.model.path(), "sentence_bert_config.json", &json!({"max_seq_length": 20}));
    let long = text(18, 1);
    let input = place.file("in.txt", format!("w1\n{long}\n{long} w5\n{long} w9 w9\n"));
    let output = finish(place.embed(&input, &[]));
    assert_eq!(code(&output), 0);
    let lines = embeddings(texts(&output).0);
    assert_eq!(lines[1], lines[2]);
    assert_eq!(lines[1], lines[3]);
    let stderr = texts(&output).1;
    assert_eq!(stderr.matches("line 3 is longer than the model's limit of 20 tokens").count(), 1);
    assert_eq!(stderr.lines().count(), 2, "{stderr}");
    assert!(stderr.contains("2 truncated"), "{stderr}");
}

#[test]
fn a_start_that_fails_is_exit_2_with_the_reason_and_leaves_nothing() {
    let place = Place::new();
    let input = place.file("in.txt", "w1\n");
    let refused = |command: Command, said: &[&str]| {
        let output = finish(command);
        let (stdout, stderr) = texts(&output);
        assert_eq!((code(&output), stdout), (2, ""), "{stderr}");
        assert!(stderr.starts_with("error: "), "{stderr}");
        for said in said {
            assert!(stderr.contains(said), "{stderr:?} lacks {said:?}");
        }
        assert_eq!(place.left(), [""; 0], "{said:?} left something");
    };
    for (more, said) in [
        (&["--threads", "0"][..], &["--threads", "at least 1"][..]),
        (&["--threads", "x"], &["--threads", "whole number"]),
        (&["--threads", "9223372036854775808"], &["--threads", "at most 4096 threads"]),
        (&["--max-batch-size", "0"], &["--max-batch-size", "at least 1"]),
        (&["--priority", "urgent"], &["urgent", "interactive, normal or bulk"]),
        (&["--device", "gpu"], &["\"gpu\"", "cpu, metal, metal:N, cuda or cuda:N"]),
        (&["--device", "cuda:x"], &["\"x\" is not a device number"]),
        (&["--output", "/no/such/dir/out"], &["/no/such/dir"]),
        (&["--output", "/"], &["cannot write /", "directory"]),
    ] {
        refused(place.embed(&input, more), said);
    }
    #[cfg(not(feature = "cuda"))]
    refused(place.embed(&input, &["--device", "cuda"]), &["lacks CUDA support", "--features cuda"]);
    #[cfg(not(feature = "metal"))]
    refused(place.embed(&input, &["--device", "metal"]), &["lacks Metal support"]);

    let absent = place.path("absent.txt");
    refused(place.embed(&absent, &[]), &["cannot read", "absent.txt"]);
    let output = place.path("out.jsonl");
    refused(place.embed(&absent, &["--output", output.to_str().unwrap()]), &["absent.txt"]);
    refused(place.embed(place.model.path(), &[]), &["it is a directory"]);

    // The model: none, no directory, a file missing, a file damaged. The output is never touched.
    let to_output = ["--output", output.to_str().unwrap()];
    let mut command = onelane(["embed", "--model", "/no/such/model"]);
    command.args(to_output).arg(&input);
    refused(command, &["/no/such/model is not a directory"]);
    refused(onelane(["embed", "in.txt"]), &["--model"]);
    let weights = place.model.path().join("model.safetensors");
    let whole = fs::read(&weights).unwrap();
    fs::write(&weights, &whole[..whole.len() / 2]).unwrap();
    refused(place.embed(&input, &to_output), &["model.safetensors", "is damaged"]);
    fs::remove_file(&weights).unwrap();
    refused(place.embed(&input, &to_output), &["model.safetensors does not exist", "must hold"]);

    // A text says its cause, and says it once.
    fs::create_dir(&weights).unwrap();
    refused(place.embed(&input, &to_output), &["model.safetensors is a directory"]);
    let stderr = finish(place.embed(&input, &["--output", "/no/such/dir/out"])).stderr;
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(stderr.matches("there is no directory").count(), 1, "{stderr}");
}

#[cfg(unix)]
#[test]
fn a_link_to_a_file_that_is_not_there_yet() {
    let place = Place::new();
    let input = place.file("in.txt", "w1\n");
    let (target, link) = (place.path("target.jsonl"), place.path("link.jsonl"));
    std::os::unix::fs::symlink(&target, &link).unwrap();
    let output = finish(place.embed(&input, &["--output", link.to_str().unwrap()]));
    assert_eq!(code(&output), 0, "{}", texts(&output).1);
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(embeddings(&fs::read_to_string(&target).unwrap()).len(), 1);
}

#[cfg(unix)]
#[test]
fn a_signal_in_the_middle_leaves_the_old_file_and_nothing_else() {
    use std::os::unix::process::ExitStatusExt;
    for (name, number) in [("TERM", 15), ("INT", 2), ("HUP", 1)] {
        let place = Place::new();
        let target = place.file("out.jsonl", "old");
        let to = ["--output", target.to_str().unwrap()];
        let mut command = place.embed(Path::new("-"), &to);
        command.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::null());
        let status = ended(command, move |command| {
            let mut child = command.spawn().unwrap();
            // More than the pipe and the first buffer hold: it is being read, so it has begun.
            child.stdin.as_mut().unwrap().write_all(&b"w1 w2 w3\n".repeat(40_000)).unwrap();
            let kill =
                Command::new("kill").args([&format!("-{name}"), &child.id().to_string()]).status();
            assert!(kill.unwrap().success());
            child.wait().unwrap()
        });
        assert_eq!(status.signal(), Some(number), "{status}");
        assert_eq!(fs::read_to_string(&target).unwrap(), "old");
        assert_eq!(place.left(), ["out.jsonl"], "{name}");
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_line_without_end_takes_little_memory() {
    let place = Place::new();
    let words = "w1 ".repeat((200 << 20) / 3);
    let input = place.file("in.txt", format!("{words}\n{}\nw1\n", "x".repeat(50 << 20)));
    let mut command = Command::new("sh");
    let binary = place.embed(&input, &[]);
    // A gibibyte of memory, in all that a process may have.
    command.args(["-c", "ulimit -d 1048576; exec \"$@\"", "sh"]).arg(binary.get_program());
    command.args(binary.get_args()).stdin(Stdio::null());
    let output = finish(command);
    assert_eq!(code(&output), 0, "{}", texts(&output).1);
    let lines = embeddings(texts(&output).0);
    assert_eq!(lines.len(), 3);
    assert!(texts(&output).1.contains("2 truncated"), "{}", texts(&output).1);
}

#[cfg(target_os = "linux")]
#[test]
fn an_output_that_fails_midway_is_exit_1() {
    let place = Place::new();
    let input = place.file("in.txt", many_texts(2000).join("\n"));
    // /dev/full refuses what is written; it is no regular file, so it is written directly.
    let output = finish(place.embed(&input, &["--output", "/dev/full"]));
    assert_eq!(code(&output), 1);
    assert!(texts(&output).1.contains("error: cannot write /dev/full"), "{}", texts(&output).1);
    assert!(Path::new("/dev/full").exists());
    let mut command = place.embed(&input, &[]);
    command.stdout(fs::File::create("/dev/full").unwrap()).stderr(Stdio::piped());
    let output = ended(command, |command| command.spawn().unwrap().wait_with_output().unwrap());
    assert_eq!(code(&output), 1);
    assert!(texts(&output).1.contains("error: cannot write standard output"));
}

#[test]
fn a_reader_that_has_seen_enough_ends_it_quietly() {
    let place = Place::new();
    let mut command = place.embed(Path::new("-"), &[]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = ended(command, |command| {
        let mut child = command.spawn().unwrap();
        // Standard input stays open, as a terminal does: the end must not wait for it.
        let mut stdin = child.stdin.take().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        writeln!(stdin, "w1").unwrap();
        stdout.read_line(&mut String::new()).unwrap();
        drop(stdout);
        writeln!(stdin, "w2").unwrap();
        let output = child.wait_with_output().unwrap();
        drop(stdin);
        output
    });
    assert_eq!((code(&output), texts(&output).1), (0, ""));
}

#[cfg(unix)]
#[test]
fn input_that_breaks_off_is_exit_1_and_leaves_no_output_file() {
    let place = Place::new();
    let target = place.file("out.jsonl", "old");
    // Reading one's own memory map at address 0 is an I/O error in the middle of an open file.
    let input = Path::new("/proc/self/mem");
    if !input.exists() {
        return;
    }
    let output = finish(place.embed(input, &["--output", target.to_str().unwrap()]));
    assert_eq!(code(&output), 1);
    assert!(texts(&output).1.contains("error: cannot read /proc/self/mem"), "{}", texts(&output).1);
    assert_eq!(fs::read_to_string(&target).unwrap(), "old");
    assert_eq!(place.left(), ["out.jsonl"]);
}

#[test]
fn devices_are_listed_for_people_and_for_programs() {
    let output = finish(onelane(["devices"]));
    assert_eq!(code(&output), 0);
    let stdout = texts(&output).0;
    assert!(stdout.contains("cpu") && stdout.contains("compute thread"), "{stdout}");

    let output = finish(onelane(["devices", "--json"]));
    assert_eq!(code(&output), 0);
    let list: Vec<Value> = serde_json::from_str(texts(&output).0).unwrap();
    assert_eq!((list[0]["name"].as_str(), list[0]["usable"].as_bool()), (Some("cpu"), Some(true)));
    for device in &list {
        assert!(!device["detail"].as_str().unwrap().is_empty());
    }
    #[cfg(not(feature = "cuda"))]
    assert!(list.iter().any(|device| device["name"] == "cuda" && device["usable"] == false));
}
