//! One run of a workload through a [`Front`].
//!
//! The procedure is that of the tests of the fork that reported the race: in each iteration the main
//! thread uploads the inputs and computes the expected results one after another; then fresh threads
//! compute at once, each synchronises, and the main thread compares.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::cell::Cell;
use super::front::{Answers, Front};
use super::trial::Trial;
use super::workload::{Model, Workload};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimResult;
use crate::host::HostTensor;
use crate::simulation::{Handle, Thread};
use crate::stats::SimStats;
use crate::sync::{SimChannel, SimLock};
use crate::tensor::Tensor;
use crate::trace::Trace;

impl Trial {
    /// Runs a workload through a front.
    pub fn run(&self, workload: Workload, front: Front) -> Cell {
        let mut runs = workload.runs().into_iter();
        let first = runs.next().expect("every row has a run");
        let mut cell = self.run_one(first, front);
        for run in runs {
            cell.join(self.run_one(run, front));
        }
        cell
    }

    fn run_one(&self, workload: Workload, front: Front) -> Cell {
        let mut config = SimConfig::new(self.profile.clone())
            .seed(self.seed)
            .schedule(self.schedule.clone())
            .memo(self.memo.clone());
        config.traced = self.traced;
        let device = SimDevice::new(config);
        let run = Run {
            device: &device,
            trial: self,
            workload,
            weights: self.samples.weights(&workload),
        };
        let mut cell = Cell {
            right: BTreeSet::new(),
            iterations: self.iterations,
            worst: 0.0,
            ended_by: None,
            stats: SimStats::default(),
            trace: Trace::default(),
        };
        let ended = device.run(|main| run.iterate(main, front, &mut cell));
        cell.ended_by = match ended {
            Ok(result) => result.err(),
            Err(error) => Some(error),
        };
        cell.stats = device.stats();
        cell.trace = device.trace();
        cell
    }
}

/// One run on a device of its own.
struct Run<'a> {
    device: &'a SimDevice,
    trial: &'a Trial,
    workload: Workload,
    weights: Arc<Vec<HostTensor>>,
}

/// A request to a worker, with where its answer goes.
struct Request {
    input: HostTensor,
    answer: SimChannel<SimResult<Answer>>,
}

/// What a client gets.
enum Answer {
    Host(HostTensor),
    Device(Tensor),
}

impl Answer {
    fn into_host(self) -> SimResult<HostTensor> {
        match self {
            Answer::Host(host) => Ok(host),
            Answer::Device(tensor) => tensor.download(),
        }
    }
}

impl Run<'_> {
    /// All iterations, on the main thread.
    fn iterate(&self, main: &Thread, front: Front, cell: &mut Cell) -> SimResult<()> {
        match front {
            Front::Threads => self.direct(main, cell, |model, x| {
                let answer = model.forward(x)?;
                self.device.synchronise()?;
                Ok(answer)
            }),
            Front::Loop => self.looping(main, cell),
            Front::Lock => {
                let lock = SimLock::new(self.device, "one lock");
                self.direct(main, cell, |model, x| {
                    lock.with(|| {
                        let answer = model.forward(x)?;
                        self.device.synchronise()?;
                        Ok(answer)
                    })?
                })
            }
            Front::Queue { workers, answers } => self.queued(main, (workers, answers), cell),
        }
    }

    /// Threads that call the device themselves.
    fn direct(
        &self,
        main: &Thread,
        cell: &mut Cell,
        compute: impl Fn(&Model, &Tensor) -> SimResult<Tensor> + Sync,
    ) -> SimResult<()> {
        let model = self.workload.build(self.device, &self.weights)?;
        for iteration in 0..self.trial.iterations {
            let mut inputs = Vec::new();
            for thread in 0..self.trial.threads {
                inputs.push(self.device.upload(&self.input(iteration, thread))?);
            }
            self.device.synchronise()?;
            // The expected results, computed in this process by the main thread, also leave the
            // allocator's pools as the real test finds them. `.clone()` keeps each apart.
            let mut expected = Vec::new();
            for x in &inputs {
                expected.push(model.forward(x)?.copied()?);
            }
            self.device.synchronise()?;
            let answers: Vec<SimResult<Tensor>> = main.scope(|scope| {
                let mut threads: Vec<Handle<'_, SimResult<Tensor>>> = Vec::new();
                for (at, x) in inputs.iter().enumerate() {
                    let (model, compute) = (&model, &compute);
                    threads.push(scope.spawn(&format!("t{at}"), move |_| compute(model, x)));
                    if self.trial.staggered && main.yield_now().is_err() {
                        break;
                    }
                }
                let joined = threads.into_iter().map(Handle::join);
                joined.map(|answer| answer.and_then(|a| a)).collect()
            });
            let mut worst = 0.0f32;
            for (answer, expected) in answers.into_iter().zip(expected) {
                let (answer, expected) = (answer?.download()?, expected.download()?);
                worst = worst.max(answer.max_difference(&expected));
            }
            cell.count(iteration, worst, self.trial.tolerance);
        }
        Ok(())
    }

    /// Threads that call the device themselves, each in a loop of its own.
    fn looping(&self, main: &Thread, cell: &mut Cell) -> SimResult<()> {
        let model = self.workload.build(self.device, &self.weights)?;
        self.device.synchronise()?;
        let worsts: Vec<SimResult<Vec<f32>>> = main.scope(|scope| {
            let threads = (0..self.trial.threads).map(|thread| {
                let model = &model;
                let iterate = move |_: &Thread| {
                    let iteration = |at: usize| {
                        let answer = self.serve(model, &self.input(at, thread), Answers::Host)?;
                        let expected = self.expected(at, thread)?;
                        Ok(answer.into_host()?.max_difference(&expected))
                    };
                    (0..self.trial.iterations).map(iteration).collect()
                };
                scope.spawn(&format!("t{thread}"), iterate)
            });
            let threads: Vec<Handle<'_, SimResult<Vec<f32>>>> = threads.collect();
            let joined = threads.into_iter().map(Handle::join);
            joined.map(|worst| worst.and_then(|w| w)).collect()
        });
        let worsts = worsts.into_iter().collect::<SimResult<Vec<Vec<f32>>>>()?;
        for iteration in 0..self.trial.iterations {
            let of_all = worsts.iter().map(|worst| worst[iteration]);
            cell.count(iteration, of_all.fold(0.0, f32::max), self.trial.tolerance);
        }
        Ok(())
    }

    /// Threads that hand requests to workers.
    fn queued(
        &self,
        main: &Thread,
        (workers, answers): (usize, Answers),
        cell: &mut Cell,
    ) -> SimResult<()> {
        let requests: SimChannel<Request> = SimChannel::new(self.device, "requests");
        main.scope(|scope| {
            let workers: Vec<Handle<'_, SimResult<()>>> = (0..workers)
                .map(|at| {
                    let requests = requests.clone();
                    scope.spawn(&format!("worker{at}"), move |_| self.work(&requests, answers))
                })
                .collect();
            let result = self.submit_all(main, &requests, cell);
            requests.close()?;
            for worker in workers {
                worker.join().and_then(|ended| ended)?;
            }
            result
        })
    }

    /// A worker's life.
    fn work(&self, requests: &SimChannel<Request>, answers: Answers) -> SimResult<()> {
        let model = self.workload.build(self.device, &self.weights)?;
        while let Some(request) = requests.receive()? {
            let result = self.serve(&model, &request.input, answers);
            let failed = result.is_err();
            request.answer.send(result)?;
            if failed {
                break;
            }
        }
        Ok(())
    }

    fn serve(&self, model: &Model, input: &HostTensor, answers: Answers) -> SimResult<Answer> {
        let x = self.device.upload(input)?;
        let answer = model.forward(&x)?;
        drop(x);
        if answers != Answers::DeviceTooEarly {
            self.device.synchronise()?;
        }
        match answers {
            Answers::Host => answer.download().map(Answer::Host),
            Answers::Device | Answers::DeviceTooEarly => Ok(Answer::Device(answer)),
        }
    }

    fn submit_all(
        &self,
        main: &Thread,
        requests: &SimChannel<Request>,
        cell: &mut Cell,
    ) -> SimResult<()> {
        for iteration in 0..self.trial.iterations {
            let answers: Vec<SimResult<HostTensor>> = main.scope(|scope| {
                let clients = (0..self.trial.threads).map(|thread| {
                    let input = self.input(iteration, thread);
                    let client = move |_: &Thread| {
                        let answer = SimChannel::new(self.device, "answer");
                        requests.send(Request { input, answer: answer.clone() })?;
                        let answer = answer.receive()?.expect("answers are not closed");
                        answer.and_then(Answer::into_host)
                    };
                    scope.spawn(&format!("t{thread}"), client)
                });
                let clients: Vec<Handle<'_, _>> = clients.collect();
                let joined = clients.into_iter().map(Handle::join);
                joined.map(|answer| answer.and_then(|a| a)).collect()
            });
            let mut worst = 0.0f32;
            for (thread, answer) in answers.into_iter().enumerate() {
                let answer = answer?;
                let expected = self.expected(iteration, thread)?;
                worst = worst.max(answer.max_difference(&expected));
            }
            cell.count(iteration, worst, self.trial.tolerance);
        }
        Ok(())
    }

    fn input(&self, iteration: usize, thread: usize) -> HostTensor {
        let samples = &self.trial.samples;
        samples.input(&self.workload, (iteration, thread))
    }

    /// The expected result, computed by one thread on a device of its own.
    fn expected(&self, iteration: usize, thread: usize) -> SimResult<HostTensor> {
        let samples = &self.trial.samples;
        samples.expected(&self.workload, (iteration, thread), || {
            let config = SimConfig::new(self.trial.profile.clone());
            let device = SimDevice::new(config.memo(self.trial.memo.clone()));
            device.run(|_| {
                let alone = Run {
                    device: &device,
                    trial: self.trial,
                    workload: self.workload,
                    weights: Arc::clone(&self.weights),
                };
                let model = self.workload.build(&device, &self.weights)?;
                let input = self.input(iteration, thread);
                alone.serve(&model, &input, Answers::Host)?.into_host()
            })?
        })
    }
}
