//! Names of devices, and opening them.
//!
//! The same in every build: a device whose backend was left out is a clear error, never a missing
//! name.

use std::fmt;
use std::str::FromStr;

use candle_core::Device;

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

/// Why a device could not be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DeviceError {
    /// The backend was left out of this build.
    #[error("{device}: this build lacks {backend} support; rebuild with `--features {feature}`")]
    NotBuilt {
        /// The device.
        device: DeviceName,
        /// `Metal` or `CUDA`.
        backend: &'static str,
        /// The cargo feature that adds it.
        feature: &'static str,
    },
    /// The machine has no device of this number.
    #[error("{device}: this machine has {}; see `onelane devices`", count(*.found))]
    NoSuchDevice {
        /// The device.
        device: DeviceName,
        /// How many devices of its kind there are.
        found: usize,
    },
    /// The driver refused.
    #[error("{device} cannot be opened: {source}")]
    Driver {
        /// The device.
        device: DeviceName,
        /// What the driver said.
        source: Box<candle_core::Error>,
    },
}

fn count(found: usize) -> String {
    match found {
        0 => "no such device".to_owned(),
        1 => "one of its kind, number 0".to_owned(),
        n => format!("{n} of its kind, numbers 0 to {}", n - 1),
    }
}

impl DeviceName {
    /// Opens the device. Do this on the worker that is to own it.
    ///
    /// # Errors
    /// [`DeviceError`]: the backend is not in this build, there is no device of this number, or the
    /// driver refuses.
    pub fn open(self) -> Result<Device, DeviceError> {
        match self {
            Self::Cpu => Ok(Device::Cpu),
            Self::Metal(n) => open_metal(self, n),
            Self::Cuda(n) => open_cuda(self, n),
        }
    }

    /// Opens the device for one engine, which keeps it to itself.
    pub(crate) fn open_for_engine(self) -> Result<Device, DeviceError> {
        let device = self.open()?;
        #[cfg(feature = "cuda")]
        crate::cuda::keep_to_one_stream(&device);
        Ok(device)
    }
}

#[cfg(feature = "metal")]
fn open_metal(device: DeviceName, n: usize) -> Result<Device, DeviceError> {
    // candle panics on a number out of range.
    let found = crate::inventory::metal_names().len();
    if n >= found {
        return Err(DeviceError::NoSuchDevice { device, found });
    }
    Device::new_metal(n).map_err(|source| DeviceError::Driver { device, source: Box::new(source) })
}

#[cfg(not(feature = "metal"))]
fn open_metal(device: DeviceName, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, backend: "Metal", feature: "metal" })
}

#[cfg(feature = "cuda")]
fn open_cuda(device: DeviceName, n: usize) -> Result<Device, DeviceError> {
    let driver = |source| DeviceError::Driver { device, source: Box::new(source) };
    let found = crate::inventory::cuda_names().map_err(driver)?.len();
    if n >= found {
        return Err(DeviceError::NoSuchDevice { device, found });
    }
    Device::new_cuda(n).map_err(driver)
}

#[cfg(not(feature = "cuda"))]
fn open_cuda(device: DeviceName, _: usize) -> Result<Device, DeviceError> {
    Err(DeviceError::NotBuilt { device, backend: "CUDA", feature: "cuda" })
}
