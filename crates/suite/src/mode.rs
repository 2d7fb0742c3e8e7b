//! [`Mode`]: how the tests are run, and how close results must come in it.

use std::fmt;

use crate::compare::Tolerance;

/// How the tests are run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// One thread; the device against the reference on the CPU, within 1e-4.
    #[default]
    Single,
    /// Threads call the device directly; golden is the same device run sequentially, within 1e-6.
    Parallel,
    /// Threads submit to a batch queue; golden is the same device run sequentially, within 1e-5.
    Batched,
}

impl Mode {
    /// How far results may lie from the golden ones in this mode.
    pub const fn tolerance(self) -> Tolerance {
        Tolerance::both(match self {
            Mode::Single => 1e-4,
            Mode::Parallel => 1e-6,
            Mode::Batched => 1e-5,
        })
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Mode::Single => "single",
            Mode::Parallel => "parallel",
            Mode::Batched => "batched",
        })
    }
}
