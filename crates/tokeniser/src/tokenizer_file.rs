//! `tokenizer.json` of a stranger: what it may ask for, checked before the tokenizers crate sees it.
//!
//! That crate builds what it is told to build: an automaton for an added token of 20 MB, a text that
//! doubles with each of forty replacements, a search that is quadratic in a word of any length. Each
//! ends the process, or as good as never ends. Published tokenisers stay far below these bounds.

use std::fmt;

use serde::Deserialize;
use serde_json::Value;

/// The most bytes that a `tokenizer.json` should have; one with 262,144 tokens has 33 million.
pub const FILE_BYTES: u64 = 64 << 20;

/// The most bytes of a token, or of a text that replaces another.
const STRING_BYTES: usize = 1 << 10;

/// How many times longer the normalisers may make a text.
const GROWTH: usize = 64;

/// The most characters of a word that WordPiece looks up piece by piece, in quadratic time; BERT has
/// 100.
const WORD_CHARS: u64 = 1_000;

/// The key whose value alone may be long: a table that is compiled into one string.
const TABLE: &[u8] = b"\"precompiled_charsmap\"";

/// The most bytes of that table; published ones have 300,000.
const TABLE_BYTES: usize = 4 << 20;

/// The parts of the file that are looked at.
#[derive(Deserialize)]
struct File {
    #[serde(default)]
    normalizer: Option<Value>,
    #[serde(default)]
    model: Option<Model>,
}

#[derive(Deserialize)]
struct Model {
    #[serde(default)]
    max_input_chars_per_word: Option<u64>,
}

/// Whether the file stays within the bounds; if not, what does not.
pub(crate) fn check(bytes: &[u8]) -> Result<(), String> {
    check_strings(bytes)?;
    let file: File = serde_json::from_slice(bytes).map_err(|error| error.to_string())?;
    let chars = file.model.and_then(|model| model.max_input_chars_per_word).unwrap_or(0);
    if chars > WORD_CHARS {
        let what = "max_input_chars_per_word is";
        return Err(format!(
            "{what} {chars}, and time is quadratic in it: use {WORD_CHARS} at most"
        ));
    }
    let growth = file.normalizer.as_ref().map_or(1, growth);
    if growth > GROWTH {
        return Err(format!(
            "its normalizers can make a text {} times longer: {GROWTH} times at most",
            Count(growth)
        ));
    }
    Ok(())
}

/// A number that may have been too large to count.
struct Count(usize);

impl fmt::Display for Count {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            usize::MAX => f.write_str("countless"),
            number => number.fmt(f),
        }
    }
}

/// Whether every string of a JSON text is short, its one table aside.
fn check_strings(bytes: &[u8]) -> Result<(), String> {
    let mut at = 0;
    // The string before, if it was a key: only a colon lies between them.
    let mut key: &[u8] = b"";
    while let Some(start) = bytes[at..].iter().position(|&byte| byte == b'"').map(|i| at + i) {
        let between = &bytes[at..start];
        let mut end = start + 1;
        while end < bytes.len() && bytes[end] != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        let end = end.min(bytes.len());
        let is_value = between.contains(&b':') && !between.contains(&b',');
        let most = if is_value && key == TABLE { TABLE_BYTES } else { STRING_BYTES };
        if end - start > most {
            return Err(format!(
                "it holds a string of {} bytes, at byte {start}: {most} at most",
                end - start - 1
            ));
        }
        key = &bytes[start..(end + 1).min(bytes.len())];
        at = (end + 1).min(bytes.len());
    }
    Ok(())
}

/// How many times longer a normaliser, and those inside it, can make a text.
fn growth(normalizer: &Value) -> usize {
    let of = |field: &str| normalizer.get(field).and_then(Value::as_str).unwrap_or("");
    match of("type") {
        "Sequence" => {
            let inside = normalizer.get("normalizers").and_then(Value::as_array);
            inside.into_iter().flatten().fold(1, |all, one| all.saturating_mul(growth(one)))
        }
        "Replace" => {
            // What a regular expression matches may be a single byte.
            let pattern = normalizer.get("pattern").and_then(|pattern| pattern.get("String"));
            let replaced = pattern.and_then(Value::as_str).map_or(1, |text| text.len().max(1));
            of("content").len().div_ceil(replaced).max(1)
        }
        // Once a text, which may be empty.
        "Prepend" => 1 + of("prepend").len() / 16,
        _ => 1,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn checked(file: &Value) -> Result<(), String> {
        check(file.to_string().as_bytes())
    }

    #[test]
    fn normalisers_may_not_multiply() {
        let replace =
            |from: Value, to: &str| json!({"type": "Replace", "pattern": from, "content": to});
        let twice = replace(json!({"String": "a"}), "aa");
        let all = |normalizers: Vec<Value>| json!({"normalizer": {"type": "Sequence", "normalizers": normalizers}});
        assert_eq!(checked(&all(vec![twice.clone(); 6])), Ok(()));
        assert!(checked(&all(vec![twice.clone(); 7])).unwrap_err().contains("128 times"));
        let nested = all(vec![all(vec![twice; 40])["normalizer"].clone(); 2]);
        assert!(checked(&nested).unwrap_err().contains("countless times"));
        let regex = replace(json!({"Regex": " {2,}"}), "\u{2581}");
        assert_eq!(checked(&json!({"normalizer": regex})), Ok(()));
        let same = replace(json!({"String": "``"}), "\"");
        assert_eq!(checked(&all(vec![same; 100])), Ok(()));
    }

    #[test]
    fn strings_are_short_but_for_the_table() {
        let long = "x".repeat(STRING_BYTES + 1);
        let error = checked(&json!({"added_tokens": [{"content": long}]})).unwrap_err();
        assert!(error.contains("a string of 1025 bytes"), "{error}");
        let error = checked(&json!({"model": {"vocab": {&long: 1}}})).unwrap_err();
        assert!(error.contains("1024 at most"), "{error}");
        let table = json!({"normalizer": {"type": "Precompiled", "precompiled_charsmap": long}});
        assert_eq!(checked(&table), Ok(()));
        // A value that has the table's name gives the next one no more room.
        let named = json!(["precompiled_charsmap", long]);
        assert!(checked(&json!({"added_tokens": named})).is_err());
        assert!(check(format!("{{\"{long}").as_bytes()).is_err(), "it does not end");
        assert!(check(b"{\"a\": \"\\").is_err());
    }

    #[test]
    fn a_word_is_looked_up_in_bounded_time() {
        let words = |chars: u64| json!({"model": {"max_input_chars_per_word": chars}});
        assert_eq!(checked(&words(100)), Ok(()));
        assert!(checked(&words(1_000_000)).unwrap_err().contains("1000000"));
    }
}
