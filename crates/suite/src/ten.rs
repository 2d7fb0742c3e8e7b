//! The ten tests of the suite, with their shapes.

use crate::case::{Case, Draws};
use crate::layers::{Attention, Projection};
use crate::program::Program;

/// The attention of the TransformerBlock test and of the race cases: 4 sequences of 128 tokens,
/// width 256, 4 heads.
pub(crate) const ATTENTION: Attention =
    Attention { batch: 4, length: 128, width: 256, heads: 4, projection: Projection::Packed };

/// The ten tests in the order of the report.
pub const TEN: [Case; 10] = [
    rotated("Linear", Program::Linear { rows: 16, inputs: 512, outputs: 256 }),
    rotated("LinearLarge", Program::Linear { rows: 64, inputs: 2048, outputs: 2048 }),
    rotated("Matmul", Program::Matmul { rows: 256, inner: 512, columns: 256 }),
    rotated("MatmulLarge", Program::Matmul { rows: 1024, inner: 1024, columns: 1024 }),
    rotated("BMM", Program::Bmm { batch: 8, rows: 64, inner: 64, columns: 64 }),
    rotated("LayerNorm", Program::LayerNorm { shape: [16, 512, 768] }),
    rotated("Softmax", Program::Softmax { shape: [4, 128, 32000] }),
    rotated(
        "Conv2d",
        Program::Conv2d { shape: [4, 3, 224, 224], filters: 64, kernel: 3, padding: 1 },
    ),
    rotated("GELU", Program::Gelu { shape: [16, 512, 768] }),
    rotated(
        "TransformerBlock",
        Program::TransformerBlock { attention: ATTENTION, feed_forward: 1024 },
    ),
];

const fn rotated(name: &'static str, program: Program) -> Case {
    Case { name, program, draws: Draws::Rotated }
}

/// The test of this name; upper and lower case are the same.
pub fn test_named(name: &str) -> Option<Case> {
    TEN.into_iter().find(|case| case.name.eq_ignore_ascii_case(name))
}
