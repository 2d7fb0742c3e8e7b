//! The correctness suite of onelane: does a device give the right numbers when many threads use it?
//!
//! Ten tests, from a linear layer to a transformer block, are written once over [`Ops`], the
//! operations that a device must offer. [`CandleDevice`] implements them on the CPU, Metal and
//! CUDA; [`SimMps`] on a simulated MPS device; [`Reference`] in plain Rust. Each test runs in one of
//! three [`Mode`]s:
//!
//! | mode | threads | golden result | within |
//! |---|---|---|---|
//! | [`Mode::Single`] | one | [`Reference`], in f64 on the CPU | 1e-4 |
//! | [`Mode::Parallel`] | all call the device | the same device, one after another | 1e-6 |
//! | [`Mode::Batched`] | all submit to a batch queue | the same device, one after another | 1e-5 |
//!
//! A result passes when every element is within `tolerance + tolerance · |golden|`. All data is
//! fp32, drawn with seed 42. Thread `t` takes the input with its rows rotated by `t mod 4`, so that
//! an answer that reaches the wrong thread, or memory that two threads share, shows as a wrong
//! number.
//!
//! ```
//! use std::sync::Arc;
//! use onelane_suite::{CandleDevice, Mode, SuiteConfig, run_suite, test_named};
//!
//! let linear = test_named("Linear").expect("one of the ten");
//! let config = SuiteConfig::default().mode(Mode::Parallel).threads([4]).tests([linear]);
//! let report = run_suite(&Arc::new(CandleDevice::cpu()), &config, &mut ())?;
//! assert!(report.all_passed());
//! # Ok::<(), onelane_suite::SuiteError>(())
//! ```
//!
//! [`race`] holds further cases, for the race and hazard commands.

mod batched;
mod candle;
mod case;
mod compare;
mod crew;
mod device;
mod direct;
mod golden;
mod host;
mod layers;
mod mode;
mod ops;
mod outcome;
mod program;
pub mod race;
mod reference;
mod report;
mod seed;
mod sim;
mod single;
mod suite;
mod ten;

pub use batched::run_batched;
pub use candle::{CandleDevice, CandleOps};
pub use case::{Case, Draw, Draws};
pub use compare::{Comparison, Tolerance, compare};
pub use device::{Caller, Device, DeviceKind, Rendezvous};
pub use direct::run_direct;
pub use host::HostTensor;
pub use layers::{Attention, Projection};
pub use mode::Mode;
pub use ops::{OpError, OpResult, Ops};
pub use outcome::{Batches, Outcome, Plan};
pub use program::Program;
pub use reference::{Reference, ReferenceOps, ReferenceTensor};
pub use report::{Report, TestResult};
pub use seed::{SEED, Seeded};
pub use sim::{SimMps, SimOps};
pub use single::run_single;
pub use suite::{Observer, SuiteConfig, SuiteError, run_suite};
pub use ten::{TEN, test_named};
