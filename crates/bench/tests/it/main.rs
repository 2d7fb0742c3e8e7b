//! The real binary `onelane-bench`, as a person runs it.

#[path = "../../../cli/tests/it/binary.rs"]
mod binary;
mod chaos;
mod load;
mod snapshots;

use std::process::{Command, Output};

use binary::finish;

/// Runs `onelane-bench` with these arguments to its end.
fn onelane_bench(args: &str) -> Output {
    let command: Command =
        binary::command(env!("CARGO_BIN_EXE_onelane-bench"), args.split_whitespace());
    finish(command)
}
