//! Running a user's code so that a panic in it stays a value.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `body`; a panic becomes its message.
///
/// `AssertUnwindSafe` holds because whoever calls this drops what `body` had borrowed mutably (an
/// engine is rebuilt after a panic) or does not look at it again.
pub(crate) fn catch_panic<R>(body: impl FnOnce() -> R) -> Result<R, String> {
    catch_unwind(AssertUnwindSafe(body)).map_err(message)
}

fn message(payload: Box<dyn Any + Send>) -> String {
    let literal = payload.downcast_ref::<&str>().map(ToString::to_string);
    let text = literal.or_else(|| payload.downcast_ref::<String>().cloned());
    // The payload's own drop may panic too; what that throws is leaked, not looked at.
    if let Err(second) = catch_unwind(AssertUnwindSafe(move || drop(payload))) {
        std::mem::forget(second);
    }
    text.unwrap_or_else(|| "a panic without a message".to_owned())
}
