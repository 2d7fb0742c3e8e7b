//! What `onelane` and `onelane-bench` share as programs of a terminal.
//!
//! Data goes to stdout, messages and progress to stderr. Exit codes: 0 all is well, 1 a check
//! failed, 2 wrong usage or a start that failed.

mod bar;
mod device_arg;
mod exit;
mod log;
mod number;
mod output_file;
mod unfinished;

pub use bar::bar;
pub use device_arg::{DeviceArg, SIMULATED};
pub use exit::{causes, exit, is_broken_pipe};
pub use log::{Also, Level, log_and, log_to_stderr};
pub use number::{at_least_one, thread_count, times};
pub use output_file::{OutputFile, OutputWriter};
