//! `batched-fn`: its macro makes a static, and its thread never ends.
//!
//! It waits until a batch is full or its delay, in whole milliseconds, is over; with a delay of 0
//! every batch is one request. In a closed loop it does best when a batch is full as soon as every
//! client has asked, so the largest batch is the number of clients, for the numbers in [`SIZES`];
//! with another number it is the next smaller of them, so that it never waits for requests that
//! cannot come. The delay is 1 ms.

use std::future::Future;
use std::pin::Pin;

use batched_fn::batched_fn;

use super::peer::Peer;
use super::work::Work;
use crate::generator::{AsyncClient, Client, Target};

type Answer = Pin<Box<dyn Future<Output = u64> + Send>>;

/// The largest batches that there is a static for.
const SIZES: [usize; 6] = [1, 2, 8, 32, 64, 256];

/// A row of the macro's statics.
#[derive(Clone, Copy)]
pub struct BatchedFnMacro(fn(u64) -> Answer);

macro_rules! of_size {
    ($size:expr) => {
        |value| {
            Box::pin(async move {
                let ask = batched_fn! {
                    handler = |batch: Vec<u64>, work: &Work| -> Vec<u64> {
                        work.run(batch.into_iter())
                    };
                    config = { max_batch_size: $size, max_delay: 1 };
                    context = { work: Work::default() };
                };
                ask(value).await.expect("the thread never ends")
            })
        }
    };
}

impl Peer for BatchedFnMacro {
    /// Its work is never gated: the static is made before the gate is known.
    fn start(_work: Work, clients: usize) -> Self {
        let size = SIZES.into_iter().rfind(|&size| size <= clients).unwrap_or(1);
        Self(match size {
            1 => of_size!(1),
            2 => of_size!(2),
            8 => of_size!(8),
            32 => of_size!(32),
            64 => of_size!(64),
            _ => of_size!(256),
        })
    }
}

impl Target for BatchedFnMacro {
    type Client = Self;

    fn client(&self) -> Result<Self, String> {
        Ok(*self)
    }
}

impl Client for BatchedFnMacro {
    type Reply = u64;

    fn ask(&mut self, value: u64) -> u64 {
        futures_executor::block_on((self.0)(value))
    }
}

impl AsyncClient for BatchedFnMacro {
    fn infer(&mut self, value: u64) -> impl Future<Output = u64> + Send {
        (self.0)(value)
    }
}
