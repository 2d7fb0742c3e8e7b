//! How the tokens of a pass lie: one after the other, or in rows of equal length.

use candle_core::Tensor;

use crate::cpu::Sequence;

/// How the tokens of a pass lie.
pub(crate) enum Layout {
    /// Real tokens only, on the CPU.
    Ragged(Vec<Sequence>),
    /// Rows of equal length, on any device.
    Padded {
        /// (rows, 1, 1, length): 0 for a real token, a large negative number for padding.
        mask: Tensor,
        /// (length): the positions of the first row's tokens, as floats. They lie one step apart.
        positions: Tensor,
    },
}
