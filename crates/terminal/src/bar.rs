//! A progress bar on stderr.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// A bar of so many steps with a message; nothing is drawn when stderr is not a terminal.
pub fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::new(steps);
    let style = ProgressStyle::with_template("{elapsed_precise} {bar:30} {percent:>3}% {msg}");
    bar.set_style(style.expect("the template is a constant that parses"));
    bar.enable_steady_tick(Duration::from_millis(200));
    bar
}
