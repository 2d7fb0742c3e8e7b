//! Crashes: operations off the stream's queue (H2), unlocked caches (H3), a kernel object encoded by
//! two streams (H4), and what one worker does to them.

use std::fmt;

use super::data::Seeded;
use crate::device::{SimConfig, SimDevice};
use crate::error::{SimError, SimResult};
use crate::profile::Profile;
use crate::sync::SimChannel;

/// What each thread does over and over.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Crash {
    /// `torch.arange` and its result to the host (H2).
    Arange,
    /// A kernel, and `torch.mps.synchronize()` (H2).
    Synchronise,
    /// Kernels that nobody used before (H3).
    FirstUse,
    /// A linear layer, over streams of their own (H4).
    SharedKernel,
}

impl fmt::Display for Crash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Crash::Arange => "arange",
            Crash::Synchronise => "synchronise",
            Crash::FirstUse => "first use of kernels",
            Crash::SharedKernel => "one kernel from two streams",
        })
    }
}

/// The conditions of a [`Crash`].
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct CrashTrial {
    /// The rules of the device.
    pub profile: Profile,
    /// The seed of the schedule.
    pub seed: u64,
    /// Threads.
    pub threads: usize,
    /// Rounds of each thread.
    pub rounds: usize,
    /// Whether one worker does the work for all.
    pub worker: bool,
}

impl CrashTrial {
    /// Two threads of 30 rounds that call the device themselves, seed 0.
    pub fn new(profile: Profile) -> Self {
        Self { profile, seed: 0, threads: 2, rounds: 30, worker: false }
    }

    /// The same with another seed.
    #[must_use]
    pub fn seed(mut self, seed: u64) -> Self {
        self.seed = seed;
        self
    }

    /// The same with another number of threads.
    #[must_use]
    pub fn threads(mut self, threads: usize) -> Self {
        self.threads = threads;
        self
    }

    /// The same with one worker that does the work for all.
    #[must_use]
    pub fn through_worker(mut self) -> Self {
        self.worker = true;
        self
    }

    /// Runs it.
    ///
    /// # Errors
    /// [`SimError::Aborted`] when the simulated process was aborted, and other failures of it.
    pub fn run(&self, crash: Crash) -> SimResult<Rounds> {
        let config = SimConfig::new(self.profile.clone()).seed(self.seed);
        let device = SimDevice::new(config);
        device.run(|main| {
            let requests: SimChannel<(usize, SimChannel<SimResult<bool>>)> =
                SimChannel::new(&device, "requests");
            main.scope(|scope| {
                let worker = self.worker.then(|| {
                    let (device, requests) = (&device, requests.clone());
                    scope.spawn("worker", move |_| {
                        while let Some((round, answer)) = requests.receive()? {
                            answer.send(crash.round(device, round))?;
                        }
                        Ok::<(), SimError>(())
                    })
                });
                let threads: Vec<_> = (0..self.threads)
                    .map(|thread| {
                        let (device, requests) = (&device, requests.clone());
                        scope.spawn(&format!("t{thread}"), move |_| {
                            let round = |round: usize| {
                                let round = round * self.threads + thread;
                                if !self.worker {
                                    return crash.round(device, round);
                                }
                                let answer = SimChannel::new(device, "answer");
                                requests.send((round, answer.clone()))?;
                                answer.receive()?.expect("answers are not closed")
                            };
                            (0..self.rounds).map(round).collect::<SimResult<Vec<bool>>>()
                        })
                    })
                    .collect();
                let mut rounds = Rounds::default();
                for thread in threads {
                    for right in thread.join().and_then(|rounds| rounds)? {
                        rounds.done += 1;
                        rounds.wrong += usize::from(!right);
                    }
                }
                requests.close()?;
                worker.map_or(Ok(()), |worker| worker.join().and_then(|ended| ended))?;
                Ok(rounds)
            })
        })?
    }
}

/// Rounds that ended by themselves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, serde::Serialize)]
pub struct Rounds {
    /// All of them.
    pub done: usize,
    /// Those with a wrong result.
    pub wrong: usize,
}

impl Crash {
    /// One round; whether its result is right.
    fn round(self, device: &SimDevice, round: usize) -> SimResult<bool> {
        match self {
            Crash::Arange => {
                let range = device.arange(256)?;
                let doubled = range.add(&range)?.download()?;
                Ok(doubled.data().iter().enumerate().all(|(i, x)| *x == 2.0 * i as f32))
            }
            Crash::Synchronise => {
                let x = device.upload(&Seeded::new(round as u64).normal(&[256]))?;
                let y = x.relu()?;
                device.synchronise()?;
                Ok(y.download()?.data().iter().all(|y| *y >= 0.0))
            }
            Crash::FirstUse => {
                let x = device.upload(&Seeded::new(round as u64).normal(&[16, 16]))?;
                let y = match round % 4 {
                    0 => x.relu()?,
                    1 => x.scale(2.0)?,
                    2 => x.add(&x)?,
                    _ => x.transpose(0, 1)?.contiguous()?,
                };
                Ok(y.download()?.shape() == [16, 16])
            }
            Crash::SharedKernel => {
                let mut seeded = Seeded::new(round as u64);
                let x = device.upload(&seeded.normal(&[4, 32]))?;
                let [weight, bias] = seeded.linear(32, 16);
                let y = x.linear(&device.upload(&weight)?, &device.upload(&bias)?)?;
                Ok(y.download()?.shape() == [4, 16])
            }
        }
    }
}
