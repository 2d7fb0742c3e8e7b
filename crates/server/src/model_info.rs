//! What a model is, for those who ask.

use std::collections::BTreeMap;

/// What a model is, for those who ask.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct ModelInfo {
    /// The most tokens of a text, special ones included.
    pub max_tokens: usize,
    /// Width of an embedding; `None` for a model that does not embed.
    pub dimensions: Option<usize>,
    /// Whether embeddings may be cut to fewer dimensions.
    pub matryoshka: bool,
    /// Whether a text may be answered with a vector of each token.
    pub each_token: bool,
    /// How token vectors become one: `mean`, `cls`, `last_token`.
    pub pooling: Option<String>,
    /// The type of its numbers, for example `float32`.
    pub dtype: String,
    /// What may be put before a text that is embedded, by name.
    pub prompts: BTreeMap<String, String>,
    /// What is put before it unless another prompt is asked for.
    pub default_prompt: Option<String>,
}

impl ModelInfo {
    /// Of a model that takes so many tokens.
    pub fn new(max_tokens: usize) -> Self {
        Self { max_tokens, dtype: "float32".to_owned(), ..Self::default() }
    }

    /// Sets the width of an embedding.
    #[must_use]
    pub fn dimensions(mut self, dimensions: usize) -> Self {
        self.dimensions = Some(dimensions);
        self
    }

    /// Sets whether embeddings may be cut to fewer dimensions.
    #[must_use]
    pub fn matryoshka(mut self, matryoshka: bool) -> Self {
        self.matryoshka = matryoshka;
        self
    }

    /// Sets whether a text may be answered with a vector of each token.
    #[must_use]
    pub fn each_token(mut self, each_token: bool) -> Self {
        self.each_token = each_token;
        self
    }

    /// Sets what may be put before a text, by name, and what is unless another is asked for.
    #[must_use]
    pub fn prompts(mut self, prompts: BTreeMap<String, String>, default: Option<String>) -> Self {
        self.prompts = prompts;
        self.default_prompt = default;
        self
    }

    /// Sets the type of its numbers.
    #[must_use]
    pub fn dtype(mut self, dtype: impl Into<String>) -> Self {
        self.dtype = dtype.into();
        self
    }

    /// Sets how token vectors become one.
    #[must_use]
    pub fn pooling(mut self, pooling: impl Into<String>) -> Self {
        self.pooling = Some(pooling.into());
        self
    }
}
