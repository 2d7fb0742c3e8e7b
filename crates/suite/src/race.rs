//! The cases that show a race between threads and what cures it: for the race and hazard commands,
//! not part of the ten tests.
//!
//! Weights come from seed 42; thread `t` draws its input in iteration `i` from seed `1000 i + t`; a
//! run is 8 threads by 30 iterations, with a tolerance of 1e-3.

use crate::case::{Case, Draws};
use crate::compare::Tolerance;
use crate::layers::{Attention, Projection};
use crate::program::Program;
use crate::ten::ATTENTION;

/// How far a result of these cases may lie from the serial one.
pub const RACE_TOLERANCE: Tolerance = Tolerance::both(1e-3);

/// The minimal race: a packed projection, unpacked with one dense copy, then attention.
pub const RACE_CONTIGUOUS: Case =
    numbered("Race", Program::PackedProjection { attention: ATTENTION, contiguous: true });

/// The minimal race without the dense copy.
pub const RACE_VIEWS: Case = numbered(
    "RaceWithoutContiguous",
    Program::PackedProjection { attention: ATTENTION, contiguous: false },
);

/// Multi-head attention as released.
pub const ATTENTION_PACKED: Case =
    numbered("MultiheadAttention", Program::MultiheadAttention(ATTENTION));

/// Multi-head attention with patch 035: three views of the projection, a dense copy of each.
pub const ATTENTION_CHUNKED: Case =
    numbered("MultiheadAttention035", Program::MultiheadAttention(CHUNKED));

/// The transformer block as released.
pub const BLOCK_PACKED: Case = numbered(
    "TransformerBlock",
    Program::TransformerBlock { attention: ATTENTION, feed_forward: 1024 },
);

/// The transformer block with patch 035.
pub const BLOCK_CHUNKED: Case = numbered(
    "TransformerBlock035",
    Program::TransformerBlock { attention: CHUNKED, feed_forward: 1024 },
);

/// A small MLP, 256-512-128 on 4 rows.
pub const MLP: Case =
    numbered("MLP", Program::Mlp { rows: 4, inputs: 256, hidden: 512, outputs: 128 });

/// All cases of this module.
pub const RACES: [Case; 7] = [
    RACE_CONTIGUOUS,
    RACE_VIEWS,
    ATTENTION_PACKED,
    ATTENTION_CHUNKED,
    BLOCK_PACKED,
    BLOCK_CHUNKED,
    MLP,
];

const CHUNKED: Attention = Attention { projection: Projection::Chunked, ..ATTENTION };

const fn numbered(name: &'static str, program: Program) -> Case {
    Case { name, program, draws: Draws::Numbered }
}
