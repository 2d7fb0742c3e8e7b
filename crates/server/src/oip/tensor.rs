//! Tensors of bytes as the protocol writes them: each element's length in four bytes, little-endian,
//! and the element.

use crate::failure::Failure;

/// The name, type and shape of a tensor; -1 is any number.
pub(crate) struct Described {
    pub(crate) name: &'static str,
    pub(crate) datatype: &'static str,
    pub(crate) shape: Vec<i64>,
}

/// Reads the elements of a BYTES tensor.
///
/// # Errors
/// Lengths that do not fit, or elements that are not UTF-8.
pub(crate) fn read_bytes(mut raw: &[u8], name: &str) -> Result<Vec<String>, Failure> {
    let short = || Failure::malformed("the tensor is shorter than its lengths say").at(name);
    let mut texts = Vec::new();
    while !raw.is_empty() {
        let (length, rest) = raw.split_first_chunk::<4>().ok_or_else(short)?;
        let length = u32::from_le_bytes(*length) as usize;
        let (text, rest) = rest.split_at_checked(length).ok_or_else(short)?;
        texts.push(utf8(text.to_vec(), name, texts.len())?);
        raw = rest;
    }
    Ok(texts)
}

/// A text of bytes.
///
/// # Errors
/// They are not UTF-8.
pub(crate) fn utf8(bytes: Vec<u8>, name: &str, index: usize) -> Result<String, Failure> {
    String::from_utf8(bytes)
        .map_err(|_| Failure::malformed("is not UTF-8").at(format!("{name}[{index}]")))
}

/// Numbers in a row, little-endian.
pub(crate) fn write_floats(rows: &[Vec<f32>]) -> Vec<u8> {
    rows.iter().flatten().flat_map(|number| number.to_le_bytes()).collect()
}

/// How many elements a shape has.
///
/// # Errors
/// A negative size, or more than can be.
pub(crate) fn elements(shape: &[i64], name: &str) -> Result<usize, Failure> {
    let product = shape
        .iter()
        .try_fold(1_usize, |product, &size| product.checked_mul(usize::try_from(size).ok()?));
    product.ok_or_else(|| Failure::malformed("has a shape that no tensor has").at(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_and_bad_lengths_are_refused() {
        let raw = [&[1, 0, 0, 0][..], b"a", &[3, 0, 0, 0], "é!".as_bytes()].concat();
        assert_eq!(read_bytes(&raw, "text").unwrap(), ["a", "é!"]);
        for bad in [&[1, 0, 0][..], &[9, 0, 0, 0, 1], &[255, 255, 255, 255], &[1, 0, 0, 0, 0xff]] {
            assert!(read_bytes(bad, "text").is_err(), "{bad:?}");
        }
        assert_eq!(elements(&[2, 3], "x").unwrap(), 6);
        assert!(elements(&[-1], "x").is_err());
        assert!(elements(&[i64::MAX, i64::MAX], "x").is_err());
    }
}
