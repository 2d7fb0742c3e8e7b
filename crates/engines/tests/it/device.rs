//! Device names and the list of devices.

use onelane_engines::{DeviceError, DeviceName, DeviceNameError, devices};

#[test]
fn names_are_read_and_written_in_one_form() {
    for (given, device, canonical) in [
        ("cpu", DeviceName::Cpu, "cpu"),
        ("CPU", DeviceName::Cpu, "cpu"),
        ("metal", DeviceName::Metal(0), "metal:0"),
        ("metal:0", DeviceName::Metal(0), "metal:0"),
        ("metal:007", DeviceName::Metal(7), "metal:7"),
        ("Cuda:12", DeviceName::Cuda(12), "cuda:12"),
        ("cuda", DeviceName::Cuda(0), "cuda:0"),
    ] {
        assert_eq!(given.parse(), Ok(device), "{given}");
        assert_eq!(device.to_string(), canonical);
        assert_eq!(canonical.parse(), Ok(device));
    }
}

#[test]
fn other_texts_are_refused_with_what_was_wrong_and_what_is_right() {
    let refused = |given: &str| given.parse::<DeviceName>().unwrap_err();
    for given in ["", "gpu", "mps", "cpu0", "metal0", " cpu", "gpu:0", "metall:0"] {
        let error = refused(given);
        assert!(matches!(error, DeviceNameError::Kind { .. }), "{given}");
        let text = error.to_string();
        assert!(text.contains(&format!("{given:?}")) && text.contains("cuda:N"), "{text}");
    }
    for given in [
        "metal:",
        "metal:x",
        "cuda:-1",
        "cuda:+1",
        "cuda: 1",
        "cuda:0:1",
        "cuda:1.0",
        "metal:99999999999999999999999",
    ] {
        let error = refused(given);
        assert!(matches!(error, DeviceNameError::Number { .. }), "{given}");
        assert!(error.to_string().contains(given), "{error}");
    }
    for given in ["cpu:0", "cpu:"] {
        assert!(matches!(refused(given), DeviceNameError::CpuNumber { .. }), "{given}");
    }
}

#[test]
fn the_cpu_opens_and_is_listed_first() {
    assert!(DeviceName::Cpu.open().unwrap().is_cpu());
    let list = devices();
    assert_eq!((list[0].name.as_str(), list[0].usable), ("cpu", true));
    for kind in ["metal", "cuda"] {
        assert!(list.iter().any(|device| device.name.starts_with(kind)), "{kind} is not listed");
    }
}

#[test]
fn what_is_listed_as_usable_opens_and_the_rest_says_why() {
    for device in devices() {
        let opened = device.name.parse::<DeviceName>().unwrap().open();
        assert_eq!(opened.is_ok(), device.usable, "{}: {}", device.name, device.detail);
        assert!(!device.detail.is_empty());
    }
}

#[cfg(not(feature = "metal"))]
#[test]
fn a_build_without_metal_says_so() {
    let error = DeviceName::Metal(0).open().unwrap_err();
    assert!(matches!(error, DeviceError::NotBuilt { .. }));
    let text = "metal:0: this build lacks Metal support; rebuild with `--features metal`";
    assert_eq!(error.to_string(), text);
}

#[cfg(not(feature = "cuda"))]
#[test]
fn a_build_without_cuda_says_so() {
    let error = DeviceName::Cuda(1).open().unwrap_err();
    assert!(matches!(error, DeviceError::NotBuilt { .. }));
    let text = "cuda:1: this build lacks CUDA support; rebuild with `--features cuda`";
    assert_eq!(error.to_string(), text);
}

#[cfg(any(feature = "metal", feature = "cuda"))]
#[test]
fn a_number_out_of_range_is_an_error() {
    #[cfg(feature = "metal")]
    assert!(DeviceName::Metal(1000).open().is_err());
    #[cfg(feature = "cuda")]
    assert!(DeviceName::Cuda(1000).open().is_err());
}
