//! Opening a device by its name.
//!
//! The same in every build: a device whose backend was left out is a clear error, never a missing
//! name.

use candle_core::Device;

use crate::device_name::DeviceName;

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
