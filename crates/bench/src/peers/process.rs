//! What the kernel knows about this process.

use std::fs;

/// Processor time of all threads so far, user and system; 0 where there is no `/proc`. In steps of
/// 10 ms.
pub fn cpu_seconds() -> f64 {
    let text = fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in brackets and may hold anything; 14 and 15 are ticks of 10 ms.
    let fields: Vec<&str> =
        text.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |at: usize| fields.get(at).and_then(|t| t.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

/// How often threads other than the calling one have gone to sleep so far: each time, something
/// woke them or will. `None` where there is no `/proc`.
pub fn voluntary_switches() -> Option<u64> {
    let own = fs::read_link("/proc/thread-self").ok()?;
    let mut sum = 0;
    for task in fs::read_dir("/proc/self/task").ok()?.flatten() {
        if Some(task.file_name().as_os_str()) == own.file_name() {
            continue;
        }
        // A thread may end while we read.
        let status = fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:"));
        sum += line.and_then(|count| count.trim().parse::<u64>().ok()).unwrap_or(0);
    }
    Some(sum)
}
