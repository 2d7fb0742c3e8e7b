//! The real binary `onelane`, as a person runs it.

mod binary;
#[path = "../../../engines/tests/common/mod.rs"]
mod common;
mod correctness;
mod embed;
mod hazards;
mod serve;
mod snapshots;

use std::ffi::OsStr;
use std::process::Command;

/// `onelane` with these arguments.
fn onelane<A: AsRef<OsStr>>(args: impl IntoIterator<Item = A>) -> Command {
    binary::command(env!("CARGO_BIN_EXE_onelane"), args)
}
