//! The edge of the library: nothing unwinds over it.

use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::error::{Failure, failure, remember};
use crate::status::{ONELANE_INTERNAL, ONELANE_OK, Status};

/// Runs the body of a function of the ABI. A failure is kept for the thread; a panic is one, too.
///
/// `AssertUnwindSafe` holds because every body looks its handles up anew.
pub(crate) fn contain(body: impl FnOnce() -> Result<(), Failure>) -> Status {
    match catch_unwind(AssertUnwindSafe(|| body().map_err(remember))) {
        Ok(Ok(())) => ONELANE_OK,
        Ok(Err(status)) => status,
        Err(panic) => {
            let text = match panic.downcast_ref::<&str>() {
                Some(text) => (*text).to_owned(),
                None => panic.downcast_ref::<String>().cloned().unwrap_or_default(),
            };
            // A payload whose drop panics is leaked.
            std::mem::forget(panic);
            remember(failure(
                ONELANE_INTERNAL,
                format!("a bug in onelane, please report it: {text}"),
            ))
        }
    }
}

/// Runs what has no status to give; a panic is swallowed, since the panic hook has told it.
pub(crate) fn contain_quietly(body: impl FnOnce()) {
    if let Err(panic) = catch_unwind(AssertUnwindSafe(body)) {
        std::mem::forget(panic);
    }
}
