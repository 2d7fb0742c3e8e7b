//! `onelane hazards`: which ways to a device give right numbers, and which do not, on the simulated MPS
//! device.

mod page;
mod report;
mod text;
mod timeline;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::str::FromStr;

use anyhow::Context;
use onelane_sim::Profile;
use onelane_terminal::{OutputFile, bar, times};

use report::Report;

/// Shows the hazards of driving one GPU runtime from many threads, and what cures each. Everything is
/// simulated: no GPU is needed or used.
///
/// The table: what 8 threads compute (rows) by how they get to the device (columns), as iterations
/// with right results, from the lowest to the highest seed. Below it: one order of two threads' steps
/// that corrupts, and crashes, growth, deadlock and thread-affine streams, each with its cures.
///
/// Every cell and scenario is compared with what the profile's rules must give.
///
/// Exit codes: 0 all is as the profile's rules must give it, failures included; 1 something is not; 2
/// wrong usage or a file that cannot be written.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The rules of the table's device; `onelane devices` says what each stands for.
    #[arg(long, value_name = "NAME", default_value = "fork-2.9.1", value_parser = profile)]
    #[arg(long_help = profile_help())]
    profile: Profile,

    /// How many seeds, from 0 on: each is another order in which the threads run.
    #[arg(long, value_name = "N", default_value = "3", value_parser = times)]
    seeds: usize,

    /// Iterations of each cell and seed.
    #[arg(long, value_name = "N", default_value = "30", value_parser = times)]
    iterations: usize,

    /// Writes a page with the same, and the corrupting order of steps drawn, to this file.
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,

    /// Prints JSON instead of tables.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the page or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let html = args.html.as_deref().map(OutputFile::check).transpose()?;
    let bar = bar(Report::steps(args.seeds) as u64);
    let report = Report::gather(&args.profile, (args.seeds, args.iterations), &|what| {
        bar.set_message(format!("{what} (simulated)"));
        bar.inc(1);
    });
    bar.finish_and_clear();
    if let Some(html) = html {
        html.write(page::page(&report).as_bytes())?;
    }
    let text = if args.json {
        let json = serde_json::to_string_pretty(&report);
        json.context("the report does not fit into JSON")? + "\n"
    } else {
        text::text(&report)
    };
    match io::stdout().lock().write_all(text.as_bytes()) {
        // Whoever read has seen enough; the exit code still tells the result.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {}
        written => written.context("cannot write to stdout")?,
    }
    Ok(ExitCode::from(u8::from(!report.as_expected)))
}

fn profile(name: &str) -> Result<Profile, String> {
    Profile::from_str(name.trim()).map_err(|unknown| unknown.to_string())
}

fn profile_help() -> String {
    format!(
        "The rules of the table's device, of {}; `onelane devices` says what each stands for",
        Profile::NAMES.join(", ")
    )
}
