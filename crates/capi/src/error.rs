//! Errors on their way between C and the core: what a callback reports, and what a call says to its
//! thread.

use std::borrow::Cow;
use std::cell::RefCell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::fmt;
use std::sync::Arc;

use onelane::{BuildError, EngineError, Refusal, RequestError, ShutdownError, Source};

use crate::status::*;

/// What is dropped when nobody needs a payload any more.
pub(crate) type DropPayload = Option<unsafe extern "C" fn(payload: *mut c_void)>;

/// Where a callback leaves the text and the payload of its error, with onelane_error_set. It is there
/// for the time of the callback.
#[derive(Default)]
pub struct ErrorSlot {
    left: Option<Reported>,
}

/// An error that a callback reported: a text, and a payload that only its language understands.
struct Reported {
    message: String,
    payload: *mut c_void,
    drop_payload: DropPayload,
}

// SAFETY: onelane.h asks for a payload that any thread may read and the last one drop.
unsafe impl Send for Reported {}
// SAFETY: as above.
unsafe impl Sync for Reported {}

impl Drop for Reported {
    fn drop(&mut self) {
        if let (Some(drop_payload), false) = (self.drop_payload, self.payload.is_null()) {
            // SAFETY: both came together in one call of onelane_error_set, and this is the one drop.
            unsafe { drop_payload(self.payload) };
        }
    }
}

impl fmt::Debug for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Reported({:?})", self.message)
    }
}

impl fmt::Display for Reported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Reported {}

impl ErrorSlot {
    /// # Safety
    /// `message` is NULL or a C string; `payload` and `drop_payload` belong together.
    pub(crate) unsafe fn set(
        &mut self,
        message: *const c_char,
        payload: *mut c_void,
        drop_payload: DropPayload,
    ) {
        let message = if message.is_null() {
            String::new()
        } else {
            // SAFETY: it is not NULL, so it is a C string.
            unsafe { CStr::from_ptr(message) }.to_string_lossy().into_owned()
        };
        self.left = Some(Reported { message, payload, drop_payload });
    }

    /// The callback has returned this status, which is not ONELANE_OK.
    pub(crate) fn into_error(self, status: Status) -> EngineError {
        let reported = self.left.unwrap_or_else(|| {
            let message = format!("the callback returned status {status}");
            Reported { message, payload: std::ptr::null_mut(), drop_payload: None }
        });
        match status {
            ONELANE_OUT_OF_MEMORY => EngineError::out_of_memory(reported),
            ONELANE_ENGINE_LOST => EngineError::lost(reported),
            _ => EngineError::failed(reported),
        }
    }
}

/// Why a call, or a request, did not come to what was asked for.
pub(crate) struct Failure {
    pub(crate) status: Status,
    message: Cow<'static, str>,
    source: Option<Source>,
}

pub(crate) fn failure(status: Status, message: impl Into<Cow<'static, str>>) -> Failure {
    Failure { status, message: message.into(), source: None }
}

impl Failure {
    fn engine(status: Status, message: String, error: &EngineError) -> Self {
        Self { status, message: message.into(), source: Some(Arc::clone(error.cause())) }
    }

    pub(crate) fn message(&self) -> CString {
        // A zero byte ends a text in C.
        let text = self.message.split('\0').next().unwrap_or_default();
        CString::new(text).expect("what has a zero byte was cut off")
    }

    pub(crate) fn payload(&self) -> *mut c_void {
        payload(self.source.as_ref())
    }
}

fn payload(source: Option<&Source>) -> *mut c_void {
    let reported = source.and_then(|source| source.downcast_ref::<Reported>());
    reported.map_or(std::ptr::null_mut(), |reported| reported.payload)
}

impl From<&Refusal> for Failure {
    fn from(refusal: &Refusal) -> Self {
        let status = match refusal {
            Refusal::Full => ONELANE_FULL,
            Refusal::Closed => ONELANE_CLOSED,
            Refusal::RequestTooLarge { .. } => ONELANE_TOO_LARGE,
            Refusal::Failed(_) => ONELANE_QUEUE_FAILED,
            Refusal::WouldDeadlock => ONELANE_WOULD_DEADLOCK,
            _ => ONELANE_INTERNAL,
        };
        failure(status, refusal.to_string())
    }
}

impl From<RequestError> for Failure {
    fn from(error: RequestError) -> Self {
        let text = error.to_string();
        let status = match &error {
            RequestError::Engine(engine) => {
                let status = match engine {
                    EngineError::OutOfMemory(_) => ONELANE_OUT_OF_MEMORY,
                    EngineError::Lost(_) => ONELANE_ENGINE_LOST,
                    _ => ONELANE_ENGINE_FAILED,
                };
                // The callback's own words: the payload says the rest.
                return Self::engine(status, engine.cause().to_string(), engine);
            }
            RequestError::Rebuild(engine) => {
                return Self::engine(ONELANE_REBUILD_FAILED, text, engine);
            }
            RequestError::QueueFailed(_) => ONELANE_QUEUE_FAILED,
            RequestError::DeadlineExceeded => ONELANE_DEADLINE_EXCEEDED,
            RequestError::Cancelled => ONELANE_CANCELLED,
            RequestError::Closed => ONELANE_CLOSED,
            RequestError::WouldDeadlock => ONELANE_WOULD_DEADLOCK,
            _ => ONELANE_INTERNAL,
        };
        failure(status, text)
    }
}

impl From<BuildError> for Failure {
    fn from(error: BuildError) -> Self {
        let text = error.to_string();
        let status = match &error {
            BuildError::Config(_) => ONELANE_INVALID_CONFIG,
            BuildError::Engine(engine) => {
                return Self::engine(ONELANE_ENGINE_FAILED, engine.cause().to_string(), engine);
            }
            BuildError::Closed(_) => ONELANE_CLOSED,
            BuildError::WouldDeadlock(_) => ONELANE_WOULD_DEADLOCK,
            BuildError::Thread(_) => ONELANE_NO_THREAD,
            _ => ONELANE_INTERNAL,
        };
        failure(status, text)
    }
}

impl From<ShutdownError> for Failure {
    fn from(error: ShutdownError) -> Self {
        let status = match error {
            ShutdownError::Timeout(_) => ONELANE_TIMEOUT,
            ShutdownError::WouldDeadlock => ONELANE_WOULD_DEADLOCK,
            _ => ONELANE_INTERNAL,
        };
        failure(status, error.to_string())
    }
}

thread_local! {
    static LAST: RefCell<(CString, Option<Source>)> = RefCell::new((CString::default(), None));
}

/// Keeps a failure for onelane_last_error and onelane_last_payload.
pub(crate) fn remember(failure: Failure) -> Status {
    let text = failure.message();
    let Failure { status, source, .. } = failure;
    // Another thread-local's destructor may call in when this one is gone: then nobody asks.
    // What was there is dropped outside: a payload's destructor may call in.
    let _before = LAST.try_with(|last| last.replace((text, source)));
    status
}

pub(crate) fn last_message() -> *const c_char {
    LAST.try_with(|last| last.borrow().0.as_ptr()).unwrap_or(c"".as_ptr())
}

pub(crate) fn last_payload() -> *mut c_void {
    LAST.try_with(|last| payload(last.borrow().1.as_ref())).unwrap_or(std::ptr::null_mut())
}

/// # Safety
/// `at` is NULL or a C string.
pub(crate) unsafe fn text(at: *const c_char, name: &'static str) -> Result<String, Failure> {
    if at.is_null() {
        return Err(failure(ONELANE_INVALID_ARGUMENT, format!("{name} is NULL")));
    }
    // SAFETY: it is not NULL, so it is a C string.
    let text = unsafe { CStr::from_ptr(at) }.to_str();
    let no_text = |_| failure(ONELANE_INVALID_ARGUMENT, format!("{name} is not UTF-8"));
    text.map(str::to_owned).map_err(no_text)
}
