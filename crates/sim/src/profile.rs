//! [`Profile`]: which rules hold on a simulated device. Data only: no operation is named as one that
//! fails; [`Profile::off_queue`] names operations that *fetch* an encoder without the stream's queue.

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

/// Which stream a thread's work goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum StreamPolicy {
    /// All threads share one stream.
    Shared,
    /// Each thread has its own stream and command queue.
    PerThread,
    /// One command queue, and on it an open command buffer per thread, behind one lock; a committed
    /// buffer is replaced at once (candle's Metal backend in late 2025).
    BufferPerThread,
}

/// When the caching allocator gives a freed block out again (rule R3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reuse {
    /// At once, to any stream.
    Shared,
    /// At once, but only to the stream that it was allocated on.
    PerStream,
    /// To any stream, but only when no uncommitted command refers to it any more.
    Retain,
}

impl fmt::Display for Reuse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Reuse::Shared => "shared",
            Reuse::PerStream => "per_stream",
            Reuse::Retain => "retain",
        })
    }
}

/// The cache of small freed blocks that each thread keeps for itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ThreadCache {
    /// How many blocks it holds.
    pub blocks: usize,
    /// The largest block that it takes, in bytes.
    pub block_bytes: usize,
}

/// The rules that hold on a simulated device.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Profile {
    /// The name.
    pub name: Cow<'static, str>,
    /// Which stream a thread's work goes to.
    pub streams: StreamPolicy,
    /// When a freed block is given out again.
    pub reuse: Reuse,
    /// Whether a freed block that another stream's uncommitted command refers to is kept back
    /// (`record_stream`).
    pub record_stream: bool,
    /// The cache of each thread, if any.
    pub thread_cache: Option<ThreadCache>,
    /// Whether small graphs of one thread's run are compiled per thread.
    pub graph_cache_per_thread: bool,
    /// The operations that touch a stream's encoder and command buffer without its serial queue
    /// (rule R4).
    pub off_queue: Cow<'static, [&'static str]>,
    /// Whether the shader and graph caches are locked (rule R6).
    pub caches_locked: bool,
    /// Whether the encoding of a cached kernel object is locked (rule R7).
    pub kernels_locked: bool,
    /// How many command buffers of one queue may be in flight (rule R8).
    pub command_buffers: usize,
    /// Bytes that the graph cache grows by for each new graph (rule R9).
    pub graph_bytes: u64,
    /// Whether `synchronise` commits all streams, and not the caller's alone.
    pub synchronise_all: bool,
    /// Whether a stream can be used only by the thread that made it.
    pub thread_affine: bool,
    /// Whether faults are real, to test what contains them: an abort prints its text to stderr and
    /// aborts this process, a hang never returns, and each graph in the cache holds
    /// [`graph_bytes`](Self::graph_bytes) of memory. Off: faults are errors.
    pub real_faults: bool,
}

/// What 315 input lengths of one encoder cost in a report on PyTorch 2.13: 13.7 GB. Divided evenly
/// over the graphs that our encoder layer makes per length (five), as the report does not say how
/// many there were.
const GRAPH_BYTES: u64 = 13_700_000_000 / 315 / 5;

/// The operations that PyTorch up to 2.14.1 encodes outside of the stream's serial queue.
const OFF_QUEUE_2_14: &[&str] =
    &["arange", "range", "linspace", "logspace", "eye", "renorm", "synchronise"];

impl Profile {
    /// The names that [`Profile::from_str`] takes.
    pub const NAMES: [&'static str; 6] = [
        "fork-2.9.1",
        "upstream-2.14",
        "upstream-2.15",
        "2.15-user-streams",
        "candle-metal",
        "mlx",
    ];

    /// One locked stream, blocks reused by their own stream: what each profile starts from.
    fn stock(name: &'static str) -> Self {
        Self {
            name: Cow::Borrowed(name),
            streams: StreamPolicy::Shared,
            reuse: Reuse::PerStream,
            record_stream: true,
            thread_cache: None,
            graph_cache_per_thread: false,
            off_queue: Cow::Borrowed(&[]),
            caches_locked: true,
            kernels_locked: true,
            command_buffers: 64,
            graph_bytes: GRAPH_BYTES,
            synchronise_all: true,
            thread_affine: false,
            real_faults: false,
        }
    }

    /// The dML repository's fork of PyTorch 2.9.1: a stream per thread, freed blocks given to any
    /// stream at once, and a per-thread cache of 4 blocks of at most 1 MiB.
    pub fn fork_2_9_1() -> Self {
        Self {
            streams: StreamPolicy::PerThread,
            reuse: Reuse::Shared,
            record_stream: false,
            thread_cache: Some(ThreadCache { blocks: 4, block_bytes: 1 << 20 }),
            graph_cache_per_thread: true,
            ..Self::stock("fork-2.9.1")
        }
    }

    /// PyTorch 2.14 as shipped: one stream for all threads; some operations touch it off its queue,
    /// and the caches are not locked.
    pub fn upstream_2_14() -> Self {
        Self {
            record_stream: false,
            off_queue: Cow::Borrowed(OFF_QUEUE_2_14),
            caches_locked: false,
            ..Self::stock("upstream-2.14")
        }
    }

    /// PyTorch 2.15 as shipped: one stream for all threads, on its queue, caches locked.
    pub fn upstream_2_15() -> Self {
        Self::stock("upstream-2.15")
    }

    /// PyTorch 2.15 with one `torch.mps.Stream` per thread.
    pub fn user_streams_2_15() -> Self {
        Self { streams: StreamPolicy::PerThread, ..Self::stock("2.15-user-streams") }
    }

    /// candle's Metal backend while it kept a command buffer per thread (its main branch in late 2025;
    /// the releases 0.9.2, 0.10.2 and 0.11.1 share one).
    pub fn candle_metal() -> Self {
        Self {
            streams: StreamPolicy::BufferPerThread,
            reuse: Reuse::Retain,
            synchronise_all: false,
            ..Self::stock("candle-metal")
        }
    }

    /// MLX since 0.31.2: a stream belongs to the thread that made it.
    pub fn mlx() -> Self {
        Self {
            streams: StreamPolicy::PerThread,
            reuse: Reuse::Retain,
            synchronise_all: false,
            thread_affine: true,
            ..Self::stock("mlx")
        }
    }

    /// The same profile with another rule of reuse.
    #[must_use]
    pub fn with_reuse(mut self, reuse: Reuse) -> Self {
        self.reuse = reuse;
        self
    }

    /// The same profile with another stream policy.
    #[must_use]
    pub fn with_streams(mut self, streams: StreamPolicy) -> Self {
        self.streams = streams;
        self
    }

    /// The same profile with another per-thread cache, or none.
    #[must_use]
    pub fn with_thread_cache(mut self, cache: Option<ThreadCache>) -> Self {
        self.thread_cache = cache;
        self
    }

    /// The same profile with cached kernel objects locked or not (rule R7).
    #[must_use]
    pub fn with_kernels_locked(mut self, locked: bool) -> Self {
        self.kernels_locked = locked;
        self
    }

    /// The same profile with the shader and graph caches locked or not (rule R6).
    #[must_use]
    pub fn with_caches_locked(mut self, locked: bool) -> Self {
        self.caches_locked = locked;
        self
    }

    /// The same profile with faults that are real, or errors.
    ///
    /// ```
    /// use onelane_sim::Profile;
    ///
    /// assert!(!Profile::upstream_2_14().real_faults);
    /// assert!(Profile::upstream_2_14().with_real_faults(true).real_faults);
    /// ```
    #[must_use]
    pub fn with_real_faults(mut self, real: bool) -> Self {
        self.real_faults = real;
        self
    }

    /// Whether a block is given to another stream while an uncommitted command may still refer to it
    /// (hazard H1).
    pub fn gives_pending_blocks_away(&self) -> bool {
        self.streams == StreamPolicy::PerThread
            && self.reuse == Reuse::Shared
            && !self.record_stream
    }

    /// What the profile stands for, in one line.
    pub fn summary(&self) -> &'static str {
        match &*self.name {
            "fork-2.9.1" => {
                "dML's fork of PyTorch 2.9.1: a stream per thread, freed memory given to any of them"
            }
            "upstream-2.14" => {
                "PyTorch 2.14: one stream, some operations off its queue, unlocked caches"
            }
            "upstream-2.15" => "PyTorch 2.15: one stream, everything on its queue, caches locked",
            "2.15-user-streams" => {
                "PyTorch 2.15 with a stream per thread: freed memory stays with its stream"
            }
            "candle-metal" => "candle's Metal backend of late 2025: a command buffer per thread",
            "mlx" => "MLX since 0.31.2: a stream belongs to the thread that made it",
            _ => "rules of its own",
        }
    }

    /// Whether `operation` touches the encoder off its serial queue.
    pub fn is_off_queue(&self, operation: &str) -> bool {
        self.off_queue.contains(&operation)
    }

    /// Whether another thread can meet one that is inside an encoding: only then does the scheduler
    /// switch threads there.
    pub(crate) fn yields_inside_encoding(&self) -> bool {
        !self.off_queue.is_empty() || !self.kernels_locked
    }
}

/// A profile's name that nobody knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("there is no profile `{0}`; there are {list}", list = Profile::NAMES.join(", "))]
pub struct UnknownProfile(String);

impl FromStr for Profile {
    type Err = UnknownProfile;

    fn from_str(name: &str) -> Result<Self, UnknownProfile> {
        match name {
            "fork-2.9.1" => Ok(Self::fork_2_9_1()),
            "upstream-2.14" => Ok(Self::upstream_2_14()),
            "upstream-2.15" => Ok(Self::upstream_2_15()),
            "2.15-user-streams" => Ok(Self::user_streams_2_15()),
            "candle-metal" => Ok(Self::candle_metal()),
            "mlx" => Ok(Self::mlx()),
            _ => Err(UnknownProfile(name.to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_parses_to_the_profile_of_that_name() {
        for name in Profile::NAMES {
            let profile = name.parse::<Profile>().unwrap();
            assert_eq!(profile.name, name);
            assert_ne!(profile.summary(), "rules of its own");
        }
        let error = "2.99".parse::<Profile>().unwrap_err().to_string();
        assert!(error.contains("`2.99`") && error.contains("upstream-2.14"));
    }
}
