//! Numbers among the arguments.

/// A whole number of at least 1, for clap.
///
/// # Errors
/// What is wrong with the text.
pub fn at_least_one(text: &str) -> Result<usize, String> {
    match text.trim().parse() {
        Ok(0) => Err("must be at least 1".to_owned()),
        Ok(number) => Ok(number),
        Err(_) => Err("must be a whole number of at least 1".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_a_whole_number_above_0() {
        assert_eq!(at_least_one(" 8 "), Ok(8));
        for wrong in ["0", "-1", "1.5", "", "many", "99999999999999999999"] {
            assert!(at_least_one(wrong).is_err(), "{wrong}");
        }
    }
}
