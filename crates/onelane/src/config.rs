//! Settings of a queue and of an executor, validated once, when they are used.

use std::time::Duration;

use crate::ConfigError;
use crate::sync::Clock;

/// Settings of a [`BatchQueue`](crate::BatchQueue).
///
/// ```
/// use onelane::BatchConfig;
///
/// let config = BatchConfig::default().max_batch_size(64).capacity(4096).name("embedding");
/// assert!(config.validate().is_ok());
/// assert!(BatchConfig::default().max_batch_size(0).validate().is_err());
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct BatchConfig {
    /// The name in spans, statistics and errors.
    pub name: String,
    /// The most requests in a batch; 32 by default.
    pub max_batch_size: usize,
    /// The most cost in a batch; unlimited by default.
    pub max_batch_cost: usize,
    /// How long an idle worker may wait for a batch to fill; zero by default, which never waits.
    pub max_wait: Duration,
    /// The most requests that may wait; 1024 by default.
    pub capacity: usize,
    /// The most cost that may wait; unlimited by default.
    pub capacity_cost: usize,
    /// A waiting request is lifted one priority class for each such interval, and so is who waits for
    /// room in a full queue; 1 s by default.
    pub ageing: Duration,
    /// This queue's share of the device among the queues that have work; 1 by default.
    pub weight: u32,
    /// A batch that has run this long makes the queue [`Stalled`](crate::Health::Stalled); 30 s by
    /// default.
    pub stall_after: Duration,
    /// How many times in a row the engine may be lost, or not be rebuilt, without completing a
    /// request, before the queue gives up; 8 by default.
    pub max_rebuilds: u32,
    /// How long a batch key keeps the ceiling that running out of memory has taught, before a larger
    /// batch is tried again; each time that this fails it takes twice as long, up to 16 times. 10 s
    /// by default.
    pub ceiling_retry: Duration,
}

impl Default for BatchConfig {
    fn default() -> Self {
        Self {
            name: "queue".to_owned(),
            max_batch_size: 32,
            max_batch_cost: usize::MAX,
            max_wait: Duration::ZERO,
            capacity: 1024,
            capacity_cost: usize::MAX,
            ageing: Duration::from_secs(1),
            weight: 1,
            stall_after: Duration::from_secs(30),
            max_rebuilds: 8,
            ceiling_retry: Duration::from_secs(10),
        }
    }
}

/// A field that is optional is set to what is given, a name to any text.
macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        $(
            $(#[$doc])*
            #[must_use]
            pub fn $name(mut self, $name: $type) -> Self {
                self.$name = $name.into();
                self
            }
        )*
    };
}

impl BatchConfig {
    setters! {
        /// Sets the name in spans, statistics and errors.
        name: impl Into<String>,
        /// Sets the most requests in a batch (at least 1).
        max_batch_size: usize,
        /// Sets the most cost in a batch (at least 1).
        max_batch_cost: usize,
        /// Sets how long an idle worker may wait for a batch to fill.
        max_wait: Duration,
        /// Sets the most requests that may wait (at least 1).
        capacity: usize,
        /// Sets the most cost that may wait (at least 1).
        capacity_cost: usize,
        /// Sets the ageing interval (not zero; `Duration::MAX` turns ageing off).
        ageing: Duration,
        /// Sets the share of the device (at least 1).
        weight: u32,
        /// Sets when a running batch counts as stalled (not zero).
        stall_after: Duration,
        /// Sets how many engine losses in a row are borne.
        max_rebuilds: u32,
        /// Sets how long a ceiling that was learnt lasts (`Duration::MAX`: for good).
        ceiling_retry: Duration,
    }

    /// Says whether a queue can be made with these settings.
    ///
    /// # Errors
    /// The first setting that cannot be used, with what it has to be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        at_least_one("max_batch_size", self.max_batch_size)?;
        at_least_one("max_batch_cost", self.max_batch_cost)?;
        at_least_one("capacity", self.capacity)?;
        at_least_one("capacity_cost", self.capacity_cost)?;
        at_least_one("weight", self.weight as usize)?;
        not_zero("ageing", self.ageing)?;
        not_zero("stall_after", self.stall_after)?;
        not_zero("ceiling_retry", self.ceiling_retry)
    }
}

/// Who hands the answers of a batch over to those who wait for them, and wakes them.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Delivery {
    /// For batches of 8 and more, on a machine with at least four processors, a thread beside the
    /// worker, so that the worker goes on with the next batch; else, and if there are several
    /// workers, the worker.
    #[default]
    Auto,
    /// Always the worker.
    Worker,
    /// For batches of two and more, a thread beside each worker.
    Thread,
}

/// Settings of a [`DeviceExecutor`](crate::DeviceExecutor).
///
/// ```
/// use onelane::{DeviceExecutor, ExecutorConfig};
///
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// let config = ExecutorConfig::new("cpu").workers(2).stack_size(64 << 20).capacity(100);
/// let device = DeviceExecutor::new(config)?;
/// assert_eq!(device.workers(), 2);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ExecutorConfig {
    /// The device, for example `metal:0`; names the worker threads.
    pub device: String,
    /// How many worker threads own the device; 1 by default. More than one is for devices whose
    /// runtime is thread-safe: each worker builds an engine of its own.
    pub workers: usize,
    /// The most closures that may wait; 16,384 by default.
    pub capacity: usize,
    /// A closure that has run this long makes the executor [`Stalled`](crate::Health::Stalled); 30 s
    /// by default.
    pub stall_after: Duration,
    /// The size of a worker's stack in bytes; 16 MiB by default, which is no less than what Linux
    /// and macOS give a process's other threads. Memory is taken as it is used.
    pub stack_size: usize,
    /// Who hands answers over; [`Delivery::Auto`] by default.
    #[doc(hidden)]
    pub delivery: Delivery,
    /// Called on a worker that was asleep, before it looks what there is to run; nothing by default.
    pub on_wake: Option<fn()>,
    /// What a worker does around everything of others that it runs; nothing by default.
    pub around: Option<Around>,
    pub(crate) clock: Clock,
}

/// Calls its argument, once, with something before and after it; see [`ExecutorConfig::around`].
pub type Around = fn(&mut dyn FnMut());

/// The least stack that a worker is given.
const MIN_STACK: usize = 64 << 10;

impl ExecutorConfig {
    /// Settings for one worker on `device`.
    pub fn new(device: impl Into<String>) -> Self {
        Self {
            device: device.into(),
            workers: 1,
            capacity: 16_384,
            stall_after: Duration::from_secs(30),
            stack_size: 16 << 20,
            delivery: Delivery::Auto,
            on_wake: None,
            around: None,
            clock: Clock::System,
        }
    }

    setters! {
        /// Sets the number of worker threads (1 to 64).
        workers: usize,
        /// Sets the most closures that may wait (at least 1).
        capacity: usize,
        /// Sets when a running closure counts as stalled (not zero).
        stall_after: Duration,
        /// Sets the size of a worker's stack in bytes (at least 64 KiB).
        stack_size: usize,
        /// Sets who hands answers over.
        #[doc(hidden)]
        delivery: Delivery,
        /// Sets what a worker does around each batch, closure, build, rebuild and drop of an engine:
        /// an autorelease pool on Apple's systems, where a thread that nobody gives one keeps what
        /// Objective-C releases later until it ends.
        ///
        /// It has to call its argument once and return. What runs inside never panics through it.
        ///
        /// ```
        /// let config = onelane::ExecutorConfig::new("metal").around(|body| {
        ///     // Push a pool, in a type that pops it when it is dropped.
        ///     body();
        /// });
        /// assert!(config.around.is_some());
        /// ```
        around: Around,
        /// Has a worker that was asleep call this before it looks what there is to run. It may wait,
        /// for an interpreter's lock, say, which the engine will need: what is submitted until then
        /// shares the batch. A panic in it is contained.
        on_wake: fn(),
    }

    /// Runs the executor on a virtual clock.
    #[cfg(any(test, feature = "test-util"))]
    #[must_use]
    pub fn clock(mut self, clock: crate::testing::VirtualClock) -> Self {
        self.clock = Clock::Virtual(clock);
        self
    }

    /// Says whether an executor can be made with these settings.
    ///
    /// # Errors
    /// The first setting that cannot be used, with what it has to be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        if !(1..=64).contains(&self.workers) {
            let expected = "must be from 1 to 64; 1 is right unless the runtime is thread-safe";
            return Err(invalid("workers", self.workers, expected));
        }
        if self.device.is_empty() || self.device.contains('\0') {
            let expected = "must name a device, for example \"metal:0\"";
            return Err(invalid("device", format!("{:?}", self.device), expected));
        }
        if self.stack_size < MIN_STACK {
            return Err(invalid("stack_size", self.stack_size, "must be at least 65536 bytes"));
        }
        not_zero("stall_after", self.stall_after)?;
        at_least_one("capacity", self.capacity)
    }
}

fn at_least_one(name: &'static str, value: usize) -> Result<(), ConfigError> {
    if value == 0 { Err(invalid(name, value, "must be at least 1")) } else { Ok(()) }
}

fn not_zero(name: &'static str, value: Duration) -> Result<(), ConfigError> {
    if value.is_zero() { Err(invalid(name, "0s", "must be more than zero")) } else { Ok(()) }
}

fn invalid(name: &'static str, value: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError { name, value: value.to_string(), expected }
}
