//! A row of a call's tensors: the request of a model of tensors, and the response to one.
//!
//! The rows of a call share its tensors: no row has memory of its own until a batch is gathered.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use onelane::{BatchItem, EngineError};

use crate::datatype::Datatype;
use crate::tensor::Tensor;
use crate::tensor_error::TensorError;

/// What rows must have in common to share a batch: names, types and trailing shapes.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Kind {
    columns: Vec<(String, Datatype, Vec<usize>)>,
    /// The number of a call that runs by itself.
    alone: Option<u64>,
}

/// A row of a call's tensors, or the call as a whole where the model does not batch.
#[derive(Clone, Debug)]
pub struct Row {
    tensors: Arc<[Tensor]>,
    kind: Arc<Kind>,
    index: usize,
}

impl Row {
    /// The rows of tensors: their first dimension counts them.
    ///
    /// # Errors
    /// [`TensorError`]: no tensor, one without a dimension, or first dimensions that differ.
    pub fn all(tensors: Vec<Tensor>) -> Result<Vec<Self>, TensorError> {
        let Some(count) = common(&tensors)? else {
            return Err(TensorError("there is no tensor".to_owned()));
        };
        let kind = Arc::new(Kind { columns: columns(&tensors), alone: None });
        let tensors: Arc<[Tensor]> = tensors.into();
        let row = |index| Self { tensors: Arc::clone(&tensors), kind: Arc::clone(&kind), index };
        Ok((0..count).map(row).collect())
    }

    /// Tensors that stay together and run by themselves, whatever their shapes.
    pub fn whole(tensors: Vec<Tensor>) -> Self {
        static CALLS: AtomicU64 = AtomicU64::new(0);
        let alone = Some(CALLS.fetch_add(1, Ordering::Relaxed));
        Self {
            kind: Arc::new(Kind { columns: Vec::new(), alone }),
            tensors: tensors.into(),
            index: 0,
        }
    }

    /// Whether it is a call as a whole.
    pub fn is_whole(&self) -> bool {
        self.kind.alone.is_some()
    }

    /// The tensors of rows, which have equal batch keys, put together in order.
    pub fn gather(rows: &[Self]) -> Vec<Tensor> {
        match rows {
            [] => Vec::new(),
            [one] if one.is_whole() => one.tensors.to_vec(),
            [first, ..] => {
                let column = |(at, tensor): (usize, &Tensor)| {
                    tensor.of_rows(rows.iter().map(|row| row.tensors[at].row(row.index)))
                };
                first.tensors.iter().enumerate().map(column).collect()
            }
        }
    }

    /// The outputs of a batch, given back to its rows.
    ///
    /// # Errors
    /// [`EngineError`]: an output does not have as many rows as the batch.
    pub fn scatter(rows: &[Self], outputs: Vec<Tensor>) -> Result<Vec<Self>, EngineError> {
        if let [one] = rows
            && one.is_whole()
        {
            return Ok(vec![Self::whole(outputs)]);
        }
        let wrong = outputs.iter().find(|output| output.shape().first() != Some(&rows.len()));
        if let Some(output) = wrong {
            let text = format!(
                "the output {} has the shape {:?} for {} rows: its first dimension must be theirs",
                output.name(),
                output.shape(),
                rows.len()
            );
            return Err(EngineError::failed(text));
        }
        Self::all(outputs).map_err(|error| EngineError::failed(error.0))
    }

    /// Whether two rows have the same columns, so that they can be gathered.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.kind == other.kind
    }
}

/// The rows that all tensors have; `None` without a tensor.
fn common(tensors: &[Tensor]) -> Result<Option<usize>, TensorError> {
    let mut first: Option<(&str, usize)> = None;
    for tensor in tensors {
        let name = tensor.name();
        let Some(&rows) = tensor.shape().first() else {
            return Err(TensorError(format!("{name}: has no dimension, and needs one for rows")));
        };
        match first {
            Some((other, count)) if count != rows => {
                let text = format!("{name}: has {rows} rows, and {other} has {count}");
                return Err(TensorError(text));
            }
            _ => first = Some((name, rows)),
        }
    }
    Ok(first.map(|(_, rows)| rows))
}

fn columns(tensors: &[Tensor]) -> Vec<(String, Datatype, Vec<usize>)> {
    let column = |tensor: &Tensor| {
        (tensor.name().to_owned(), tensor.datatype(), tensor.shape()[1..].to_vec())
    };
    tensors.iter().map(column).collect()
}

/// A row weighs 1, whatever its width.
impl BatchItem for Row {
    type Key = RowKey;

    fn key(&self) -> RowKey {
        RowKey(Arc::clone(&self.kind))
    }
}

/// What rows must have equal to share a batch.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RowKey(Arc<Kind>);

#[cfg(test)]
mod tests {
    use super::*;

    fn column(name: &str, shape: &[usize], data: Vec<u8>) -> Tensor {
        Tensor::new(name, Datatype::Uint8, shape, data).unwrap()
    }

    #[test]
    fn rows_of_several_calls_are_gathered_and_scattered() {
        let first = Row::all(vec![column("x", &[2, 2], vec![1, 2, 3, 4])]).unwrap();
        let second = Row::all(vec![column("x", &[1, 2], vec![5, 6])]).unwrap();
        let other = Row::all(vec![column("x", &[1, 3], vec![7, 8, 9])]).unwrap();
        assert_eq!(first[0].key(), second[0].key());
        assert_ne!(first[0].key(), other[0].key());
        let renamed = Row::all(vec![column("y", &[1, 2], vec![5, 6])]).unwrap();
        assert_ne!(first[0].key(), renamed[0].key());
        let signed = Tensor::new("x", Datatype::Int8, [1, 2], vec![5, 6]).unwrap();
        assert_ne!(first[0].key(), Row::all(vec![signed]).unwrap()[0].key());
        let batch = [second[0].clone(), first[1].clone()];
        let gathered = Row::gather(&batch);
        assert_eq!(gathered, [column("x", &[2, 2], vec![5, 6, 3, 4])]);
        let rows = Row::scatter(&batch, vec![column("y", &[2], vec![1, 2])]).unwrap();
        assert_eq!(Row::gather(&rows[1..]), [column("y", &[1], vec![2])]);
        let wrong = Row::scatter(&batch, vec![column("y", &[3], vec![1, 2, 3])]).unwrap_err();
        assert!(wrong.to_string().contains("the output y has the shape [3] for 2 rows"), "{wrong}");
    }

    #[test]
    fn whole_calls_share_no_batch() {
        let tensors = vec![column("x", &[2], vec![1, 2]), column("y", &[3], vec![1, 2, 3])];
        let message = Row::all(tensors.clone()).unwrap_err().0;
        assert_eq!(message, "y: has 3 rows, and x has 2");
        let (one, two) = (Row::whole(tensors.clone()), Row::whole(tensors.clone()));
        assert_ne!(one.key(), two.key());
        assert_eq!(Row::gather(std::slice::from_ref(&one)), tensors);
        let outputs = vec![column("z", &[], vec![7])];
        let answers = Row::scatter(&[one], outputs.clone()).unwrap();
        assert_eq!(Row::gather(&answers), outputs);
    }
}
