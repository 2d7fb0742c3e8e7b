//! A task that has submitted a request, and polls it by hand.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::task::{Context, Poll, Wake, Waker};

use onelane::testing::{FakeEngine, FakeItem};
use onelane::{Infer, InferError, ResponseHandle};

/// A request whose answer is not looked at yet.
pub enum Open {
    Handle(ResponseHandle<u64>),
    Task(Task),
}

pub struct Task {
    pub future: Infer<FakeEngine>,
    pub woken: Arc<Woken>,
}

#[derive(Default)]
pub struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, SeqCst);
    }
}

impl Task {
    pub fn poll(&mut self) -> Poll<Result<u64, InferError<FakeItem>>> {
        self.woken.0.store(false, SeqCst);
        let waker = Waker::from(Arc::clone(&self.woken));
        Pin::new(&mut self.future).poll(&mut Context::from_waker(&waker))
    }

    pub fn is_woken(&self) -> bool {
        self.woken.0.load(SeqCst)
    }
}
