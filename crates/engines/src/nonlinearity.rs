//! What follows a projection.

/// The non-linearity after a projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Nonlinearity {
    Identity,
    Tanh,
    Relu,
}
