//! Errors of a device after which it answers nothing but errors until the process ends: *sticky*
//! ones. This is the one table of them, for engines in Rust and in Python.
//!
//! Drivers and frameworks report them in text, so that is what is read. A phrase of plain English
//! counts only where the text names the platform as well.

/// What names the platform in the texts of CUDA and ROCm.
const CUDA: [&str; 4] = ["CUDA", "cuda", "HIP", "hip"];

/// (What all of the fault's texts have in common, what has to be in the text besides, the fault.)
///
/// CUDA: the errors of which the documentation of `cudaError_t` says that the process must be ended
/// and started again, by the names of driver (`cudarc`) and runtime, and in the words of
/// `cudaGetErrorString` (PyTorch, Triton). Apple: from Metal's `MTLCommandBufferErrorDomain`.
const TABLE: [(&[&str], &[&str], &str); 13] = [
    (
        &["CUDA_ERROR_ASSERT", "cudaErrorAssert", "device-side assert"],
        &CUDA,
        "a device-side assert failed",
    ),
    (
        &["CUDA_ERROR_ILLEGAL_ADDRESS", "cudaErrorIllegalAddress", "illegal memory access"],
        &CUDA,
        "a kernel accessed memory that it may not",
    ),
    (
        &["CUDA_ERROR_LAUNCH_FAILED", "cudaErrorLaunchFailure", "unspecified launch failure"],
        &CUDA,
        "a kernel failed",
    ),
    (
        &[
            "CUDA_ERROR_LAUNCH_TIMEOUT",
            "cudaErrorLaunchTimeout",
            "the launch timed out and was terminated",
        ],
        &CUDA,
        "a kernel ran for too long",
    ),
    (
        &[
            "CUDA_ERROR_ILLEGAL_INSTRUCTION",
            "cudaErrorIllegalInstruction",
            "an illegal instruction was encountered",
        ],
        &CUDA,
        "a kernel met an illegal instruction",
    ),
    (
        &["CUDA_ERROR_MISALIGNED_ADDRESS", "cudaErrorMisalignedAddress", "misaligned address"],
        &CUDA,
        "a kernel used a misaligned address",
    ),
    (
        &[
            "CUDA_ERROR_INVALID_ADDRESS_SPACE",
            "cudaErrorInvalidAddressSpace",
            "operation not supported on global/shared address space",
        ],
        &CUDA,
        "a kernel used the wrong address space",
    ),
    (
        &["CUDA_ERROR_INVALID_PC", "cudaErrorInvalidPc", "invalid program counter"],
        &CUDA,
        "a kernel's program counter was invalid",
    ),
    (
        &["CUDA_ERROR_HARDWARE_STACK_ERROR", "cudaErrorHardwareStackError", "hardware stack error"],
        &CUDA,
        "a kernel's stack was corrupt",
    ),
    (
        &["CUDA_ERROR_ECC_UNCORRECTABLE", "cudaErrorECCUncorrectable", "uncorrectable ECC error"],
        &CUDA,
        "memory of the device is defective",
    ),
    (
        &["CUDA_ERROR_CONTAINED", "cudaErrorContained", "Invalid access of peer GPU memory"],
        &CUDA,
        "an error of the device was contained to this process",
    ),
    (
        &["CUDA_ERROR_CONTEXT_IS_DESTROYED", "cudaErrorContextIsDestroyed", "context is destroyed"],
        &CUDA,
        "the context of the device is gone",
    ),
    (
        &[
            "kIOGPUCommandBufferCallbackErrorSubmissionsIgnored",
            "for causing prior/excessive GPU errors",
        ],
        &[""],
        "the GPU ignores what this process submits",
    ),
];

/// Which sticky fault of a device an error's text tells of, in words; `None` if it is another
/// error, one that the next call may not meet.
///
/// ```
/// use onelane_isolate::sticky;
///
/// assert!(sticky("CUDA error: device-side assert triggered").is_some());
/// assert!(sticky("CUDA error: out of memory").is_none());
/// ```
pub fn sticky(text: &str) -> Option<&'static str> {
    let has = |parts: &[&str]| parts.iter().any(|part| text.contains(part));
    let found = TABLE.iter().find(|(phrases, platform, _)| has(phrases) && has(platform));
    found.map(|&(_, _, fault)| fault)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As PyTorch, Triton, cudarc under candle, and Metal say it.
    #[test]
    fn texts_of_frameworks_are_recognised() {
        for (text, words) in [
            ("CUDA error: device-side assert triggered\nCUDA kernel errors might be", "assert"),
            ("CUDA error: an illegal memory access was encountered", "accessed memory"),
            ("HIP error: an illegal memory access was encountered", "accessed memory"),
            ("Triton Error [CUDA]: misaligned address", "misaligned"),
            ("CUDA error: unspecified launch failure", "a kernel failed"),
            ("CUDA error: the launch timed out and was terminated", "too long"),
            ("DriverError(CUDA_ERROR_ASSERT, \"device-side assert triggered\")", "assert"),
            ("DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory\")", "accessed memory"),
            ("DriverError(CUDA_ERROR_LAUNCH_FAILED, \"unspecified\")", "a kernel failed"),
            ("CUDA error: uncorrectable ECC error encountered", "defective"),
            (
                "Ignored (for causing prior/excessive GPU errors) \
                 (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
                "ignores",
            ),
        ] {
            let found = sticky(text);
            assert!(found.is_some_and(|fault| fault.contains(words)), "{text}: {found:?}");
        }
    }

    #[test]
    fn errors_that_pass_are_not() {
        for text in [
            "CUDA error: out of memory",
            "CUDA out of memory. Tried to allocate 2.00 GiB",
            "CUDA error: invalid argument",
            "CUDA error: no kernel image is available for execution on the device",
            "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
            "DriverError(CUDA_ERROR_INVALID_VALUE, \"invalid argument\")",
            "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "Innocent Victim (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
            // Words that are not the device's.
            "misaligned address in line 3 of the upload",
            "the request asked for an illegal memory access",
            "",
        ] {
            assert_eq!(sticky(text), None, "{text}");
        }
    }

    #[test]
    fn no_row_of_the_table_hides_another() {
        for (phrases, platform, fault) in TABLE {
            for phrase in phrases {
                assert_eq!(sticky(&format!("{} {phrase}", platform[0])), Some(fault));
            }
        }
    }
}
