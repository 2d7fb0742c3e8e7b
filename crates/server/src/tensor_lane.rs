//! A loaded model of tensors: its lane, and how a call's tensors become rows and rows tensors.

use std::future::ready;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use onelane::Engine;

use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::inputs::name;
use crate::lane::Lane;
use crate::row::Row;
use crate::signature::Signature;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;
use crate::work::{Queue, Tensors, Work};

/// Looks at an input beyond what the signature says.
pub(crate) type Check = Arc<dyn Fn(&Tensor) -> Result<(), TensorError> + Send + Sync>;

/// A loaded model of tensors.
pub(crate) struct TensorLane<E: Engine<Item = Row, Output = Row>> {
    pub(crate) lane: Lane<E>,
    pub(crate) signature: Arc<Signature>,
    pub(crate) check: Check,
}

impl<E: Engine<Item = Row, Output = Row>> Work for TensorLane<E> {
    fn queue(&self) -> &dyn Queue {
        &self.lane
    }

    fn predict(&self, tensors: Tensors, call: Call) -> BoxFuture<'_, Result<Vec<Tensor>, Failure>> {
        Box::pin(self.run_call(tensors, call))
    }

    /// There is nothing to try: the server does not know what inputs make sense.
    fn self_check(&self) -> BoxFuture<'_, Result<(), String>> {
        Box::pin(ready(Ok(())))
    }
}

impl<E: Engine<Item = Row, Output = Row>> TensorLane<E> {
    async fn run_call(&self, tensors: Tensors, call: Call) -> Result<Vec<Tensor>, Failure> {
        let Tensors { inputs, outputs: wanted, max_rows } = tensors;
        check_wanted(&wanted, self.signature.outputs().iter().map(|spec| spec.name.as_str()))?;
        let inputs = self.ordered(inputs)?;
        for input in &inputs {
            (self.check)(input).map_err(|error| malformed(error, input.name()))?;
        }
        let rows = self.rows(inputs, max_rows)?;
        let whole = rows.iter().any(Row::is_whole);
        let part = |index| if whole { "inputs".to_owned() } else { name("row", index) };
        let answers = self.lane.answer(rows, call, part).await?;
        let engine = |message: String| Failure::new(Kind::Engine, message);
        let first = &answers[0];
        if let Some(index) = answers.iter().position(|row| !row.is_like(first)) {
            let message = "has outputs of other names, types or shapes than row[0]";
            return Err(engine(message.to_owned()).at(name("row", index)));
        }
        let outputs = Row::gather(&answers);
        self.check_outputs(&outputs).map_err(engine)?;
        select(outputs, wanted)
    }

    /// The inputs in the order of the signature, or of their names; each as it is declared.
    fn ordered(&self, mut inputs: Vec<Tensor>) -> Result<Vec<Tensor>, Failure> {
        for (index, input) in inputs.iter().enumerate() {
            if inputs[..index].iter().any(|other| other.name() == input.name()) {
                return Err(Failure::malformed("is given twice").at(input.name()));
            }
        }
        let declared = self.signature.inputs();
        if declared.is_empty() {
            if inputs.is_empty() {
                return Err(Failure::malformed("must not be empty").at("inputs"));
            }
            inputs.sort_by(|one, other| one.name().cmp(other.name()));
            return Ok(inputs);
        }
        let names =
            || declared.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(", ");
        let mut ordered = Vec::with_capacity(declared.len());
        for spec in declared {
            let at = inputs.iter().position(|input| input.name() == spec.name);
            let input = at.map(|at| inputs.swap_remove(at)).ok_or_else(|| {
                let message = format!("is missing: the model takes {}", names());
                Failure::malformed(message).at(&spec.name)
            })?;
            spec.check(&input).map_err(|error| malformed(error, &spec.name))?;
            ordered.push(input);
        }
        match inputs.first() {
            None => Ok(ordered),
            Some(other) => {
                let message = format!("is no input of the model, which takes {}", names());
                Err(Failure::malformed(message).at(other.name()))
            }
        }
    }

    fn rows(&self, inputs: Vec<Tensor>, max_rows: usize) -> Result<Vec<Row>, Failure> {
        if !self.signature.batches() {
            return Ok(vec![Row::whole(inputs)]);
        }
        let count = inputs.first().and_then(|input| input.shape().first().copied());
        let same = inputs.iter().all(|input| input.shape().first().copied() == count);
        // What undeclared inputs are is known by looking at them.
        if self.signature.inputs().is_empty() && (count.is_none() || !same) {
            return Ok(vec![Row::whole(inputs)]);
        }
        let at = inputs.first().map_or("inputs", Tensor::name);
        match count {
            Some(0) => return Err(Failure::malformed("must have at least one row").at(at)),
            Some(rows) if same && rows > max_rows => {
                let message = format!("{rows} rows are more than the {max_rows} of a call");
                return Err(Failure::malformed(message).at(at));
            }
            _ => {}
        }
        Row::all(inputs).map_err(|error| Failure::malformed(error.0))
    }

    /// Whether the outputs are as declared.
    fn check_outputs(&self, outputs: &[Tensor]) -> Result<(), String> {
        let declared = self.signature.outputs();
        if declared.is_empty() {
            return Ok(());
        }
        for spec in declared {
            let given = outputs.iter().find(|output| output.name() == spec.name);
            let given =
                given.ok_or_else(|| format!("the engine gave no output {:?}", spec.name))?;
            let told = |error| format!("the engine's output {:?} {error}", spec.name);
            spec.check(given).map_err(told)?;
        }
        let known = |output: &Tensor| declared.iter().any(|spec| spec.name == output.name());
        match outputs.iter().find(|output| !known(output)) {
            None => Ok(()),
            Some(other) => Err(format!("the engine gave an output {:?} too many", other.name())),
        }
    }
}

fn malformed(error: TensorError, part: &str) -> Failure {
    Failure::malformed(error.0).at(part)
}

/// Whether there are the outputs that are asked for, as far as they are declared.
fn check_wanted<'a>(
    wanted: &[String],
    declared: impl Iterator<Item = &'a str>,
) -> Result<(), Failure> {
    let declared: Vec<&str> = declared.collect();
    for (index, name) in wanted.iter().enumerate() {
        if !declared.is_empty() && !declared.contains(&name.as_str()) {
            return Err(unknown_output(name, &declared));
        }
        if wanted[..index].contains(name) {
            let message = format!("{name:?} is asked for twice");
            return Err(Failure::malformed(message).at("outputs"));
        }
    }
    Ok(())
}

fn unknown_output(name: &str, given: &[&str]) -> Failure {
    let message = format!("the model gives {}, not {name:?}", given.join(", "));
    Failure::malformed(message).at("outputs")
}

fn select(mut outputs: Vec<Tensor>, wanted: Vec<String>) -> Result<Vec<Tensor>, Failure> {
    if wanted.is_empty() {
        return Ok(outputs);
    }
    let mut selected = Vec::with_capacity(wanted.len());
    for name in wanted {
        let Some(at) = outputs.iter().position(|output| output.name() == name) else {
            let given: Vec<&str> = outputs.iter().chain(&selected).map(Tensor::name).collect();
            return Err(unknown_output(&name, &given));
        };
        selected.push(outputs.remove(at));
    }
    Ok(selected)
}
