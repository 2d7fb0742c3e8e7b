//! `onelane-spec`: checks the protocol of the batch queue exhaustively, at small sizes.
//!
//! Every state that a scenario can reach is visited; each property is looked at in each of them.
//! With `--bug` a deliberate fault is put in, and the shortest counterexample is printed.

mod action;
mod bug;
mod client;
mod property;
mod protocol;
mod queue;
mod scenario;
mod state;
mod worker;

use std::process::ExitCode;
use std::time::Instant;

use clap::Parser;
use stateright::{Checker, HasDiscoveries, Model};

use bug::Bug;
use scenario::Scenario;

/// Checks the protocol of the batch queue: every interleaving of a few clients, workers and
/// shutdowns. Exit 0: no counterexample. Exit 1: a property fails; its counterexample is printed.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// Puts in a fault.
    #[arg(long, value_enum)]
    bug: Option<Bug>,
    /// Checks one scenario only.
    #[arg(long)]
    scenario: Option<String>,
    /// More clients and requests: minutes instead of seconds.
    #[arg(long)]
    full: bool,
    /// Turns the exit code round: a counterexample is what is wanted.
    #[arg(long, requires = "bug")]
    must_fail: bool,
}

/// What a scenario came to.
struct Finding {
    states: usize,
    depth: usize,
    /// A property that fails, and the actions that lead there.
    counterexample: Option<(&'static str, Vec<String>)>,
}

fn check(scenario: Scenario) -> Finding {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let checker = scenario
        .checker()
        .threads(threads)
        .finish_when(HasDiscoveries::AnyFailures)
        .spawn_bfs()
        .join();
    let discoveries = checker.discoveries();
    let shortest = discoveries
        .into_iter()
        .map(|(name, path)| {
            let actions = path.into_actions();
            (name, actions.iter().map(|action| format!("{action:?}")).collect::<Vec<_>>())
        })
        .min_by_key(|(_, actions)| actions.len());
    Finding {
        states: checker.unique_state_count(),
        depth: checker.max_depth(),
        counterexample: shortest,
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let chosen = |scenario: &Scenario| args.scenario.as_deref().is_none_or(|n| n == scenario.name);
    let scenarios: Vec<_> = scenario::all(args.full).into_iter().filter(chosen).collect();
    if scenarios.is_empty() {
        let names: Vec<_> = scenario::all(false).iter().map(|scenario| scenario.name).collect();
        eprintln!("no such scenario; there are {}", names.join(", "));
        return ExitCode::from(2);
    }
    let (mut found, mut total) = (false, 0);
    for mut scenario in scenarios {
        scenario.bug = args.bug;
        let name = scenario.name;
        let started = Instant::now();
        let Finding { states, depth, counterexample } = check(scenario);
        total += states;
        println!("{name:<20} {states:>9} states, depth {depth:>3}, {:.1?}", started.elapsed());
        if let Some((property, actions)) = counterexample {
            found = true;
            println!("  FAILS: {property}");
            for (number, action) in actions.iter().enumerate() {
                println!("  {:>3}. {action}", number + 1);
            }
            if args.bug.is_some() {
                break;
            }
        }
    }
    println!("{total} states in all; {}", if found { "a property fails" } else { "all hold" });
    if found == args.must_fail { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::ValueEnum;

    #[test]
    fn the_protocol_holds() {
        for scenario in scenario::all(false) {
            let name = scenario.name;
            let finding = check(scenario);
            assert!(finding.counterexample.is_none(), "{name}: {:?}", finding.counterexample);
            assert!(finding.states > 100, "{name}: nothing was looked at");
        }
    }

    #[test]
    fn each_fault_is_found() {
        for &bug in Bug::value_variants() {
            let found = scenario::all(false).into_iter().any(|mut scenario| {
                scenario.bug = Some(bug);
                check(scenario).counterexample.is_some()
            });
            assert!(found, "{bug:?} was not found");
        }
    }
}
