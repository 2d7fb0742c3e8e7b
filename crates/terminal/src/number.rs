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

/// The most threads that a command starts; the system has no room for many more.
const MOST_THREADS: usize = 4096;

/// A number of threads, for clap.
///
/// # Errors
/// What is wrong with the text.
pub fn thread_count(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        count if count <= MOST_THREADS => Ok(count),
        _ => Err(format!("must be at most {MOST_THREADS} threads")),
    }
}

/// The most times that a command does its work: results are held until it ends.
const MOST_TIMES: usize = 1_000_000;

/// How often something is done, or for how many seconds, for clap.
///
/// # Errors
/// What is wrong with the text.
pub fn times(text: &str) -> Result<usize, String> {
    match at_least_one(text)? {
        count if count <= MOST_TIMES => Ok(count),
        _ => Err(format!("must be at most {MOST_TIMES}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threads_and_repeats_are_few_enough() {
        assert_eq!(thread_count("4096"), Ok(4096));
        for wrong in ["0", "4097", "9223372036854775808"] {
            assert!(thread_count(wrong).is_err(), "{wrong}");
        }
        assert_eq!(times("1000000"), Ok(1_000_000));
        assert!(times("0").is_err() && times("1000001").is_err());
    }

    #[test]
    fn a_count_is_a_whole_number_above_0() {
        assert_eq!(at_least_one(" 8 "), Ok(8));
        for wrong in ["0", "-1", "1.5", "", "many", "99999999999999999999"] {
            assert!(at_least_one(wrong).is_err(), "{wrong}");
        }
    }
}
