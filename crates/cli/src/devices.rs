//! `onelane devices`: what this build and this machine can use.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};

/// Arguments of `onelane devices`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// Runs the command.
///
/// # Errors
/// When the list cannot be printed.
pub fn run(args: Args) -> Result<ExitCode> {
    let devices = onelane_engines::devices();
    let mut stdout = std::io::stdout().lock();
    if args.json {
        writeln!(stdout, "{}", serde_json::to_string_pretty(&devices)?)?;
        return Ok(ExitCode::SUCCESS);
    }
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["device", "usable", ""]);
    for device in devices {
        let usable = if device.usable { "yes" } else { "no" };
        table.add_row([device.name, usable.to_owned(), device.detail]);
    }
    writeln!(stdout, "{table}")?;
    Ok(ExitCode::SUCCESS)
}
