//! What a worker does around, and before, what it runs.

use crate::Around;
use crate::sync::catch_panic;

/// What a worker was told to do besides.
#[derive(Clone, Copy)]
pub(crate) struct Hooks {
    /// Around all that may be others' code.
    pub(crate) around: Option<Around>,
    /// After a sleep.
    pub(crate) on_wake: Option<fn()>,
}

impl Hooks {
    pub(crate) fn around(self, body: impl FnOnce()) {
        let Some(around) = self.around else { return body() };
        let mut body = Some(body);
        let mut once = || {
            if let Some(body) = body.take() {
                body();
            }
        };
        let _ = catch_panic(|| around(&mut once));
        // One that does not call it must not leave requests without an answer.
        once();
    }
}
