//! Whether the kernel has killed a process for want of memory, which is told apart from other kills
//! only by a count of the whole machine.

/// How many processes the kernel has killed for want of memory; `None` if it does not say.
#[cfg(target_os = "linux")]
pub(crate) fn kills() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/vmstat").ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
    line.trim().parse().ok()
}

#[cfg(not(target_os = "linux"))]
pub(crate) fn kills() -> Option<u64> {
    None
}

/// Whether it has killed one since. It may have been another than ours, at about the same time:
/// then a batch is split for nothing.
pub(crate) fn has_killed_since(before: Option<u64>) -> bool {
    before.zip(kills()).is_some_and(|(before, now)| now > before)
}
