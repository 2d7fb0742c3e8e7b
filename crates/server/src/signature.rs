//! What tensors a model takes and gives, as it declares them.

use crate::datatype::Datatype;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;

/// A tensor that a model declares; -1 in its shape is any number.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct TensorSpec {
    /// Its name.
    pub name: String,
    /// The type of its elements.
    pub datatype: Datatype,
    /// Its shape.
    pub shape: Vec<i64>,
}

impl TensorSpec {
    /// A tensor of this name, type and shape.
    pub fn new(name: impl Into<String>, datatype: Datatype, shape: impl Into<Vec<i64>>) -> Self {
        Self { name: name.into(), datatype, shape: shape.into() }
    }

    /// Whether a tensor is as declared, whatever its name.
    ///
    /// # Errors
    /// In what it differs.
    pub(crate) fn check(&self, tensor: &Tensor) -> Result<(), TensorError> {
        if tensor.datatype() != self.datatype {
            let text = format!("must be of type {}, not {}", self.datatype, tensor.datatype());
            return Err(TensorError(text));
        }
        let fits = |(&declared, &size): (&i64, &usize)| {
            declared == -1 || usize::try_from(declared).is_ok_and(|declared| declared == size)
        };
        let shape = tensor.shape();
        if shape.len() == self.shape.len() && self.shape.iter().zip(shape).all(fits) {
            return Ok(());
        }
        let text = format!("must have the shape {:?}, not {shape:?}", self.shape);
        Err(TensorError(text))
    }
}

/// What tensors a model takes and gives.
///
/// What is not declared is not checked: any names, types and shapes are taken, or given.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Signature {
    inputs: Vec<TensorSpec>,
    outputs: Vec<TensorSpec>,
    batches: bool,
}

impl Signature {
    /// Of a model whose batches are rows: the first dimension of each tensor counts them, and is
    /// declared as -1. Rows of many calls run together. Calls of undeclared inputs that have no
    /// number of rows in common run by themselves, as a whole.
    ///
    /// # Errors
    /// [`TensorError`]: two tensors of one name, or a shape that cannot be.
    pub fn rows(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Result<Self, TensorError> {
        Self { inputs, outputs, batches: true }.checked()
    }

    /// Of a model that is given one call at a time, as a whole, whatever its shapes.
    ///
    /// # Errors
    /// As [`rows`](Self::rows).
    pub fn whole(inputs: Vec<TensorSpec>, outputs: Vec<TensorSpec>) -> Result<Self, TensorError> {
        Self { inputs, outputs, batches: false }.checked()
    }

    /// The tensors that it takes; empty where they are not declared.
    pub fn inputs(&self) -> &[TensorSpec] {
        &self.inputs
    }

    /// The tensors that it gives; empty where they are not declared.
    pub fn outputs(&self) -> &[TensorSpec] {
        &self.outputs
    }

    /// Whether its batches are rows.
    pub fn batches(&self) -> bool {
        self.batches
    }

    fn checked(self) -> Result<Self, TensorError> {
        for (kind, specs) in [("input", &self.inputs), ("output", &self.outputs)] {
            for (index, spec) in specs.iter().enumerate() {
                let wrong =
                    |text: &str| Err(TensorError(format!("the {kind} {:?} {text}", spec.name)));
                if spec.name.is_empty() {
                    return wrong("needs a name");
                }
                if specs[..index].iter().any(|other| other.name == spec.name) {
                    return wrong("is declared twice");
                }
                if spec.shape.iter().any(|&size| size < -1) {
                    return wrong("has a size in its shape that is neither -1, any, nor a number");
                }
                if self.batches && spec.shape.first() != Some(&-1) {
                    return wrong(
                        "must have -1 as its first size: it counts the rows of a batch, which are \
                         of any number",
                    );
                }
            }
        }
        Ok(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(name: &str, shape: &[i64]) -> TensorSpec {
        TensorSpec::new(name, Datatype::Fp32, shape)
    }

    #[test]
    fn what_cannot_be_declared_is_named() {
        let rows = |inputs| Signature::rows(inputs, Vec::new()).map(drop).map_err(|e| e.0);
        assert_eq!(rows(vec![spec("x", &[-1, 4]), spec("y", &[-1])]), Ok(()));
        for (inputs, said) in [
            (vec![spec("x", &[-1]), spec("x", &[-1])], "the input \"x\" is declared twice"),
            (vec![spec("x", &[4])], "the input \"x\" must have -1 as its first size"),
            (vec![spec("x", &[])], "the input \"x\" must have -1 as its first size"),
            (vec![spec("x", &[-1, -2])], "the input \"x\" has a size"),
            (vec![spec("", &[-1])], "the input \"\" needs a name"),
        ] {
            let message = rows(inputs).unwrap_err();
            assert!(message.starts_with(said), "{message}");
        }
        assert!(Signature::whole(vec![spec("x", &[4])], vec![spec("y", &[])]).is_ok());
    }

    #[test]
    fn types_and_shapes_are_compared() {
        let declared = spec("x", &[-1, 2]);
        let check = |datatype, shape: &[usize], bytes| {
            declared.check(&Tensor::new("x", datatype, shape, vec![0; bytes]).unwrap())
        };
        assert_eq!(check(Datatype::Fp32, &[3, 2], 24), Ok(()));
        let message = check(Datatype::Fp64, &[3, 2], 48).unwrap_err().0;
        assert_eq!(message, "must be of type FP32, not FP64");
        for shape in [&[2, 3][..], &[6], &[3, 2, 1]] {
            assert!(check(Datatype::Fp32, shape, 24).unwrap_err().0.contains("shape [-1, 2], not"));
        }
    }
}
