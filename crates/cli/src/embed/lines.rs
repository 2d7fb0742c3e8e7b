//! [`Input`]: the texts, one a line, read as they are needed.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Read};
use std::path::Path;

use anyhow::{Context, bail};
use onelane_engines::MAX_TEXT_BYTES;

/// A line of the input.
pub struct Line {
    /// Its number, from 0.
    pub index: u64,
    /// Its text without the line end, or why it has none.
    pub text: Result<String, NotUtf8>,
    /// Whether it is longer than [`MAX_TEXT_BYTES`]: then `text` is its start.
    pub cut: bool,
    /// Bytes of the input up to its end.
    pub offset: u64,
}

/// The line's bytes are no text.
#[derive(Debug, PartialEq, Eq)]
pub struct NotUtf8 {
    /// The first wrong byte, counted from 1 within the line.
    pub byte: usize,
}

/// A file, or standard input.
pub struct Input {
    reader: BufReader<Box<dyn Read + Send>>,
    name: String,
    bytes: Option<u64>,
    next: u64,
    offset: u64,
}

impl Input {
    /// Opens a file; `-` is standard input.
    ///
    /// # Errors
    /// When there is no such file, it may not be read, or it is a directory.
    pub fn open(path: &Path) -> anyhow::Result<Self> {
        if path == Path::new("-") {
            return Ok(Self::new(Box::new(io::stdin()), "standard input".to_owned(), None));
        }
        let name = path.display().to_string();
        let cannot = || format!("cannot read {name}");
        let file = File::open(path).with_context(cannot)?;
        let metadata = file.metadata().with_context(cannot)?;
        if metadata.is_dir() {
            bail!("cannot read {name}: it is a directory");
        }
        let bytes = metadata.is_file().then_some(metadata.len());
        Ok(Self::new(Box::new(file), name, bytes))
    }

    fn new(reader: Box<dyn Read + Send>, name: String, bytes: Option<u64>) -> Self {
        Self { reader: BufReader::with_capacity(1 << 16, reader), name, bytes, next: 0, offset: 0 }
    }

    /// The size in bytes of a regular file.
    pub fn bytes(&self) -> Option<u64> {
        self.bytes
    }

    /// The next line; `None` at the end. A last line need not end with a newline, and a newline at
    /// the end begins no further line.
    ///
    /// # Errors
    /// When reading fails.
    pub fn next_line(&mut self) -> anyhow::Result<Option<Line>> {
        let cannot = || format!("cannot read {}", self.name);
        let mut bytes = Vec::new();
        // One byte more than a text of the greatest length and its line end have.
        let most = MAX_TEXT_BYTES + 3;
        let mut start = self.reader.by_ref().take(most as u64);
        let mut read = start.read_until(b'\n', &mut bytes).with_context(cannot)?;
        if read == 0 {
            return Ok(None);
        }
        if read == most && bytes.last() != Some(&b'\n') {
            read += self.reader.skip_until(b'\n').with_context(cannot)?;
        } else if bytes.last() == Some(&b'\n') {
            bytes.pop();
            if bytes.last() == Some(&b'\r') {
                bytes.pop();
            }
        }
        self.offset += read as u64;
        let index = self.next;
        self.next += 1;
        let cut = bytes.len() > MAX_TEXT_BYTES;
        bytes.truncate(MAX_TEXT_BYTES);
        Ok(Some(Line { index, text: text(bytes, cut), cut, offset: self.offset }))
    }
}

/// The text of a line; where the line was cut, the character at the cut goes as a whole.
fn text(bytes: Vec<u8>, cut: bool) -> Result<String, NotUtf8> {
    let error = match String::from_utf8(bytes) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let (valid, at_the_end) =
        (error.utf8_error().valid_up_to(), error.utf8_error().error_len().is_none());
    let mut bytes = error.into_bytes();
    if cut && at_the_end {
        bytes.truncate(valid);
        return Ok(String::from_utf8(bytes).expect("it is valid up to here"));
    }
    Err(NotUtf8 { byte: valid + 1 })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(bytes: &'static [u8]) -> Vec<Result<String, NotUtf8>> {
        let mut input = Input::new(Box::new(bytes), "test".to_owned(), None);
        let next = || input.next_line().unwrap();
        let lines: Vec<Line> = std::iter::from_fn(next).collect();
        assert_eq!(lines.last().map_or(0, |line| line.offset), bytes.len() as u64);
        assert!(lines.iter().enumerate().all(|(i, line)| line.index == i as u64));
        lines.into_iter().map(|line| line.text).collect()
    }

    #[test]
    fn every_line_is_a_text() {
        let text = |text: &str| Ok(text.to_owned());
        assert_eq!(lines(b""), []);
        assert_eq!(lines(b"a"), [text("a")]);
        assert_eq!(lines(b"a\n"), [text("a")]);
        assert_eq!(lines(b"\n\na\r\n\r"), [text(""), text(""), text("a"), text("\r")]);
        let last = [text("a"), Err(NotUtf8 { byte: 2 }), text("\u{e9}")];
        assert_eq!(lines(b"a\nb\xffc\n\xc3\xa9"), last);
    }

    #[test]
    fn of_a_long_line_its_start_is_held() {
        for (length, cut) in [(0, false), (1, true), (5 << 20, true)] {
            for end in ["\n", "\r\n", ""] {
                // Two bytes a character, so that the cut goes through one.
                let line = "\u{e9}".repeat((MAX_TEXT_BYTES + length).div_ceil(2));
                let bytes = format!("x{line}{end}after").into_bytes();
                if end.is_empty() && !cut {
                    continue;
                }
                let mut input =
                    Input::new(Box::new(io::Cursor::new(bytes)), "test".to_owned(), None);
                let first = input.next_line().unwrap().unwrap();
                let text = first.text.unwrap();
                assert!(first.cut && text.len() > MAX_TEXT_BYTES - 2, "{length} {end:?}");
                assert!(text.len() <= MAX_TEXT_BYTES && text.ends_with('\u{e9}'));
                let next = input.next_line().unwrap();
                assert_eq!(
                    next.map(|line| line.text),
                    (!end.is_empty()).then(|| Ok("after".into()))
                );
            }
        }
        let whole = "a".repeat(MAX_TEXT_BYTES);
        let bytes = format!("{whole}\r\n").into_bytes();
        let mut input = Input::new(Box::new(io::Cursor::new(bytes)), "test".to_owned(), None);
        let line = input.next_line().unwrap().unwrap();
        assert_eq!((line.text, line.cut), (Ok(whole), false));
    }
}
