//! Commands: what is encoded now and computed at commit (rule R1).

use std::borrow::Cow;
use std::fmt;

use crate::thread_id::ThreadId;

/// When a command is committed (rule R2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A kernel: it stays pending in the stream's command buffer.
    Kernel,
    /// A graph: it is committed at once, with all that is pending before it.
    Graph,
}

/// The work of a command: reads the inputs' bytes, writes the outputs' bytes.
pub type Work = Box<dyn FnOnce(&[&[u8]], &mut [&mut [u8]]) + Send>;

/// What is encoded: kind, name, and what the caches know it by.
#[derive(Clone, Debug)]
pub struct Op {
    pub(crate) kind: Kind,
    pub(crate) name: Cow<'static, str>,
    pub(crate) cache_key: Option<String>,
    pub(crate) pure_key: Option<u128>,
    pub(crate) remember: bool,
    pub(crate) overwrites: bool,
    /// The one output is the one input, byte by byte.
    pub(crate) identity: bool,
}

impl Op {
    /// A kernel, which stays pending. Its shader is cached by its name.
    pub fn kernel(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Kernel, name)
    }

    /// A graph, which is committed at once. It is cached by its name and [`Op::shapes`].
    pub fn graph(name: impl Into<Cow<'static, str>>) -> Self {
        Self::new(Kind::Graph, name)
    }

    fn new(kind: Kind, name: impl Into<Cow<'static, str>>) -> Self {
        Self {
            kind,
            name: name.into(),
            cache_key: None,
            pure_key: None,
            remember: false,
            overwrites: false,
            identity: false,
        }
    }

    /// The shapes that a graph is compiled for: with the name, its key in the graph cache (rule R9).
    /// A kernel's shader serves all shapes.
    #[must_use]
    pub fn shapes(mut self, shapes: impl fmt::Display) -> Self {
        if self.kind == Kind::Graph {
            self.cache_key = Some(format!("{}:{shapes}", self.name));
        }
        self
    }

    /// The outputs are a pure function of the inputs and of `key`, and every byte of them is written.
    #[must_use]
    pub fn pure(mut self, key: u128) -> Self {
        self.pure_key = Some(key);
        self.overwrites = true;
        self
    }

    /// The one output is the one input, byte by byte, so that the two can share storage until one of
    /// them is written to.
    #[must_use]
    pub(crate) fn identity(mut self) -> Self {
        self.identity = true;
        self
    }

    /// The outputs may be kept in the memo, when the device has one. Only for pure commands.
    #[must_use]
    pub fn remember(mut self) -> Self {
        self.remember = true;
        self
    }

    /// The name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The name under which the shader or graph is cached.
    pub(crate) fn cached_as(&self) -> &str {
        self.cache_key.as_deref().unwrap_or(&self.name)
    }
}

/// A command's use of a block. It refers to the block, and does not own it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Access {
    pub(crate) block: u32,
    /// The block's generation at encoding; another one at commit means that it was given away.
    pub(crate) generation: u32,
    pub(crate) bytes: usize,
}

/// An encoded command.
pub(crate) struct Command {
    pub(crate) op: Op,
    pub(crate) thread: ThreadId,
    pub(crate) reads: Vec<Access>,
    pub(crate) writes: Vec<Access>,
    pub(crate) work: Work,
}

impl fmt::Debug for Command {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Command")
            .field("op", &self.op)
            .field("thread", &self.thread)
            .field("reads", &self.reads)
            .field("writes", &self.writes)
            .finish_non_exhaustive()
    }
}
