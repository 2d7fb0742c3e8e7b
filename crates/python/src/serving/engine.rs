//! The engine of a served model of texts: a batch is one call into Python, here or in a child.

use std::sync::Arc;

use onelane::{BatchItem, Engine, EngineError};
use onelane_tokeniser::{Buckets, TokenisedText};
use pyo3::intern;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::engine::{PyEngine, PyFactory, interpreter_ending};
use crate::failure::engine_error;
use crate::interpreter::attach_worker;
use crate::item::{Item, Payload};
use crate::turnstile::GilTurnstile;

/// What a row begins with: how many tokens it has, and where the second segment kind begins.
const HEAD: usize = 2;

/// How batches become calls of a model.
pub(crate) struct Calls {
    pub(crate) factory: PyFactory,
    /// `pack(table, rows, columns)` makes the model's request of a table of 32-bit numbers, one row
    /// a text: its head, and its ids up to the longest text's; `unpack(response)` returns the bytes
    /// of its 32-bit floats, and how many there are for a text.
    pub(crate) bridge: Py<PyAny>,
    pub(crate) buckets: Buckets,
    /// Whether rows are filled up to their bucket's length and to a fixed set of row counts.
    pub(crate) pads: bool,
    /// What rows are filled with.
    pub(crate) pad_id: u32,
}

/// Runs batches of texts through a model in Python.
pub(crate) struct TextEngine {
    python: PyEngine,
    calls: Arc<Calls>,
    padded_cost: usize,
}

impl TextEngine {
    /// On the worker.
    pub(crate) fn build(calls: &Arc<Calls>) -> Result<Self, EngineError> {
        let python = PyEngine::build(&calls.factory, &GilTurnstile::new())?;
        Ok(Self { python, calls: Arc::clone(calls), padded_cost: 0 })
    }

    /// Runs texts of one bucket in one call of this shape.
    fn run(
        &mut self,
        texts: &[TokenisedText],
        (rows, length): (usize, usize),
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let table = table(texts, (rows, length), self.calls.pad_id);
        let request = attached(|py| {
            let table = PyBytes::new(py, &table);
            let arguments = (table, rows, HEAD + length);
            self.calls.bridge.bind(py).call_method1(intern!(py, "pack"), arguments)
        })?;
        let item = Item::new(Payload::Prepared(request), 0, 1);
        let mut answers = self.python.infer(std::slice::from_ref(&item))?;
        let (numbers, width) = attached(|py| {
            let answer = answers.pop().map_or_else(|| Ok(py.None()), |one| one.into_result(py))?;
            self.calls.bridge.bind(py).call_method1(intern!(py, "unpack"), (answer,))
        })
        .and_then(|unpacked| attached_read(&unpacked))?;
        if width == 0 || numbers.len() != rows * width {
            let given = numbers.len();
            let text = format!("the model returned {given} numbers for {rows} texts");
            return Err(EngineError::failed(text));
        }
        Ok(numbers.chunks(width).take(texts.len()).map(<[f32]>::to_vec).collect())
    }

    fn run_all(&mut self, batch: &[TokenisedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        let longest = batch.iter().map(BatchItem::cost).max().unwrap_or(0);
        let Some(first) = batch.first() else { return Ok(Vec::new()) };
        let shapes = if self.calls.pads {
            let buckets = &self.calls.buckets;
            let plan = buckets.plan(batch.len(), first.bucket(), buckets.slack());
            plan.into_iter().map(|(texts, shape)| (texts, (shape.rows, shape.length))).collect()
        } else {
            vec![(batch.len(), (batch.len(), longest))]
        };
        self.padded_cost = shapes.iter().map(|(_, (rows, length))| rows * length).sum();
        let (mut left, mut all) = (batch, Vec::with_capacity(batch.len()));
        for (count, shape) in shapes {
            let (texts, rest) = left.split_at(count);
            all.extend(self.run(texts, shape)?);
            left = rest;
        }
        Ok(all)
    }
}

impl Engine for TextEngine {
    type Item = TokenisedText;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[TokenisedText]) -> Result<Vec<Vec<f32>>, EngineError> {
        if self.python.is_child() {
            return self.run_all(batch);
        }
        // Once for the whole batch: what attaches again further down is attached already.
        attach_worker(|_| self.run_all(batch)).unwrap_or_else(|| Err(interpreter_ending()))
    }

    fn delivered(&mut self) {
        self.python.delivered();
    }

    fn idempotent(&self) -> bool {
        self.python.idempotent()
    }

    fn padded_cost(&self, _batch: &[TokenisedText]) -> usize {
        self.padded_cost
    }
}

fn attached(
    call: impl FnOnce(Python<'_>) -> PyResult<Bound<'_, PyAny>>,
) -> Result<Py<PyAny>, EngineError> {
    attach_worker(|py| call(py).map(Bound::unbind).map_err(|error| engine_error(py, error)))
        .unwrap_or_else(|| Err(interpreter_ending()))
}

fn attached_read(unpacked: &Py<PyAny>) -> Result<(Vec<f32>, usize), EngineError> {
    attach_worker(|py| {
        let read = || -> PyResult<(Vec<f32>, usize)> {
            let (bytes, width): (Bound<'_, PyBytes>, usize) = unpacked.bind(py).extract()?;
            let number =
                |chunk: &[u8]| f32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
            Ok((bytes.as_bytes().chunks_exact(4).map(number).collect(), width))
        };
        read().map_err(|error| engine_error(py, error))
    })
    .unwrap_or_else(|| Err(interpreter_ending()))
}

/// The texts as a table, row by row. A row without a text has one token: a row of none would have
/// no attention to divide.
fn table(texts: &[TokenisedText], (rows, length): (usize, usize), pad: u32) -> Vec<u8> {
    let mut table = Vec::with_capacity(rows * (HEAD + length) * 4);
    let mut put = |number: u32| table.extend_from_slice(&number.to_ne_bytes());
    for row in 0..rows {
        let (ids, second) = texts.get(row).map_or((&[][..], 1), |t| (t.ids(), t.second()));
        // Lengths are far below the limit of 32 bits: the tokeniser has one.
        put(ids.len().max(1) as u32);
        put(second as u32);
        (0..length).for_each(|at| put(ids.get(at).copied().unwrap_or(pad)));
    }
    table
}
