//! What became of every request, as its client sees it.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::census::Census;

/// Faults that are kept in words.
const KEPT: usize = 20;

#[derive(Default)]
pub(super) struct Tally {
    pub(super) offered: AtomicU64,
    pub(super) completed: AtomicU64,
    /// Answered with the loss of a child, by its own doing.
    pub(super) lost: AtomicU64,
    /// Answered with an engine's error or panic.
    pub(super) failed: AtomicU64,
    pub(super) cancelled: AtomicU64,
    pub(super) expired: AtomicU64,
    pub(super) closed: AtomicU64,
    pub(super) refused: AtomicU64,
    fault_count: AtomicU64,
    faults: Mutex<Vec<String>>,
}

impl Tally {
    pub(super) fn fault(&self, text: String) {
        self.fault_count.fetch_add(1, Relaxed);
        if let Ok(mut faults) = self.faults.lock()
            && faults.len() < KEPT
        {
            faults.push(text);
        }
    }

    /// Prints it; whether all is well.
    pub(super) fn report(&self, before: &Census) -> bool {
        let rows = [
            ("completed", &self.completed),
            ("lost, at fault", &self.lost),
            ("failed, at fault", &self.failed),
            ("cancelled", &self.cancelled),
            ("expired", &self.expired),
            ("closed", &self.closed),
            ("refused", &self.refused),
        ];
        let offered = self.offered.load(Relaxed);
        println!("{:>16} {offered:>12}", "offered");
        for (name, count) in rows {
            println!("{name:>16} {:>12}", count.load(Relaxed));
        }
        let accounted: u64 = rows.iter().map(|(_, count)| count.load(Relaxed)).sum();
        if accounted != offered {
            self.fault(format!("{offered} were offered, {accounted} came to an end"));
        }
        println!("this process: {before} before, {} after", Census::take());
        if let Ok(faults) = self.faults.lock() {
            faults.iter().for_each(|fault| println!("FAULT: {fault}"));
        }
        let faults = self.fault_count.load(Relaxed);
        println!("{}", if faults == 0 { "all accounted for" } else { "FAILED" });
        faults == 0
    }
}
