//! A tensor as the protocol writes it: type, shape and bytes.
//!
//! INVARIANT: the bytes are those of as many elements as the shape has.

use crate::datatype::Datatype;
use crate::tensor_error::TensorError;

/// A tensor, by its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    name: String,
    datatype: Datatype,
    shape: Vec<usize>,
    data: Vec<u8>,
    /// Where each row of BYTES begins; empty for other types, and where rows have no elements.
    starts: Vec<usize>,
}

impl Tensor {
    /// A tensor of these bytes: as [`Datatype`] says, in row-major order.
    ///
    /// # Errors
    /// [`TensorError`]: the bytes are not those of so many elements.
    pub fn new(
        name: impl Into<String>,
        datatype: Datatype,
        shape: impl Into<Vec<usize>>,
        data: Vec<u8>,
    ) -> Result<Self, TensorError> {
        let shape = shape.into();
        let elements = elements(&shape)?;
        let wrong = |found: usize, what: &str| {
            TensorError(format!("has {found} {what} and a shape of {elements} elements"))
        };
        let mut starts = Vec::new();
        match datatype.size() {
            Some(size) => {
                if elements.checked_mul(size) != Some(data.len()) {
                    return Err(wrong(data.len(), &format!("bytes of {datatype}")));
                }
                if datatype == Datatype::Bool && data.iter().any(|&byte| byte > 1) {
                    return Err(TensorError("has a BOOL that is neither 0 nor 1".to_owned()));
                }
            }
            None => {
                let row = elements.checked_div(*shape.first().unwrap_or(&1)).unwrap_or(0);
                let (mut at, mut count) = (0, 0_usize);
                while let Some(element) = element(&data, at)? {
                    if row > 0 && count.is_multiple_of(row) {
                        starts.push(at);
                    }
                    at = element.end;
                    count += 1;
                }
                if count != elements {
                    return Err(wrong(count, "elements"));
                }
            }
        }
        Ok(Self { name: name.into(), datatype, shape, data, starts })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The type of its elements.
    pub fn datatype(&self) -> Datatype {
        self.datatype
    }

    /// Its shape.
    pub fn shape(&self) -> &[usize] {
        &self.shape
    }

    /// Its elements, as [`Datatype`] says.
    pub fn data(&self) -> &[u8] {
        &self.data
    }

    pub(crate) fn into_data(self) -> Vec<u8> {
        self.data
    }

    /// Its elements, if they are BYTES; else nothing.
    pub fn elements(&self) -> impl Iterator<Item = &[u8]> {
        let mut at = if self.datatype == Datatype::Bytes { 0 } else { self.data.len() };
        std::iter::from_fn(move || {
            // They have been looked at when the tensor was made.
            let range = element(&self.data, at).ok().flatten()?;
            at = range.end;
            self.data.get(range)
        })
    }

    /// The bytes of the row of this number, which there is.
    pub(crate) fn row(&self, index: usize) -> &[u8] {
        match self.datatype.size() {
            Some(size) => {
                let width = self.shape[1..].iter().product::<usize>() * size;
                &self.data[index * width..(index + 1) * width]
            }
            None => {
                let Some(&start) = self.starts.get(index) else { return &[] };
                let end = self.starts.get(index + 1).copied().unwrap_or(self.data.len());
                &self.data[start..end]
            }
        }
    }

    /// The tensor of rows that all have this tensor's name, type and trailing shape.
    pub(crate) fn of_rows<'a>(&self, rows: impl ExactSizeIterator<Item = &'a [u8]>) -> Self {
        let mut shape = self.shape.clone();
        shape[0] = rows.len();
        let (mut data, mut starts) = (Vec::new(), Vec::new());
        for row in rows {
            if !self.starts.is_empty() {
                starts.push(data.len());
            }
            data.extend_from_slice(row);
        }
        Self { name: self.name.clone(), datatype: self.datatype, shape, data, starts }
    }
}

/// How many elements a shape has.
///
/// # Errors
/// More than can be.
fn elements(shape: &[usize]) -> Result<usize, TensorError> {
    let product = shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size));
    product.ok_or_else(|| TensorError("has a shape that no tensor has".to_owned()))
}

/// Where the element is that begins, with its length, at `at`; `None` at the end.
fn element(data: &[u8], at: usize) -> Result<Option<std::ops::Range<usize>>, TensorError> {
    let short = || TensorError("the tensor is shorter than its lengths say".to_owned());
    let rest = &data[at..];
    if rest.is_empty() {
        return Ok(None);
    }
    let (length, rest) = rest.split_first_chunk::<4>().ok_or_else(short)?;
    let length = u32::from_le_bytes(*length) as usize;
    if length > rest.len() {
        return Err(short());
    }
    Ok(Some(at + 4..at + 4 + length))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(texts: &[&str]) -> Vec<u8> {
        let one = |text: &&str| [&(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat();
        texts.iter().flat_map(one).collect()
    }

    #[test]
    fn elements_are_read_and_bad_lengths_are_refused() {
        let raw = bytes(&["a", "é!", ""]);
        let tensor = Tensor::new("text", Datatype::Bytes, [3], raw).unwrap();
        let texts: Vec<&[u8]> = tensor.elements().collect();
        assert_eq!(texts, [&b"a"[..], "é!".as_bytes(), b""]);
        for bad in [&[1, 0, 0][..], &[9, 0, 0, 0, 1], &[255, 255, 255, 255]] {
            assert!(Tensor::new("x", Datatype::Bytes, [1], bad.to_vec()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn as_many_elements_as_the_shape_says() {
        let new = |datatype, shape: &[usize], bytes| {
            Tensor::new("x", datatype, shape, vec![0; bytes]).map(drop).map_err(|e| e.0)
        };
        assert_eq!(new(Datatype::Fp32, &[2, 3], 24), Ok(()));
        assert_eq!(new(Datatype::Fp16, &[], 2), Ok(()));
        assert_eq!(new(Datatype::Int64, &[5, 0], 0), Ok(()));
        // No memory is taken for rows that have none.
        assert_eq!(new(Datatype::Bytes, &[1 << 60, 0], 0), Ok(()));
        let message = new(Datatype::Fp32, &[2, 3], 23).unwrap_err();
        assert_eq!(message, "has 23 bytes of FP32 and a shape of 6 elements");
        assert_eq!(
            new(Datatype::Bytes, &[3], 8).unwrap_err(),
            "has 2 elements and a shape of 3 elements"
        );
        assert!(new(Datatype::Fp32, &[usize::MAX, 2], 0).is_err());
        assert!(new(Datatype::Fp64, &[usize::MAX / 2], 0).is_err());
        assert!(Tensor::new("x", Datatype::Bool, [1], vec![2]).is_err());
    }

    #[test]
    fn rows_of_texts_are_found_and_put_together_again() {
        let raw = bytes(&["a", "bc", "", "defg"]);
        let tensor = Tensor::new("x", Datatype::Bytes, [2, 2], raw.clone()).unwrap();
        let rows = [tensor.row(0), tensor.row(1)];
        assert_eq!(rows, [bytes(&["a", "bc"]), bytes(&["", "defg"])]);
        assert_eq!(tensor.of_rows(rows.into_iter()), tensor);
        let swapped = tensor.of_rows([tensor.row(1)].into_iter());
        assert_eq!(swapped.row(0), bytes(&["", "defg"]));
        assert_eq!(swapped.shape(), [1, 2]);
    }
}
