//! [`Samples`]: host weights, inputs and expected results of workloads, made once for many runs.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use super::workload::Workload;
use crate::error::SimResult;
use crate::host::HostTensor;

/// What is known of one workload, whatever its packing: all packings of a row give the same.
type Key = (String, usize, usize);
/// One input of a workload.
type Draw = (Key, usize, usize);

/// Weights, inputs and expected results of workloads, shared by any number of runs.
#[derive(Clone, Default)]
pub struct Samples(Arc<Mutex<Known>>);

#[derive(Default)]
struct Known {
    weights: BTreeMap<Key, Arc<Vec<HostTensor>>>,
    inputs: BTreeMap<Draw, HostTensor>,
    expected: BTreeMap<Draw, HostTensor>,
}

impl fmt::Debug for Samples {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Samples").finish_non_exhaustive()
    }
}

fn key(workload: &Workload) -> Key {
    let row = format!("{:?}", workload.row);
    (row, workload.width, workload.operation)
}

fn draw(workload: &Workload, (iteration, thread): (usize, usize)) -> Draw {
    let iteration = if workload.has_new_inputs() { iteration } else { 0 };
    (key(workload), iteration, thread)
}

impl Samples {
    pub(super) fn weights(&self, workload: &Workload) -> Arc<Vec<HostTensor>> {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let weights = known.weights.entry(key(workload));
        Arc::clone(weights.or_insert_with(|| Arc::new(workload.weights())))
    }

    pub(super) fn input(&self, workload: &Workload, at: (usize, usize)) -> HostTensor {
        let mut known = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let draw = draw(workload, at);
        let (iteration, thread) = (draw.1, draw.2);
        known.inputs.entry(draw).or_insert_with(|| workload.input(iteration, thread)).clone()
    }

    pub(super) fn expected(
        &self,
        workload: &Workload,
        at: (usize, usize),
        compute: impl FnOnce() -> SimResult<HostTensor>,
    ) -> SimResult<HostTensor> {
        let draw = draw(workload, at);
        let known = || self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(expected) = known().expected.get(&draw) {
            return Ok(expected.clone());
        }
        let expected = compute()?;
        known().expected.insert(draw, expected.clone());
        Ok(expected)
    }
}
