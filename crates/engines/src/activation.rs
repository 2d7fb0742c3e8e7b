//! The non-linearity between the two products of a block.

/// The non-linearity between the two products of a feed-forward block.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// The exact GELU, by the error function (`gelu`).
    GeluErf,
    /// Its tanh approximation, which is another function (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    /// `max(0, x)`.
    Relu,
}

impl Activation {
    /// The names that there are, for errors.
    pub(crate) const KNOWN: &str = "gelu, gelu_new, gelu_pytorch_tanh, relu";

    /// By its name in `config.json`.
    pub(crate) fn named(name: &str) -> Option<Self> {
        Some(match name {
            "gelu" | "gelu_python" => Self::GeluErf,
            "gelu_new" | "gelu_pytorch_tanh" => Self::GeluTanh,
            "relu" => Self::Relu,
            _ => return None,
        })
    }
}
