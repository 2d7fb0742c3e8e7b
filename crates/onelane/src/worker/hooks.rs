//! What a worker does around, and before, what it runs.

use crate::config::Around;
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
        let _ = catch_panic(|| {
            around(&mut || {
                if let Some(body) = body.take() {
                    body();
                }
            });
        });
        // One that does not call it must not leave requests without an answer.
        if let Some(body) = body {
            body();
        }
    }
}
