//! Runs a real binary. A run that does not end is a failed test.

use std::ffi::OsStr;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

const LONGEST: Duration = Duration::from_secs(300);

/// A binary with these arguments, reading nothing.
pub fn command<A: AsRef<OsStr>>(binary: &str, args: impl IntoIterator<Item = A>) -> Command {
    let mut command = Command::new(binary);
    command.args(args).stdin(Stdio::null());
    command.env_remove("RUST_LOG");
    command
}

/// Runs a command to its end.
pub fn finish(mut command: Command) -> Output {
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    ended(command, |command| command.output().unwrap())
}

/// Does something with a command that ends when the command does.
pub fn ended<T: Send + 'static>(
    mut command: Command,
    run: impl FnOnce(&mut Command) -> T + Send + 'static,
) -> T {
    let (sender, receiver) = mpsc::channel();
    let text = format!("{command:?}");
    std::thread::spawn(move || sender.send(run(&mut command)));
    receiver.recv_timeout(LONGEST).unwrap_or_else(|_| panic!("{text} did not end"))
}

/// What the command printed, as text.
pub fn texts(output: &Output) -> (&str, &str) {
    let text = |bytes| std::str::from_utf8(bytes).unwrap();
    (text(&output.stdout), text(&output.stderr))
}
