//! The parent's half of an isolated queue's engine: it has Python pack a batch, sends it to the child
//! and has Python unpack what comes back. The copying and the waiting are done detached.

use std::sync::Arc;

use onelane::{Engine, EngineError};
use onelane_isolate::{Isolated, Supervisor, WireError};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyList;

use crate::child::ChildEngine;
use crate::failure::engine_error;
use crate::interpreter::attach_worker;
use crate::item::{Answer, Failure, Item, Payload};
use crate::parcel::{Parcel, Received, interpreter_ending, read_letters};

type Factory = dyn Fn() -> Result<Isolated<ChildEngine>, EngineError> + Send + Sync;

/// How engines of one isolated queue are made.
pub(crate) struct RemoteFactory {
    /// `None` in `drop` alone.
    factory: Option<Box<Factory>>,
    /// `pack(inputs) -> (letters, failed)`, `pack_plain(tensors, rows, modes) -> letters` and
    /// `unpack(letters) -> responses`.
    codec: Arc<Py<PyAny>>,
}

impl RemoteFactory {
    pub(crate) fn new(supervisor: &Supervisor, codec: Py<PyAny>) -> Self {
        let factory = Isolated::<ChildEngine>::factory(supervisor);
        Self { factory: Some(Box::new(factory)), codec: Arc::new(codec) }
    }

    pub(crate) fn build(&self) -> Result<Remote, EngineError> {
        let factory = self.factory.as_ref().expect("it is taken in drop alone");
        Ok(Remote { isolated: factory()?, codec: Arc::clone(&self.codec) })
    }
}

impl Drop for RemoteFactory {
    fn drop(&mut self) {
        // It waits for children, whose output is handed to Python code meanwhile.
        let mut factory = self.factory.take();
        let detached = Python::try_attach(|py| py.detach(|| drop(factory.take())));
        if detached.is_none() {
            drop(factory);
        }
    }
}

/// The engine of an isolated queue.
pub(crate) struct Remote {
    isolated: Isolated<ChildEngine>,
    codec: Arc<Py<PyAny>>,
}

/// A batch that is ready to be sent.
struct Packed {
    parcels: Vec<Parcel>,
    /// For each request of the batch, how it will be answered.
    answers: Vec<Planned>,
}

enum Planned {
    /// It was cancelled.
    Nothing,
    /// By the child.
    Child,
    /// It could not be packed.
    Failed(Py<PyAny>),
}

impl Remote {
    /// Runs a batch; `None` when the interpreter is ending.
    pub(crate) fn run(&mut self, batch: &[Item]) -> Option<Result<Vec<Answer>, EngineError>> {
        let packed = attach_worker(|py| {
            self.pack(py, batch).map_err(|error| {
                finish_single(py, batch);
                engine_error(py, error)
            })
        })?;
        // What could not be packed is Python's: it is dropped attached, below.
        let Packed { parcels, answers } = match packed {
            Ok(packed) => packed,
            Err(error) => return Some(Err(error)),
        };
        if parcels.is_empty() {
            return attach_worker(|py| answer(py, &self.codec, Vec::new(), answers, batch));
        }
        let mut answers = Some(answers);
        // The interpreter is entered once for the answer: who comes back to it waits for others.
        let ran = self.isolated.infer_with(&parcels, |count, from| {
            let read = attach_worker(|py| {
                let letters = read_letters(py, count, from)?;
                if from.remaining() > 0 {
                    // A lie: the child is lost, and the batch, which is still whole, may go again.
                    return Err(WireError::Invalid("bytes are left over".to_owned()));
                }
                Parcel::release(py, &parcels);
                let planned = answers.take().unwrap_or_default();
                Ok(answer(py, &self.codec, letters, planned, batch))
            });
            read.unwrap_or_else(|| Err(interpreter_ending()))
        });
        match ran {
            Ok(answered) => Some(answered),
            Err(error) => attach_worker(|py| {
                drop((parcels, answers));
                finish_single(py, batch);
                Err(error)
            }),
        }
    }

    fn pack(&self, py: Python<'_>, batch: &[Item]) -> PyResult<Packed> {
        let mut answers = Vec::with_capacity(batch.len());
        let mut live = Vec::with_capacity(batch.len());
        for item in batch {
            let payload = item.start(py);
            answers.push(if payload.is_some() { Planned::Child } else { Planned::Nothing });
            live.extend(payload);
        }
        let codec = self.codec.bind(py);
        let mut count = live.len();
        let letters = match live.first() {
            None => return Ok(Packed { parcels: Vec::new(), answers }),
            Some(Payload::Plain(first)) if live.iter().all(Payload::is_plain) => {
                let modes = first.kind.modes.clone_ref(py);
                let plain: Vec<_> = live.into_iter().filter_map(Payload::into_plain).collect();
                let rows = PyList::new(py, plain.iter().map(|one| one.rows))?;
                let tensors = PyList::new(py, plain.into_iter().map(|one| one.tensor))?;
                codec.call_method1(intern!(py, "pack_plain"), (tensors, rows, modes))?
            }
            Some(_) => {
                let inputs = PyList::empty(py);
                for payload in live {
                    match payload {
                        Payload::Prepared(input) => inputs.append(input)?,
                        Payload::Plain(one) => {
                            let modes = one.kind.modes.clone_ref(py);
                            let arguments = (one.tensor, one.rows, modes);
                            inputs.append(codec.call_method1(intern!(py, "plain"), arguments)?)?;
                        }
                    }
                }
                let packed = codec.call_method1(intern!(py, "pack"), (inputs,))?;
                let (letters, failed): (Bound<'_, PyAny>, Vec<(usize, Py<PyAny>)>) =
                    packed.extract()?;
                count -= failed.len();
                let sent = answers.iter().enumerate();
                let sent = sent.filter(|(_, answer)| matches!(answer, Planned::Child));
                let sent: Vec<usize> = sent.map(|(at, _)| at).collect();
                for (at, error) in failed {
                    answers[sent[at]] = Planned::Failed(error);
                }
                letters
            }
        };
        Ok(Packed { parcels: Parcel::batch(&letters, count)?, answers })
    }

    pub(crate) fn delivered(&mut self) {
        self.isolated.delivered();
    }

    pub(crate) fn idempotent(&self) -> bool {
        self.isolated.idempotent()
    }

    pub(crate) fn padded_cost(&self) -> usize {
        self.isolated.padded_cost(&[])
    }
}

/// The answers to a batch, of the letters that have come.
fn answer(
    py: Python<'_>,
    codec: &Py<PyAny>,
    letters: Vec<Received>,
    planned: Vec<Planned>,
    batch: &[Item],
) -> Result<Vec<Answer>, EngineError> {
    match unpack(py, codec, letters, planned) {
        Ok(answers) => {
            batch.iter().for_each(|item| item.finish(py));
            Ok(answers)
        }
        Err(error) => {
            finish_single(py, batch);
            Err(engine_error(py, error))
        }
    }
}

fn unpack(
    py: Python<'_>,
    codec: &Py<PyAny>,
    letters: Vec<Received>,
    planned: Vec<Planned>,
) -> PyResult<Vec<Answer>> {
    let responses = match letters.is_empty() {
        true => PyList::empty(py),
        false => {
            let unpacked = codec.bind(py).call_method1(intern!(py, "unpack"), (letters,))?;
            unpacked.cast_into::<PyList>()?
        }
    };
    let mut responses = responses.iter();
    let mut short = 0;
    let mut answers = Vec::with_capacity(planned.len());
    for planned in planned {
        answers.push(match planned {
            Planned::Nothing => Answer::none(),
            Planned::Failed(error) => Answer::new(Py::new(py, Failure::of(error))?.into_any()),
            Planned::Child => match responses.next() {
                Some(response) => Answer::new(response.unbind()),
                None => {
                    short += 1;
                    Answer::none()
                }
            },
        });
    }
    let more = responses.count();
    if short + more > 0 {
        let text = format!("the isolated worker sent {more} responses too many, {short} too few");
        return Err(pyo3::exceptions::PyRuntimeError::new_err(text));
    }
    Ok(answers)
}

/// The request of a batch of one is not run again.
fn finish_single(py: Python<'_>, batch: &[Item]) {
    if let [item] = batch {
        item.finish(py);
    }
}
