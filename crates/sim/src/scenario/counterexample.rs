//! The directed counterexample for H1: two threads and one order of their steps.
//!
//! T1 allocates P, computes a projection into it, copies P to C (pending) and frees P. T2 gets P's block
//! for its own projection and commits. T1 commits: its copy reads T2's numbers.

use std::fmt;

use super::data::{Seeded, WEIGHTS};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimResult;
use crate::models::{MultiheadAttention, PackedProjection, Packing};
use crate::profile::Profile;
use crate::schedule::{Schedule, Turn};
use crate::tensor::Tensor;
use crate::trace::{ActionKind, Event, Trace};

/// What the two threads run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Program {
    /// The minimal race with `.contiguous()`.
    Race,
    /// `nn.MultiheadAttention` as released.
    Attention,
    /// `nn.MultiheadAttention` with patch 035.
    AttentionWithPatch035,
}

/// The script: T1 until it has freed P, T2 until it has committed, then T1, then T2.
pub fn script() -> Vec<Turn> {
    vec![
        // The main thread sets up and waits.
        Turn::stopped("main"),
        Turn::done("T1", ActionKind::Free, 1),
        Turn::done("T2", ActionKind::Commit, 1),
        Turn::stopped("T1"),
        Turn::stopped("T2"),
    ]
}

/// What came of it.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Counterexample {
    /// The largest absolute difference of T1's result to the serial one.
    pub worst: f32,
    /// The steps of T1 and T2 in order.
    pub steps: Vec<Step>,
    /// Everything that happened.
    pub trace: Trace,
}

/// One step of a thread.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Step {
    /// The place of its event in the trace.
    pub event: usize,
    /// The simulated time step.
    pub step: u64,
    /// The thread.
    pub thread: String,
    /// What it did.
    pub what: String,
    /// Why it matters, where it does.
    pub note: Option<String>,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>5}  {}  {}", self.step, self.thread, self.what)?;
        match &self.note {
            Some(note) => write!(f, "   <- {note}"),
            None => Ok(()),
        }
    }
}

impl Counterexample {
    /// Whether T1's result is wrong.
    pub fn reproduced(&self) -> bool {
        self.worst > 1e-3
    }

    /// The block that T1 freed while its copy was pending: the projection's.
    pub fn freed_block(&self) -> Option<u32> {
        first_freed(self.trace.events())
    }
}

/// Runs the script under a profile.
///
/// # Errors
/// When the simulated process fails; under the profiles of this crate it does not.
pub fn counterexample(profile: Profile, program: Program) -> SimResult<Counterexample> {
    let config = SimConfig::new(profile).schedule(Schedule::Script(script())).traced(true);
    let device = SimDevice::new(config);
    let worst = device.run(|main| {
        let mut seeded = Seeded::new(WEIGHTS);
        let mut upload = |shape: &[usize]| device.upload(&seeded.normal(shape));
        let inputs = [upload(&[4, 128, 256])?, upload(&[4, 128, 256])?];
        let projection = [upload(&[768, 256])?, upload(&[768])?];
        let output = [upload(&[256, 256])?, upload(&[256])?];
        let run = |x: &Tensor| match program {
            Program::Race => PackedProjection {
                projection: projection.clone(),
                heads: 4,
                contiguous: true,
                keep: false,
            }
            .forward(x),
            Program::Attention | Program::AttentionWithPatch035 => MultiheadAttention {
                projection: projection.clone(),
                output: output.clone(),
                heads: 4,
                packing: match program {
                    Program::AttentionWithPatch035 => Packing::Chunked,
                    _ => Packing::Packed,
                },
            }
            .forward(x),
        };
        let expected = run(&inputs[0])?.download()?;
        device.synchronise()?;
        let results = main.scope(|scope| {
            let (run, inputs) = (&run, &inputs);
            [("T1", 0), ("T2", 1)]
                .map(|(name, at)| scope.spawn(name, move |_| run(&inputs[at])))
                .map(|thread| thread.join().and_then(|result| result))
        });
        let [first, second] = results;
        drop(second?);
        let first = first?.download()?;
        Ok(first.max_difference(&expected))
    })??;
    let trace = device.trace();
    Ok(Counterexample { worst, steps: steps(trace.events()), trace })
}

/// The block that T1 freed first: the projection's.
fn first_freed(events: &[Event]) -> Option<u32> {
    let mut frees =
        events.iter().filter(|event| event.thread == "T1" && event.kind == ActionKind::Free);
    frees.next().and_then(|event| event.writes.first().copied())
}

/// The steps of T1 and T2, with notes on the block that T1 freed.
fn steps(events: &[Event]) -> Vec<Step> {
    let of_threads = |event: &Event| event.thread == "T1" || event.thread == "T2";
    let freed = first_freed(events);
    let mut steps: Vec<Step> = Vec::new();
    let (mut given_away, mut read) = (false, false);
    for (at, event) in events.iter().enumerate().filter(|(_, event)| of_threads(event)) {
        let writes_freed = freed.is_some_and(|p| event.writes.contains(&p));
        let about_freed = writes_freed || freed.is_some_and(|p| event.reads.contains(&p));
        let note = match (event.kind, event.thread.as_str()) {
            (ActionKind::Encode, "T1") if about_freed && event.name == "copy" => {
                Some("pending: it reads the block only when it is committed")
            }
            (ActionKind::Free, "T1") if about_freed && !given_away => {
                Some("its reader is still pending")
            }
            (ActionKind::Alloc, "T2") if about_freed => {
                given_away = true;
                Some("T1's block, given to T2")
            }
            (ActionKind::Execute, "T2") if writes_freed && given_away && !read => {
                Some("overwrites what T1's pending copy will read")
            }
            (ActionKind::StaleRead, "T1") => {
                read = true;
                Some("T1's copy reads T2's numbers")
            }
            _ => None,
        };
        if let Some(what) = describe(event) {
            steps.push(Step {
                event: at,
                step: event.step,
                thread: event.thread.clone(),
                what,
                note: note.map(str::to_owned),
            });
        }
    }
    steps
}

fn describe(event: &Event) -> Option<String> {
    let blocks = |blocks: &[u32]| {
        let names: Vec<String> = blocks.iter().map(|b| format!("#{b}")).collect();
        names.join(" ")
    };
    let size = event.bytes.unwrap_or(0) / 1024;
    let buffer = event.command_buffer.unwrap_or(0);
    Some(match event.kind {
        ActionKind::Alloc => format!("alloc {} ({size} KiB)", blocks(&event.writes)),
        ActionKind::Free => format!("free {} ({size} KiB)", blocks(&event.writes)),
        ActionKind::Encode => format!(
            "encode {} {} -> {} into command buffer {buffer}",
            event.name,
            blocks(&event.reads),
            blocks(&event.writes)
        ),
        ActionKind::Commit => format!("commit command buffer {buffer}"),
        ActionKind::Execute => {
            format!("  runs {} {} -> {}", event.name, blocks(&event.reads), blocks(&event.writes))
        }
        ActionKind::StaleRead => {
            format!("  STALE READ by {} of {}", event.name, blocks(&event.reads))
        }
        ActionKind::StaleWrite => {
            format!("  STALE WRITE by {} to {}", event.name, blocks(&event.writes))
        }
        _ => return None,
    })
}
