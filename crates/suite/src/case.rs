//! [`Case`]: a named program with its tolerances, and the rule by which threads draw their inputs.

use crate::host::HostTensor;
use crate::program::Program;
use crate::seed::{SEED, Seeded};

/// How many different inputs the threads of one of the ten tests use between them.
///
/// With one input for all, an answer that reaches the wrong thread, or memory that two threads
/// share, would hold the right numbers and pass.
const ROTATIONS: usize = 4;

/// Which input a thread uses in an iteration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Draws {
    /// Thread `t` uses the input of seed 42 with its outermost dimension rotated by `t mod 4` rows:
    /// thread 0 the very input, the others the same rows in another order.
    Rotated,
    /// Thread `t` uses the input of seed `1000 · iteration + t`.
    Numbered,
}

/// Names one input of a case: equal draws are equal data.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Draw(u64);

/// A program with a name and the rule for its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Case {
    /// The name in reports and on the command line.
    pub name: &'static str,
    /// What is computed.
    pub program: Program,
    /// Which inputs the threads use.
    pub draws: Draws,
}

impl Case {
    /// The weights, drawn with seed 42.
    pub fn weights(&self) -> Vec<HostTensor> {
        self.program.weights(&mut Seeded::weights(SEED))
    }

    /// The input that `thread` uses in `iteration`, both counted from 0.
    pub fn draw(&self, thread: usize, iteration: usize) -> Draw {
        Draw(match self.draws {
            Draws::Rotated => (thread % ROTATIONS) as u64,
            Draws::Numbered => (iteration * 1000 + thread) as u64,
        })
    }

    /// The inputs of a draw.
    pub fn inputs(&self, draw: Draw) -> Vec<HostTensor> {
        match self.draws {
            Draws::Rotated => self
                .program
                .inputs(&mut Seeded::inputs(SEED))
                .into_iter()
                .map(|input| input.rotated(draw.0 as usize))
                .collect(),
            Draws::Numbered => self.program.inputs(&mut Seeded::inputs(draw.0)),
        }
    }
}
