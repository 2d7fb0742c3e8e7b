//! The engine of a served model of texts: a batch is one call into Python, here or in a child.

use std::sync::Arc;

use onelane::{BatchItem, Engine, EngineError};
use onelane_tokeniser::{Buckets, TokenisedText};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use super::calls::{Calls, attached_once, read};
use crate::engine::PyEngine;

/// What a row begins with: how many tokens it has, and where the second segment kind begins.
const HEAD: usize = 2;

/// How batches of texts become calls of a model.
pub(super) struct TextCalls {
    /// `pack(table, rows, columns)` makes the model's request of a table of 32-bit numbers, one row
    /// a text: its head, and its ids up to the longest text's; `unpack(response)` returns the bytes
    /// of its 32-bit floats, and how many there are for a text.
    pub(super) calls: Calls,
    pub(super) buckets: Buckets,
    /// Whether rows are filled up to their bucket's length and to a fixed set of row counts.
    pub(super) pads: bool,
    /// What rows are filled with.
    pub(super) pad_id: u32,
}

/// Runs batches of texts through a model in Python.
pub(super) struct TextEngine {
    python: PyEngine,
    calls: Arc<TextCalls>,
    padded_cost: usize,
}

impl TextEngine {
    /// On the worker.
    pub(super) fn build(calls: &Arc<TextCalls>) -> Result<Self, EngineError> {
        let python = calls.calls.build()?;
        Ok(Self { python, calls: Arc::clone(calls), padded_cost: 0 })
    }

    /// Runs texts of one bucket in one call of this shape.
    fn run(
        &mut self,
        texts: &[TokenisedText],
        (rows, length): (usize, usize),
    ) -> Result<Vec<Vec<f32>>, EngineError> {
        let table = table(texts, (rows, length), self.calls.pad_id);
        let answer = self.calls.calls.run(&mut self.python, |py| {
            (PyBytes::new(py, &table), rows, HEAD + length).into_pyobject(py)
        });
        let (numbers, width) = read(answer?, |unpacked| {
            let (bytes, width): (Bound<'_, PyBytes>, usize) = unpacked.extract()?;
            let numbers = bytes.as_bytes().as_chunks::<4>().0;
            Ok((numbers.iter().map(|&number| f32::from_ne_bytes(number)).collect(), width))
        })?;
        let numbers: Vec<f32> = numbers;
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
        attached_once(self.python.is_child(), || self.run_all(batch))
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
