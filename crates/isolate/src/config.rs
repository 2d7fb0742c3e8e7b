//! Settings of an isolated worker, validated once, when its supervisor is made.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use onelane::ConfigError;

/// What is called with each line that a child writes to its stdout or stderr, without its newline.
pub type LineCallback = Arc<dyn Fn(&str) + Send + Sync>;

/// Settings of a [`Supervisor`](crate::Supervisor).
///
/// ```
/// use std::time::Duration;
///
/// use onelane_isolate::IsolationConfig;
///
/// let config = IsolationConfig::default()
///     .hang(Duration::from_secs(60))
///     .max_memory(4 << 30)
///     .spare(true);
/// assert!(config.validate().is_ok());
/// assert!(IsolationConfig::default().hang(Duration::ZERO).validate().is_err());
/// ```
#[derive(Clone)]
#[non_exhaustive]
pub struct IsolationConfig {
    /// A batch that has run this long hangs: its child is killed; 30 s by default.
    pub hang: Duration,
    /// How long a child may take to start, build its engine and warm it up; 120 s by default.
    pub start: Duration,
    /// How long a child may take to end by itself when it is no longer needed; 5 s by default.
    pub grace: Duration,
    /// A child that hangs gets SIGABRT, and this long to write what it knows about it to stderr,
    /// before it is killed; zero by default, which kills at once.
    pub abort_grace: Duration,
    /// A child whose memory is more than this many bytes after a batch is replaced; no limit by
    /// default.
    pub max_memory: Option<u64>,
    /// A child that has run this many batches is replaced; no limit by default.
    pub recycle_batches: Option<u64>,
    /// A child this old is replaced after its next batch; no limit by default.
    pub recycle_after: Option<Duration>,
    /// Keep a second child, started and warmed up, for when the first is lost or replaced. It needs
    /// the memory of a second engine; `false` by default.
    pub spare: bool,
    /// How often a request that was alone when its child was lost is tried again, in a fresh one,
    /// if the engine is idempotent; 1 by default.
    pub retries: u32,
    /// The most bytes that the requests, or the responses, of one batch may take; 4 GiB by default.
    pub max_payload: u64,
    /// Bytes that the child gets with its start, for example what to build.
    pub payload: Arc<[u8]>,
    /// Called with each line that a child writes; nothing by default. The lines also go to
    /// `tracing`, as `info` events of the target `onelane_isolate::child`.
    pub on_line: Option<LineCallback>,
}

impl Default for IsolationConfig {
    fn default() -> Self {
        Self {
            hang: Duration::from_secs(30),
            start: Duration::from_secs(120),
            grace: Duration::from_secs(5),
            abort_grace: Duration::ZERO,
            max_memory: None,
            recycle_batches: None,
            recycle_after: None,
            spare: false,
            retries: 1,
            max_payload: 4 << 30,
            payload: Arc::new([]),
            on_line: None,
        }
    }
}

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

impl IsolationConfig {
    setters! {
        /// Sets how long a batch may run (not zero).
        hang: Duration,
        /// Sets how long a child may take to start (not zero).
        start: Duration,
        /// Sets how long a child may take to end by itself.
        grace: Duration,
        /// Sets how long a child that hangs may take to report it, after SIGABRT.
        abort_grace: Duration,
        /// Sets the memory, in bytes, above which a child is replaced (not zero).
        max_memory: u64,
        /// Sets after how many batches a child is replaced (at least 1).
        recycle_batches: u64,
        /// Sets the age at which a child is replaced (not zero).
        recycle_after: Duration,
        /// Says whether a warm spare child is kept.
        spare: bool,
        /// Sets how often a lone request is tried again after its child was lost.
        retries: u32,
        /// Sets the most bytes of a batch's requests or responses (at least 64 KiB).
        max_payload: u64,
        /// Sets the bytes that the child gets with its start.
        payload: Vec<u8>,
    }

    /// Sets what is called with each line that a child writes to its stdout or stderr. It runs on
    /// the thread that reads them: while it blocks, a child that writes much blocks too.
    #[must_use]
    pub fn on_line(mut self, callback: impl Fn(&str) + Send + Sync + 'static) -> Self {
        self.on_line = Some(Arc::new(callback));
        self
    }

    /// Says whether a supervisor can be made with these settings.
    ///
    /// # Errors
    /// The first setting that cannot be used, with what it has to be.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let not_zero = |name, value: Option<Duration>| match value {
            Some(Duration::ZERO) => Err(invalid(name, "0s", "must be more than zero")),
            _ => Ok(()),
        };
        let at_least_one = |name, value: Option<u64>| match value {
            Some(0) => Err(invalid(name, 0, "must be at least 1; None is no limit")),
            _ => Ok(()),
        };
        not_zero("hang", Some(self.hang))?;
        not_zero("start", Some(self.start))?;
        not_zero("recycle_after", self.recycle_after)?;
        at_least_one("max_memory", self.max_memory)?;
        at_least_one("recycle_batches", self.recycle_batches)?;
        if self.max_payload < 1 << 16 {
            return Err(invalid("max_payload", self.max_payload, "must be at least 65536 bytes"));
        }
        if self.payload.len() as u64 > self.max_payload {
            return Err(invalid("payload", self.payload.len(), "must not exceed max_payload"));
        }
        Ok(())
    }

    /// How often a wait for a child looks at the clock and at whether the child still lives.
    pub(crate) fn slice(&self) -> Duration {
        let shortest = self.hang.min(self.start) / 4;
        shortest.clamp(Duration::from_millis(1), Duration::from_millis(100))
    }
}

impl fmt::Debug for IsolationConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IsolationConfig")
            .field("hang", &self.hang)
            .field("start", &self.start)
            .field("grace", &self.grace)
            .field("max_memory", &self.max_memory)
            .field("recycle_batches", &self.recycle_batches)
            .field("recycle_after", &self.recycle_after)
            .field("spare", &self.spare)
            .field("retries", &self.retries)
            .field("max_payload", &self.max_payload)
            .finish_non_exhaustive()
    }
}

fn invalid(name: &'static str, value: impl ToString, expected: &'static str) -> ConfigError {
    ConfigError { name, value: value.to_string(), expected }
}
