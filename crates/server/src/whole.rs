//! Whole numbers in JSON: `8.0` is one, as JSON Schema has it.

use serde::{Deserialize, Deserializer, de};
use serde_json::Number;

/// The whole number that a number of JSON is, if it is one of 64 bits.
pub(crate) fn whole(number: &Number) -> Option<i64> {
    const LIMIT: f64 = 9.2e18;
    number.as_i64().or_else(|| {
        let float = number.as_f64()?;
        (float.fract() == 0.0 && float.abs() < LIMIT && number.is_f64()).then_some(float as i64)
    })
}

/// Reads an optional field that is a whole number, not negative.
///
/// # Errors
/// It is something else.
pub(crate) fn optional<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
    let Some(number) = Option::<Number>::deserialize(from)? else { return Ok(None) };
    let number = whole(&number).and_then(|number| u64::try_from(number).ok());
    number.map(Some).ok_or_else(|| de::Error::custom("expected a whole number of 0 or more"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_without_a_fraction_are_whole() {
        let read = |text: &str| whole(&serde_json::from_str::<Number>(text).unwrap());
        assert_eq!(read("8"), Some(8));
        assert_eq!(read("-8.0"), Some(-8));
        assert_eq!(read("9223372036854775807"), Some(i64::MAX));
        for other in ["8.5", "9223372036854775808", "1e300"] {
            assert_eq!(read(other), None, "{other}");
        }
    }
}
