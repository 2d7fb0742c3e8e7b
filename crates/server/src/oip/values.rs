//! The elements of a tensor in JSON.

use half::{bf16, f16};
use serde::Serialize;
use serde_json::{Number, Value};

use crate::datatype::Datatype;
use crate::failure::{Failure, Kind};
use crate::tensor::Tensor;
use crate::whole::whole;

/// The bytes of elements, which are in lists as deep as the shape or in one.
///
/// # Errors
/// An element that is not of the type is named.
pub(super) fn read(data: &Value, datatype: Datatype, name: &str) -> Result<Vec<u8>, Failure> {
    let mut read = Vec::new();
    let mut count = 0;
    push_all(data, &mut |value| {
        push(&mut read, value, datatype).ok_or_else(|| {
            let what = match datatype {
                Datatype::Bytes => "a string".to_owned(),
                Datatype::Bool => "true or false".to_owned(),
                _ => format!("a number of type {datatype}"),
            };
            Failure::malformed(format!("must be {what}")).at(format!("{name}[{count}]"))
        })?;
        count += 1;
        Ok(())
    })?;
    Ok(read)
}

fn push_all(
    value: &Value,
    push: &mut impl FnMut(&Value) -> Result<(), Failure>,
) -> Result<(), Failure> {
    match value {
        Value::Array(values) => values.iter().try_for_each(|value| push_all(value, push)),
        value => push(value),
    }
}

/// `None`: it is not of the type.
fn push(to: &mut Vec<u8>, value: &Value, datatype: Datatype) -> Option<()> {
    fn int<T: TryFrom<i64>>(value: &Value) -> Option<T> {
        T::try_from(whole(value.as_number()?)?).ok()
    }
    fn unsigned(number: &Number) -> Option<u64> {
        number.as_u64().or_else(|| u64::try_from(whole(number)?).ok())
    }
    let finite = |value: f64| value.is_finite().then_some(value);
    match datatype {
        Datatype::Bool => to.push(u8::from(value.as_bool()?)),
        Datatype::Uint8 => to.push(int::<u8>(value)?),
        Datatype::Uint16 => to.extend(int::<u16>(value)?.to_le_bytes()),
        Datatype::Uint32 => to.extend(int::<u32>(value)?.to_le_bytes()),
        Datatype::Uint64 => to.extend(unsigned(value.as_number()?)?.to_le_bytes()),
        Datatype::Int8 => to.extend(int::<i8>(value)?.to_le_bytes()),
        Datatype::Int16 => to.extend(int::<i16>(value)?.to_le_bytes()),
        Datatype::Int32 => to.extend(int::<i32>(value)?.to_le_bytes()),
        Datatype::Int64 => to.extend(int::<i64>(value)?.to_le_bytes()),
        Datatype::Fp16 => {
            let number = f16::from_f64(value.as_f64()?);
            finite(number.to_f64())?;
            to.extend(number.to_le_bytes());
        }
        Datatype::Bf16 => {
            let number = bf16::from_f64(value.as_f64()?);
            finite(number.to_f64())?;
            to.extend(number.to_le_bytes());
        }
        Datatype::Fp32 => {
            let number = value.as_f64()? as f32;
            finite(number.into())?;
            to.extend(number.to_le_bytes());
        }
        Datatype::Fp64 => to.extend(value.as_f64()?.to_le_bytes()),
        Datatype::Bytes => {
            let text = value.as_str()?;
            // A body is far smaller than what 32 bits can count.
            to.extend((text.len() as u32).to_le_bytes());
            to.extend(text.as_bytes());
        }
    }
    Some(())
}

/// Elements as they are written in JSON: all in one list.
#[derive(Debug, PartialEq, Serialize)]
#[serde(untagged)]
pub(super) enum Values {
    Bool(Vec<bool>),
    Unsigned(Vec<u64>),
    Signed(Vec<i64>),
    Single(Vec<f32>),
    Double(Vec<f64>),
    Texts(Vec<String>),
}

impl Values {
    /// The elements of a tensor.
    ///
    /// # Errors
    /// What JSON cannot say: a number that is not finite, or bytes that are no text.
    pub(super) fn of(tensor: &Tensor) -> Result<Self, Failure> {
        let values = Self::read(tensor).ok_or_else(|| {
            Self::unsayable(tensor, "has bytes that are not UTF-8, which JSON cannot say")
        })?;
        let finite = match &values {
            Self::Single(numbers) => numbers.iter().all(|number| number.is_finite()),
            Self::Double(numbers) => numbers.iter().all(|number| number.is_finite()),
            _ => true,
        };
        if !finite {
            let message = "has a number that is not finite, which JSON cannot say";
            return Err(Self::unsayable(tensor, message));
        }
        Ok(values)
    }

    fn unsayable(tensor: &Tensor, message: &str) -> Failure {
        let cure = "ask for the output in binary (binary_data), or use gRPC";
        Failure::new(Kind::Engine, format!("{message}: {cure}")).at(tensor.name())
    }

    fn read(tensor: &Tensor) -> Option<Self> {
        fn numbers<const N: usize, T>(data: &[u8], number: impl Fn([u8; N]) -> T) -> Vec<T> {
            data.as_chunks::<N>().0.iter().map(|chunk| number(*chunk)).collect()
        }
        let data = tensor.data();
        Some(match tensor.datatype() {
            Datatype::Bool => Self::Bool(data.iter().map(|&byte| byte != 0).collect()),
            Datatype::Uint8 => Self::Unsigned(data.iter().map(|&byte| byte.into()).collect()),
            Datatype::Uint16 => Self::Unsigned(numbers(data, |n| u16::from_le_bytes(n).into())),
            Datatype::Uint32 => Self::Unsigned(numbers(data, |n| u32::from_le_bytes(n).into())),
            Datatype::Uint64 => Self::Unsigned(numbers(data, u64::from_le_bytes)),
            Datatype::Int8 => Self::Signed(numbers(data, |n| i8::from_le_bytes(n).into())),
            Datatype::Int16 => Self::Signed(numbers(data, |n| i16::from_le_bytes(n).into())),
            Datatype::Int32 => Self::Signed(numbers(data, |n| i32::from_le_bytes(n).into())),
            Datatype::Int64 => Self::Signed(numbers(data, i64::from_le_bytes)),
            Datatype::Fp16 => Self::Single(numbers(data, |n| f16::from_le_bytes(n).to_f32())),
            Datatype::Bf16 => Self::Single(numbers(data, |n| bf16::from_le_bytes(n).to_f32())),
            Datatype::Fp32 => Self::Single(numbers(data, f32::from_le_bytes)),
            Datatype::Fp64 => Self::Double(numbers(data, f64::from_le_bytes)),
            Datatype::Bytes => {
                let text = |element: &[u8]| String::from_utf8(element.to_vec()).ok();
                Self::Texts(tensor.elements().map(text).collect::<Option<_>>()?)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn back(data: Value, datatype: Datatype) -> Result<Value, String> {
        let raw = read(&data, datatype, "x").map_err(|failure| failure.message)?;
        let count = raw.len() / datatype.size().unwrap();
        let tensor = Tensor::new("x", datatype, [count], raw).map_err(|error| error.0)?;
        let values = Values::of(&tensor).map_err(|failure| failure.message)?;
        Ok(serde_json::to_value(values).unwrap())
    }

    #[test]
    fn every_type_comes_back_and_what_does_not_fit_is_named() {
        for (datatype, fits, not) in [
            (Datatype::Bool, json!([true, false]), json!(1)),
            (Datatype::Uint8, json!([0, 255]), json!(256)),
            (Datatype::Uint16, json!([0, 65_535]), json!(-1)),
            (Datatype::Uint32, json!([4_294_967_295_u32]), json!(4_294_967_296_u64)),
            (Datatype::Uint64, json!([u64::MAX]), json!(-1)),
            (Datatype::Int8, json!([-128, 127]), json!(128)),
            (Datatype::Int16, json!([-32_768]), json!(1.5)),
            (Datatype::Int32, json!([-2_147_483_648_i64]), json!("1")),
            (Datatype::Int64, json!([i64::MIN, i64::MAX]), json!(u64::MAX)),
            (Datatype::Fp16, json!([-0.5, 65_504.0]), json!(70_000)),
            (Datatype::Bf16, json!([-0.5, 256.0]), json!(true)),
            (Datatype::Fp32, json!([-0.5, 1e30_f32]), json!(1e39)),
            (Datatype::Fp64, json!([0.1, 1e300]), json!(null)),
        ] {
            assert_eq!(back(fits.clone(), datatype).unwrap(), fits, "{datatype}");
            let message = back(json!([fits, [not]]), datatype).unwrap_err();
            let named = format!("x[{}]: must be ", fits.as_array().unwrap().len());
            assert!(message.starts_with(&named), "{datatype}: {message}");
        }
        assert_eq!(back(json!([[1], [2.0]]), Datatype::Int8).unwrap(), json!([1, 2]));
    }

    #[test]
    fn what_json_cannot_say_is_told() {
        let tensor = |datatype, raw: &[u8]| Tensor::new("y", datatype, [1], raw.to_vec()).unwrap();
        for (unsayable, why) in [
            (tensor(Datatype::Fp32, &f32::NAN.to_le_bytes()), "not finite"),
            (tensor(Datatype::Fp16, &f16::INFINITY.to_le_bytes()), "not finite"),
            (tensor(Datatype::Bytes, &[1, 0, 0, 0, 0xff]), "not UTF-8"),
        ] {
            let message = Values::of(&unsayable).unwrap_err().message;
            assert!(message.starts_with("y: ") && message.contains(why), "{message}");
        }
        let texts = read(&json!([["a"], ["é"]]), Datatype::Bytes, "x").unwrap();
        let texts = Tensor::new("x", Datatype::Bytes, [2, 1], texts).unwrap();
        assert_eq!(Values::of(&texts).unwrap(), Values::Texts(vec!["a".into(), "é".into()]));
    }
}
