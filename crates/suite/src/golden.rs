//! [`Golden`]: the inputs of a run and the results that they must give.

use std::collections::HashMap;
use std::sync::Arc;

use crate::case::{Case, Draw};
use crate::host::HostTensor;
use crate::ops::{OpResult, Ops};

/// A draw's inputs and golden result.
pub(crate) struct Sample {
    pub(crate) inputs: Arc<Vec<HostTensor>>,
    pub(crate) result: HostTensor,
}

impl Sample {
    /// Elements of the inputs and of the result.
    pub(crate) fn elements(&self) -> usize {
        let inputs = self.inputs.iter().map(|input| input.data().len());
        inputs.sum::<usize>() + self.result.data().len()
    }
}

/// Every draw of a run with its golden result, computed one at a time by one thread.
pub(crate) struct Golden(HashMap<Draw, Sample>);

impl Golden {
    /// Computes the golden results that `threads` threads need in `iterations` iterations.
    pub(crate) fn compute<O: Ops>(
        ops: &O,
        case: &Case,
        threads: usize,
        iterations: usize,
        mut step: impl FnMut(),
    ) -> OpResult<Self> {
        let model = Model::upload(ops, case)?;
        let mut samples = HashMap::new();
        for thread in 0..threads {
            for iteration in 0..iterations {
                let draw = case.draw(thread, iteration);
                if samples.contains_key(&draw) {
                    continue;
                }
                let inputs = Arc::new(case.inputs(draw));
                let result = model.run(ops, &inputs)?;
                samples.insert(draw, Sample { inputs, result });
                step();
            }
        }
        Ok(Self(samples))
    }

    /// The most elements, of inputs and result together, that a draw has.
    pub(crate) fn greatest_elements(&self) -> usize {
        self.0.values().map(Sample::elements).max().unwrap_or(0)
    }

    /// The sample of a draw of the run that this was computed for.
    pub(crate) fn sample(&self, draw: Draw) -> &Sample {
        self.0.get(&draw).expect("golden results cover every thread and iteration of the run")
    }
}

/// A case's program with its weights on a device.
pub(crate) struct Model<O: Ops> {
    pub(crate) case: Case,
    pub(crate) weights: Vec<O::Tensor>,
}

impl<O: Ops> Model<O> {
    /// Draws the weights and copies them to the device.
    pub(crate) fn upload(ops: &O, case: &Case) -> OpResult<Self> {
        let weights = upload(ops, &case.weights())?;
        Ok(Self { case: *case, weights })
    }

    /// Uploads, computes, synchronises, downloads.
    pub(crate) fn run(&self, ops: &O, inputs: &[HostTensor]) -> OpResult<HostTensor> {
        self.run_uploaded(ops, &upload(ops, inputs)?)
    }

    /// Computes, synchronises, downloads.
    pub(crate) fn run_uploaded(&self, ops: &O, inputs: &[O::Tensor]) -> OpResult<HostTensor> {
        let result = self.case.program.forward(ops, &self.weights, inputs)?;
        ops.synchronise()?;
        ops.download(&result)
    }
}

/// Copies host tensors to the device.
pub(crate) fn upload<O: Ops>(ops: &O, tensors: &[HostTensor]) -> OpResult<Vec<O::Tensor>> {
    tensors.iter().map(|tensor| ops.upload(tensor)).collect()
}
