//! A text, or a pair of texts, as token ids: the input of a request to an engine.

use onelane::BatchItem;
use onelane_isolate::{Reader, Wire, WireError, Writer};

/// A text, or a pair of texts, as token ids.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenisedText {
    pub(crate) ids: Box<[u32]>,
    /// Where the second segment kind begins; the number of tokens where there is one kind.
    pub(crate) second: usize,
    pub(crate) bucket: usize,
    pub(crate) truncated: bool,
    pub(crate) each_token: bool,
}

impl TokenisedText {
    /// A text whose ids are made already: in a bucket of this length, all of the first segment kind.
    pub fn new(ids: impl Into<Box<[u32]>>, bucket: usize) -> Self {
        let ids = ids.into();
        Self { second: ids.len(), ids, bucket, truncated: false, each_token: false }
    }

    /// Sets where the second segment kind begins.
    #[must_use]
    pub fn with_second(mut self, second: usize) -> Self {
        self.second = second;
        self
    }

    /// Token ids, special tokens included.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// Where the tokens of the second segment kind begin; the number of tokens where all are of the
    /// first.
    pub fn second(&self) -> usize {
        self.second
    }

    /// The length of its bucket in tokens.
    pub fn bucket(&self) -> usize {
        self.bucket
    }

    /// Asks an embedding engine for a vector of each token instead of one of the text: its last hidden
    /// states, one after the other in one output, not scaled.
    #[must_use]
    pub fn with_each_token(mut self) -> Self {
        self.each_token = true;
        self
    }

    /// Whether a vector of each token is asked for.
    pub fn each_token(&self) -> bool {
        self.each_token
    }

    /// Whether the text was longer than the model's limit, so that its end was cut off.
    pub fn truncated(&self) -> bool {
        self.truncated
    }
}

/// Texts of one bucket that ask for the same share a batch; a text costs its real tokens.
impl BatchItem for TokenisedText {
    type Key = (usize, bool);

    fn key(&self) -> (usize, bool) {
        (self.bucket, self.each_token)
    }

    fn cost(&self) -> usize {
        self.ids.len()
    }
}

/// How a text crosses to an isolated worker.
impl Wire for TokenisedText {
    fn write(&self, to: &mut Writer<'_>) {
        (self.bucket, self.second).write(to);
        (self.truncated, self.each_token).write(to);
        to.length(self.ids.len());
        to.numbers(&self.ids);
    }

    fn read(from: &mut Reader<'_>) -> Result<Self, WireError> {
        let (bucket, second) = Wire::read(from)?;
        let (truncated, each_token) = Wire::read(from)?;
        let ids = Vec::read(from)?.into_boxed_slice();
        Ok(Self { ids, second, bucket, truncated, each_token })
    }
}
