//! Who may act on the device (rule R10): every action names its thread, and when the device has an
//! owner, an action of any other thread is a [`Violation`].

use std::fmt;

use crate::thread_id::ThreadId;
use crate::trace::ActionKind;

/// What happens when a thread that does not own the device acts on it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OwnershipCheck {
    /// Nothing.
    #[default]
    Off,
    /// It is recorded, once per thread and operation.
    Record,
    /// The action fails with [`SimError::Affinity`](crate::SimError::Affinity).
    Assert,
}

/// An action of a thread that does not own the device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The thread that acted.
    pub thread: String,
    /// The owner.
    pub owner: String,
    /// What it did.
    pub kind: ActionKind,
    /// The operation, where there is one.
    pub operation: String,
    /// The simulated time step.
    pub step: u64,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "thread `{}` did {:?} `{}` on a device that `{}` owns (simulated; step {})",
            self.thread, self.kind, self.operation, self.owner, self.step
        )
    }
}

/// The owners and the violations up to now.
#[derive(Debug, Default)]
pub(crate) struct Ownership {
    pub(crate) check: OwnershipCheck,
    owners: Vec<(ThreadId, String)>,
    pub(crate) violations: Vec<Violation>,
}

impl Ownership {
    /// Makes a thread an owner; a device can have several.
    pub(crate) fn add_owner(&mut self, thread: ThreadId, name: &str) {
        if self.owners.iter().all(|(owner, _)| *owner != thread) {
            self.owners.push((thread, name.to_owned()));
        }
    }

    /// Checks one action; `Err` when it must not happen. Nothing is checked while there is no owner.
    pub(crate) fn check(
        &mut self,
        (thread, name): (ThreadId, &str),
        kind: ActionKind,
        operation: &str,
        step: u64,
    ) -> Result<(), Violation> {
        if self.check == OwnershipCheck::Off
            || self.owners.is_empty()
            || self.owners.iter().any(|(owner, _)| *owner == thread)
        {
            return Ok(());
        }
        let owners: Vec<&str> = self.owners.iter().map(|(_, name)| name.as_str()).collect();
        let violation = Violation {
            thread: name.to_owned(),
            owner: owners.join("`, `"),
            kind,
            operation: operation.to_owned(),
            step,
        };
        let known = self
            .violations
            .iter()
            .any(|v| v.thread == name && v.kind == kind && v.operation == operation);
        if !known {
            self.violations.push(violation.clone());
        }
        match self.check {
            OwnershipCheck::Assert => Err(violation),
            _ => Ok(()),
        }
    }
}
