//! What this process has, and what is in the places where shared memory and temporary files would
//! lie.

use std::collections::BTreeSet;
use std::fmt;
use std::time::{Duration, Instant};

use crate::chaos::resident::resident_bytes;

/// How much more memory is no leak: the allocator keeps what it had.
const MORE_BYTES: usize = 48 << 20;
/// How long threads that have been told to end may take.
const SETTLES_IN: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(super) struct Census {
    descriptors: usize,
    threads: usize,
    children: BTreeSet<String>,
    bytes: usize,
    names: BTreeSet<String>,
}

impl Census {
    pub(super) fn take() -> Self {
        let children = list("/proc/self/task").into_iter().flat_map(|thread| {
            let path = format!("/proc/self/task/{thread}/children");
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
        });
        // Other programs' names come and go; ours would say so.
        let temporary = std::env::temp_dir();
        let names = [list("/dev/shm"), list(&temporary.to_string_lossy())].into_iter().flatten();
        Self {
            descriptors: list("/proc/self/fd").len(),
            threads: list("/proc/self/task").len(),
            children: children.collect(),
            bytes: resident_bytes(),
            names: names.filter(|name| name.to_lowercase().contains("onelane")).collect(),
        }
    }

    /// As it is when the threads that have been told to end have ended.
    pub(super) fn settled(before: &Self) -> Self {
        let since = Instant::now();
        loop {
            let now = Self::take();
            if before.compare(&now).is_empty() || since.elapsed() > SETTLES_IN {
                return now;
            }
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// What there is more of now, in words. The watchdog's thread is new.
    pub(super) fn compare(&self, now: &Self) -> Vec<String> {
        let mut faults = Vec::new();
        if now.descriptors > self.descriptors {
            faults.push(format!("{} descriptors, {} before", now.descriptors, self.descriptors));
        }
        if now.threads > self.threads + 1 {
            faults.push(format!("{} threads, {} before", now.threads, self.threads));
        }
        let children: Vec<_> = now.children.difference(&self.children).collect();
        if !children.is_empty() {
            faults.push(format!("children that are left: {children:?}"));
        }
        let names: Vec<_> = now.names.difference(&self.names).collect();
        if !names.is_empty() {
            faults.push(format!("names that are left: {names:?}"));
        }
        if now.bytes > self.bytes + MORE_BYTES {
            faults.push(format!("{} bytes of memory, {} before", now.bytes, self.bytes));
        }
        faults
    }
}

impl fmt::Display for Census {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} descriptors, {} threads, {} children, {:.1} MiB",
            self.descriptors,
            self.threads,
            self.children.len(),
            self.bytes as f64 / f64::from(1 << 20)
        )
    }
}

fn list(directory: &str) -> BTreeSet<String> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}
