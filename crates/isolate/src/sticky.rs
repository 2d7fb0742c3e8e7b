//! The one table of texts by which a device says that it will answer nothing but errors from now on,
//! whatever the process does: its context is poisoned, and only a new process has another.
//!
//! The texts are those of the runtimes themselves (`cudaGetErrorString`, `CUresult`, cuBLAS, cuDNN,
//! Metal), which PyTorch, cudarc and others put into theirs. A device that is out of memory is none
//! of this.

/// A text is sticky if it has all parts of one of these, in any case of letters.
const TABLE: &[&[&str]] = &[
    // CUDA's runtime, and HIP's, which has the same words.
    &["device-side assert"],
    &["illegal memory access was encountered"],
    &["unspecified launch failure"],
    &["illegal instruction was encountered"],
    &["cuda", "misaligned address"],
    &["cuda", "invalid program counter"],
    &["cuda", "operation not supported on global/shared address space"],
    &["cuda", "hardware stack error"],
    &["cuda", "launch timed out and was terminated"],
    &["cuda", "hardware error"],
    &["uncorrectable ecc error"],
    &["uncorrectable nvlink error"],
    // CUDA's driver, by the names of its codes.
    &["cuda_error_assert"],
    &["cuda_error_illegal_address"],
    &["cuda_error_launch_failed"],
    &["cuda_error_illegal_instruction"],
    &["cuda_error_misaligned_address"],
    &["cuda_error_invalid_address_space"],
    &["cuda_error_invalid_pc"],
    &["cuda_error_hardware_stack_error"],
    &["cuda_error_launch_timeout"],
    &["cuda_error_ecc_uncorrectable"],
    &["cuda_error_nvlink_uncorrectable"],
    // Libraries on it: what they launched has failed, and with it all that comes after.
    &["cublas_status_execution_failed"],
    &["cudnn_status_execution_failed"],
    &["cusolver_status_execution_failed"],
    // Metal's command buffers: after a fault or a hang the process's work is ignored.
    &["kiogpucommandbuffercallbackerrorsubmissionsignored"],
    &["ignored (for causing prior/excessive gpu errors)"],
    &["kiogpucommandbuffercallbackerrorpagefault"],
    &["caused gpu address fault error"],
    &["kiogpucommandbuffercallbackerrorhang"],
    &["caused gpu hang error"],
];

/// Whether the text of an error says that the device of this process is poisoned: it answers nothing
/// but errors until the process ends.
///
/// ```
/// use onelane_isolate::is_sticky;
///
/// assert!(is_sticky("CUDA error: device-side assert triggered"));
/// assert!(!is_sticky("CUDA out of memory. Tried to allocate 2.00 GiB"));
/// ```
pub fn is_sticky(text: &str) -> bool {
    let text = text.to_ascii_lowercase();
    TABLE.iter().any(|parts| parts.iter().all(|part| text.contains(part)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtimes_say_after_a_fault_is_sticky() {
        for text in [
            "CUDA error: device-side assert triggered\nCUDA kernel errors might be asynchronously",
            "CUDA error: an illegal memory access was encountered",
            "CUDA error: unspecified launch failure",
            "CUDA error: an illegal instruction was encountered",
            "CUDA error: misaligned address",
            "CUDA error: uncorrectable ECC error encountered",
            "HIP error: unspecified launch failure",
            "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal memory access was encountered\")",
            "CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasSgemm( handle, ...)`",
            "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED",
            "Command buffer exited with error status: Caused GPU Address Fault Error \
             (0000000b:kIOGPUCommandBufferCallbackErrorPageFault)",
            "Ignored (for causing prior/excessive GPU errors) \
             (00000004:kIOGPUCommandBufferCallbackErrorSubmissionsIgnored)",
            "Caused GPU Hang Error (00000003:kIOGPUCommandBufferCallbackErrorHang)",
        ] {
            assert!(is_sticky(text), "{text}");
        }
    }

    #[test]
    fn what_ends_with_its_request_is_not() {
        for text in [
            "CUDA out of memory. Tried to allocate 20.00 MiB",
            "CUDA error: out of memory",
            "CUDA error: invalid configuration argument",
            "CUDA error: no kernel image is available for execution on the device",
            "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
            "CUDA error: CUBLAS_STATUS_INVALID_VALUE when calling `cublasGemmEx`",
            "MPS backend out of memory (MPS allocated: 18.00 GiB)",
            "Insufficient Memory (00000008:kIOGPUCommandBufferCallbackErrorOutOfMemory)",
            "Discarded (victim of GPU error/recovery) \
             (00000005:kIOGPUCommandBufferCallbackErrorInnocentVictim)",
            "index 5 is out of bounds for dimension 0 with size 3",
            "a misaligned address book",
            "",
        ] {
            assert!(!is_sticky(text), "{text}");
        }
    }
}
