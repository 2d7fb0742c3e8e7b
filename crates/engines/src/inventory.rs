//! What this build and this machine can use: the rows of `onelane devices`.

use serde::Serialize;

use crate::device_name::DeviceName;

/// One device, or one backend without a device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct DeviceInfo {
    /// The name to give to `--device`; without a number when there is no such device.
    pub name: String,
    /// Whether it can be used now.
    pub usable: bool,
    /// What it is, or why it cannot be used and what to do.
    pub detail: String,
}

/// Lists the CPU, then each Metal and CUDA device, or why there is none.
///
/// # Blocking
/// Asks the drivers, which may take a second the first time. Nothing is allocated on a device.
pub fn devices() -> Vec<DeviceInfo> {
    let mut list = vec![cpu()];
    list.extend(metal());
    list.extend(cuda());
    list
}

fn cpu() -> DeviceInfo {
    let threads = rayon::current_num_threads();
    let plural = if threads == 1 { "" } else { "s" };
    DeviceInfo {
        name: DeviceName::Cpu.to_string(),
        usable: true,
        detail: format!("{threads} compute thread{plural}, {}", instruction_set()),
    }
}

/// The instruction set that the CPU kernels were dispatched to.
fn instruction_set() -> &'static str {
    struct Name;
    impl pulp::WithSimd for Name {
        type Output = &'static str;
        fn with_simd<S: pulp::Simd>(self, _: S) -> &'static str {
            match S::F32_LANES {
                16 => "AVX-512",
                8 => "AVX2 and FMA",
                4 => "128-bit SIMD",
                _ => "no SIMD",
            }
        }
    }
    pulp::Arch::new().dispatch(Name)
}

#[cfg_attr(any(feature = "metal", feature = "cuda"), allow(dead_code))]
fn absent(kind: &str, detail: String) -> Vec<DeviceInfo> {
    vec![DeviceInfo { name: kind.to_owned(), usable: false, detail }]
}

#[cfg(any(feature = "metal", feature = "cuda"))]
fn listed(names: Vec<String>, device: impl Fn(usize) -> DeviceName) -> Vec<DeviceInfo> {
    let rows = names.into_iter().enumerate();
    rows.map(|(n, detail)| DeviceInfo { name: device(n).to_string(), usable: true, detail })
        .collect()
}

#[cfg(feature = "metal")]
fn metal() -> Vec<DeviceInfo> {
    let names = metal_names();
    if names.is_empty() {
        return absent("metal", "this machine has no Metal device".to_owned());
    }
    listed(names, DeviceName::Metal)
}

#[cfg(not(feature = "metal"))]
fn metal() -> Vec<DeviceInfo> {
    let detail = if cfg!(target_os = "macos") {
        "this build lacks Metal support; rebuild with `--features metal`"
    } else {
        "this build lacks Metal support; Metal exists on macOS only"
    };
    absent("metal", detail.to_owned())
}

#[cfg(feature = "cuda")]
fn cuda() -> Vec<DeviceInfo> {
    match cuda_names() {
        Ok(names) if names.is_empty() => {
            absent("cuda", "this machine has no CUDA device".to_owned())
        }
        Ok(names) => listed(names, DeviceName::Cuda),
        Err(error) => absent("cuda", format!("the CUDA driver refuses: {error}")),
    }
}

#[cfg(not(feature = "cuda"))]
fn cuda() -> Vec<DeviceInfo> {
    let detail = if cfg!(target_os = "macos") {
        "this build lacks CUDA support; CUDA does not exist on macOS"
    } else {
        "this build lacks CUDA support; rebuild with `--features cuda`"
    };
    absent("cuda", detail.to_owned())
}

/// The Metal devices in candle's order.
#[cfg(feature = "metal")]
pub(crate) fn metal_names() -> Vec<String> {
    use objc2_metal::MTLDevice;
    let devices = objc2_metal::MTLCopyAllDevices();
    devices.iter().map(|device| device.name().to_string()).collect()
}

/// The CUDA devices in the driver's order.
#[cfg(feature = "cuda")]
pub(crate) fn cuda_names() -> candle_core::Result<Vec<String>> {
    use candle_core::cuda_backend::WrapErr;
    use candle_core::cuda_backend::cudarc::driver::result;
    result::init().w()?;
    let count = result::device::get_count().w()?;
    (0..count).map(|n| result::device::get(n).and_then(result::device::get_name).w()).collect()
}
