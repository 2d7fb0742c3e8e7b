//! The memory of a child, as the operating system counts it.

#[cfg(target_os = "linux")]
pub(crate) use linux::Footprint;
#[cfg(not(target_os = "linux"))]
pub(crate) use other::Footprint;

#[cfg(target_os = "linux")]
mod linux {
    use std::fs::File;
    use std::os::unix::fs::FileExt as _;

    /// Resident memory that is not shared: the arena, libraries and files do not count. Read from
    /// `statm` of the process, which the kernel keeps counted: some microseconds, where
    /// `smaps_rollup` walks all pages.
    pub(crate) struct Footprint {
        statm: Option<File>,
        page: u64,
    }

    impl Footprint {
        /// The file stays open: it is the child's, also when its number has gone to another.
        pub(crate) fn of(pid: u32) -> Self {
            let statm = File::open(format!("/proc/{pid}/statm")).ok();
            Self { statm, page: rustix::param::page_size() as u64 }
        }

        pub(crate) fn bytes(&self) -> Option<u64> {
            let mut text = [0; 128];
            let length = self.statm.as_ref()?.read_at(&mut text, 0).ok()?;
            let text = str::from_utf8(&text[..length]).ok()?;
            let mut fields = text.split(' ').skip(1).map(|field| field.parse::<u64>().ok());
            let (resident, shared) = (fields.next()??, fields.next()??);
            Some(resident.saturating_sub(shared) * self.page)
        }
    }

    #[cfg(test)]
    mod tests {
        use super::*;

        #[test]
        fn memory_that_is_touched_counts() {
            let footprint = Footprint::of(std::process::id());
            let before = footprint.bytes().unwrap();
            let block = std::hint::black_box(vec![1_u8; 64 << 20]);
            let after = footprint.bytes().unwrap();
            assert!(after > before + (48 << 20), "{before} {after}");
            drop(block);
        }
    }
}

#[cfg(not(target_os = "linux"))]
mod other {
    /// `phys_footprint` on Apple's systems: also what is compressed, swapped or held by the GPU.
    pub(crate) struct Footprint {
        #[cfg_attr(not(target_vendor = "apple"), expect(dead_code, reason = "nothing to ask"))]
        pid: u32,
    }

    impl Footprint {
        pub(crate) fn of(pid: u32) -> Self {
            Self { pid }
        }

        #[cfg(target_vendor = "apple")]
        pub(crate) fn bytes(&self) -> Option<u64> {
            let pid = libc::c_int::try_from(self.pid).ok()?;
            // SAFETY: all fields of the structure are numbers, for which zero is valid.
            let mut usage: libc::rusage_info_v2 = unsafe { std::mem::zeroed() };
            let buffer = (&raw mut usage).cast::<libc::rusage_info_t>();
            // SAFETY: the call writes a `rusage_info_v2`, which the flavour asks for, to the
            // buffer, which is one and lives until the call has returned.
            let failed = unsafe { libc::proc_pid_rusage(pid, libc::RUSAGE_INFO_V2, buffer) };
            (failed == 0).then_some(usage.ri_phys_footprint)
        }

        #[cfg(not(target_vendor = "apple"))]
        pub(crate) fn bytes(&self) -> Option<u64> {
            None
        }
    }
}
