//! [`Crew`]: client threads and client tasks that have been started.

use std::future::Future;
use std::io;
use std::thread;

use anyhow::Context;
use futures_lite::future::block_on;
use tokio::runtime::{Builder, Runtime};
use tokio::task;

/// Clients under way; each ends with an `R`.
pub struct Crew<R> {
    threads: Vec<thread::JoinHandle<R>>,
    tasks: Vec<task::JoinHandle<R>>,
}

impl<R> Default for Crew<R> {
    fn default() -> Self {
        Self { threads: Vec::new(), tasks: Vec::new() }
    }
}

impl<R: Send + 'static> Crew<R> {
    /// Starts a client thread.
    ///
    /// # Errors
    /// When the system has none left.
    pub fn thread(&mut self, body: impl FnOnce() -> R + Send + 'static) -> io::Result<()> {
        let name = format!("client {}", self.threads.len());
        self.threads.push(thread::Builder::new().name(name).spawn(body)?);
        Ok(())
    }

    /// Starts a client task.
    pub fn task(&mut self, on: &Runtime, body: impl Future<Output = R> + Send + 'static) {
        self.tasks.push(on.spawn(body));
    }

    /// Waits for all of them.
    ///
    /// # Errors
    /// When one panicked; the others have ended then, too.
    ///
    /// # Blocking
    /// Until the last has ended.
    pub fn join(self) -> anyhow::Result<Vec<R>> {
        let threads = self.threads.into_iter().map(|thread| thread.join().ok());
        let tasks = self.tasks.into_iter().map(|task| block_on(task).ok());
        let ended: Vec<Option<R>> = threads.chain(tasks).collect();
        ended.into_iter().collect::<Option<Vec<R>>>().context("a client panicked")
    }
}

/// Threads for client tasks.
///
/// # Errors
/// When the system has none left.
pub fn runtime(threads: usize) -> anyhow::Result<Runtime> {
    let runtime = Builder::new_multi_thread().worker_threads(threads.max(1)).enable_time().build();
    runtime.with_context(|| format!("cannot start {threads} threads for tasks"))
}
