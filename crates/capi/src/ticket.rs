//! Tickets: waiting for the end of one request.

use std::sync::{Arc, Mutex, PoisonError};

use crate::contain::contain;
use crate::engine::duration;
use crate::error::{Failure, failure};
use crate::handles::{Handles, Ticket};
use crate::status::*;
use crate::submitted::{AnyHandle, Submitted};

struct Pending {
    handle: AnyHandle,
    submitted: Arc<Submitted>,
}

/// `None` while a thread waits for it.
static TICKETS: Handles<Mutex<Option<Pending>>, Ticket> = Handles::new(3, "ticket");

/// Gives a ticket for a request that was accepted or, if none is asked for, has `done` hear of its end.
pub(crate) fn hand_out(
    ticket: *mut *mut Ticket,
    submitted: Arc<Submitted>,
    handle: AnyHandle,
) -> Result<(), Failure> {
    if ticket.is_null() {
        submitted.follow(handle);
        return Ok(());
    }
    let given = TICKETS.insert(Mutex::new(Some(Pending { handle, submitted })))?;
    // SAFETY: it is not NULL; the caller passes a place for a ticket.
    unsafe { ticket.write(given) };
    Ok(())
}

fn in_use() -> Failure {
    failure(ONELANE_INVALID_HANDLE, "another thread waits for this ticket")
}

pub(crate) unsafe extern "C" fn wait(ticket: *mut Ticket, timeout_ns: u64) -> Status {
    contain(|| {
        let lock = |slot: &Mutex<Option<Pending>>| {
            slot.lock().unwrap_or_else(PoisonError::into_inner).take()
        };
        if timeout_ns == ONELANE_FOREVER {
            let slot = TICKETS.take(ticket)?;
            let Pending { handle, submitted } = lock(&slot).ok_or_else(in_use)?;
            let Ok(answer) = handle.wait(None) else {
                unreachable!("a wait without a timeout ends with an answer")
            };
            return submitted.finish(answer);
        }
        let Pending { handle, submitted } = TICKETS.with(ticket, lock)?.ok_or_else(in_use)?;
        match handle.wait(Some(duration(timeout_ns))) {
            Ok(answer) => {
                drop(TICKETS.take(ticket));
                submitted.finish(answer)
            }
            Err(handle) => {
                let pending = Pending { handle, submitted };
                let put = |slot: &Mutex<Option<Pending>>| {
                    *slot.lock().unwrap_or_else(PoisonError::into_inner) = Some(pending);
                };
                TICKETS.with(ticket, put)?;
                Err(failure(ONELANE_TIMEOUT, "the request has not ended in that time"))
            }
        }
    })
}

pub(crate) unsafe extern "C" fn cancel(ticket: *mut Ticket) -> Status {
    contain(|| {
        let slot = TICKETS.take(ticket)?;
        let pending = slot.into_inner().unwrap_or_else(PoisonError::into_inner);
        let Pending { mut handle, submitted } = pending.ok_or_else(in_use)?;
        if let Some(answer) = handle.look() {
            // It has ended: `done` is told how.
            let _ = submitted.finish(answer);
        }
        Ok(())
    })
}
