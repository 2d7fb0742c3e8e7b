//! [`DeviceName`]: the names of devices, read and written.
//!
//! Invariant: the same in every build. A device whose backend was left out still has its name.

use std::fmt;
use std::str::FromStr;

/// The name of a device: `cpu`, `metal[:n]` or `cuda[:n]`.
///
/// Displays in its canonical form, which is the name that device executors are shared by.
///
/// ```
/// use onelane_engines::DeviceName;
///
/// let device: DeviceName = "metal".parse()?;
/// assert_eq!(device, DeviceName::Metal(0));
/// assert_eq!(device.to_string(), "metal:0");
/// # Ok::<(), onelane_engines::DeviceNameError>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum DeviceName {
    /// The processor.
    #[default]
    Cpu,
    /// The Metal device of this number (feature `metal`, macOS).
    Metal(usize),
    /// The CUDA device of this number (feature `cuda`).
    Cuda(usize),
}

/// A text that names no device.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceNameError {
    /// The kind is unknown.
    #[error("unknown device {given:?}: use cpu, metal, metal:N, cuda or cuda:N")]
    Kind {
        /// The whole text.
        given: String,
    },
    /// What follows the colon is no number.
    #[error("device {given:?}: {number:?} is not a device number; use for example {kind}:0")]
    Number {
        /// The whole text.
        given: String,
        /// `metal` or `cuda`.
        kind: &'static str,
        /// What follows the colon.
        number: String,
    },
    /// The processor has no number.
    #[error("device {given:?}: there is one cpu; use cpu")]
    CpuNumber {
        /// The whole text.
        given: String,
    },
}

impl fmt::Display for DeviceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Cpu => f.write_str("cpu"),
            Self::Metal(n) => write!(f, "metal:{n}"),
            Self::Cuda(n) => write!(f, "cuda:{n}"),
        }
    }
}

impl FromStr for DeviceName {
    type Err = DeviceNameError;

    fn from_str(given: &str) -> Result<Self, Self::Err> {
        let (kind, number) = match given.split_once(':') {
            Some((kind, number)) => (kind, Some(number)),
            None => (given, None),
        };
        let parse = |kind: &'static str| {
            match number {
                None => Ok(0),
                // Digits only: usize would take "+1" too.
                Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => {
                    number.parse().map_err(|_| number)
                }
                Some(number) => Err(number),
            }
            .map_err(|number: &str| DeviceNameError::Number {
                given: given.to_owned(),
                kind,
                number: number.to_owned(),
            })
        };
        match kind.to_ascii_lowercase().as_str() {
            "cpu" if number.is_some() => {
                Err(DeviceNameError::CpuNumber { given: given.to_owned() })
            }
            "cpu" => Ok(Self::Cpu),
            "metal" => parse("metal").map(Self::Metal),
            "cuda" => parse("cuda").map(Self::Cuda),
            _ => Err(DeviceNameError::Kind { given: given.to_owned() }),
        }
    }
}
