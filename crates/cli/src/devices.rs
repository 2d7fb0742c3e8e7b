//! `onelane devices`: what this build and this machine can use.

use std::io::Write;
use std::process::ExitCode;

use anyhow::Result;
use comfy_table::{Table, presets};
use onelane_sim::Profile;
use onelane_terminal::SIMULATED;
use serde::Serialize;

/// Arguments of `onelane devices`.
#[derive(clap::Args)]
pub struct Args {
    /// Print the list as JSON.
    #[arg(long)]
    json: bool,
}

/// A row of the list.
#[derive(Serialize)]
struct Row {
    name: String,
    usable: bool,
    detail: String,
    /// Whether it is a model of a device, and not hardware.
    simulated: bool,
}

/// The devices of this machine, then the simulated ones, which run anywhere.
fn rows() -> Vec<Row> {
    let real = onelane_engines::devices().into_iter().map(|device| Row {
        name: device.name,
        usable: device.usable,
        detail: device.detail,
        simulated: false,
    });
    let simulated = Profile::NAMES.into_iter().map(|name| {
        let profile: Profile = name.parse().expect("every listed name is a profile's");
        Row {
            name: format!("{SIMULATED}:{name}"),
            usable: true,
            detail: format!("simulated: {}", profile.summary()),
            simulated: true,
        }
    });
    real.chain(simulated).collect()
}

/// Runs the command.
///
/// # Errors
/// When the list cannot be printed.
pub fn run(args: Args) -> Result<ExitCode> {
    let devices = rows();
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
