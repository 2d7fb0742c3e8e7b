//! What the executor asks of what waits in a queue, whatever its types.
//!
//! Everything here happens under the executor's lock.

use std::any::Any;
use std::time::{Duration, Instant};

use crate::after::After;
use crate::batch::Batch;
use crate::error::RequestError;
use crate::policy::Head;
use crate::queue_state::Need;
use crate::sync::Seat;

/// Names a request in its queue: its seat while it waits, and its number, so that who sits there later is
/// not mistaken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct RequestId {
    pub(crate) seat: usize,
    pub(crate) number: u64,
}

/// What who asked for a request knows of it.
#[derive(Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) number: u64,
    pub(crate) seat: &'a Seat,
}

impl Asked<'_> {
    /// Its name, once what is in the inbox has been filed.
    pub(crate) fn id(self) -> RequestId {
        RequestId { seat: self.seat.get(), number: self.number }
    }
}

/// A request that was removed before it was computed.
pub(crate) trait Removed: Send {
    /// Answers it with an error; what is left of it goes to `after`.
    fn answer(self: Box<Self>, error: RequestError, after: &mut After);
}

/// What came out of an inbox.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Filed {
    pub(crate) requests: usize,
    /// So many of them had a key that could not be compared, and have been answered.
    pub(crate) failed: usize,
}

/// The bell is set.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Listening {
    /// It is likely to ring as soon as others have had a turn on the worker's processor.
    pub(crate) worth_a_turn: bool,
}

/// What the executor asks of the waiting requests of a queue, whatever their types.
///
/// A list with an inbox is asked about what it has filed; the defaults are of one without.
pub(crate) trait WaitingList: Any + Send {
    /// Files what is in the inbox, numbering it from `seq` on. The bell is left as given.
    fn file(&mut self, _seq: &mut u64, _bell: bool, _after: &mut After) -> Filed {
        Filed::default()
    }
    /// The same while nothing is filed; but if what is in the inbox is just one batch, that is taken out
    /// without being filed.
    fn file_or_take(
        &mut self,
        seq: &mut u64,
        bell: bool,
        _waits: &mut dyn FnMut(Instant),
        after: &mut After,
    ) -> (Filed, Option<Box<dyn Batch>>) {
        (self.file(seq, bell, after), None)
    }
    /// Takes room for requests that are to be put into the inbox, if there is enough.
    fn reserve(&mut self, _need: Need) -> bool {
        true
    }
    /// Says whether requests may be put into the inbox without asking.
    fn set_open(&mut self, _open: bool) {}
    /// Says, after a batch, whether nothing waits and nothing computes, and how long the batch took.
    fn set_pace(&mut self, _idle: bool, _service: Duration) {}
    /// Sets the bell, unless there is something in the inbox.
    fn listen(&mut self) -> Option<Listening> {
        Some(Listening::default())
    }
    fn len(&self) -> usize;
    /// The sum of the costs of what waits.
    fn cost(&self) -> usize;
    fn contains(&self, id: RequestId) -> bool;
    /// Shows the heads that may claim a batch.
    fn heads(&self, visit: &mut dyn FnMut(Head));
    /// Takes the batch that the head at `seat` claims out of the list, counting how long each request
    /// waited.
    fn take(&mut self, seat: usize, waits: &mut dyn FnMut(Instant)) -> Box<dyn Batch>;
    fn remove(&mut self, id: RequestId) -> Option<Box<dyn Removed>>;
    /// The request whose deadline comes first.
    fn first_deadline(&self) -> Option<(Instant, RequestId)>;
    /// Any request that waits.
    fn any(&self) -> Option<RequestId>;
}
