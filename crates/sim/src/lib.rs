//! A deterministic simulated MPS device.
//!
//! It shows, without a Mac, in which ways the GPU runtime under PyTorch's `mps` device fails when many
//! threads drive it, and keeps the cures cured. **Everything here is simulated**: the rules are taken
//! from public reports and sources, nothing was run on a Mac, and the assumptions are listed in
//! `docs/simulated-device.md`.
//!
//! The parts are those of the real thing: memory blocks with real bytes, a caching allocator, streams,
//! command buffers, encoders, shader and graph caches. A kernel is encoded when it is called and
//! computes **when its command buffer is committed, on the bytes that its blocks hold then**. So memory
//! that was given away too early shows up as wrong numbers, and no operation is made to fail.
//!
//! One simulated thread runs at a time. At every yield point (around allocating, encoding, freeing,
//! committing, cache lookups and waits) a seeded [`Schedule`] chooses who goes on: equal seeds give
//! equal runs, traces included.
//!
//! - [`SimDevice`], [`Buffer`], [`Op`]: the device itself. [`Profile`]: which rules hold.
//! - [`SimDevice::run`], [`Thread`], [`Scope`]: simulated threads. [`SimDevice::attach`], [`Party`]: real
//!   threads as simulated ones.
//! - [`Tensor`]: fp32 tensors and operations on the device. [`models`]: PyTorch's attention and
//!   transformer block, operation by operation.
//! - [`scenario`]: the hazards, and what cures each.

mod allocator;
mod attach;
mod baton;
mod buffer;
mod cache;
mod command;
mod commit;
mod device;
mod encode;
mod error;
mod host;
mod machine;
mod memo;
mod memory;
pub mod models;
mod naming;
mod ops;
mod ownership;
mod process;
mod profile;
mod registration;
pub mod scenario;
mod schedule;
mod serial_queue;
mod simulation;
mod stats;
mod stream;
pub mod sync;
mod tensor;
mod thread_id;
mod trace;
mod transfer;
mod view;

pub use attach::{Attachment, Party};
pub use buffer::Buffer;
pub use command::{Kind, Op, Work};
pub use device::{SimConfig, SimDevice};
pub use error::{Abort, Fault, Hang, SimError, SimResult, Waiting};
pub use host::HostTensor;
pub use memo::Memo;
pub use naming::name_thread;
pub use ownership::{OwnershipCheck, Violation};
pub use profile::{Profile, Reuse, StreamPolicy, ThreadCache, UnknownProfile};
pub use schedule::{Schedule, Turn, Until};
pub use simulation::{Body, Handle, Scope, Thread};
pub use stats::SimStats;
pub use tensor::Tensor;
pub use thread_id::ThreadId;
pub use trace::{ActionKind, Event, Trace};
