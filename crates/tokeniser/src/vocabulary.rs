//! What a model takes of its tokeniser.

/// What a model takes of its tokeniser.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Vocabulary {
    /// Ids are below it.
    pub size: usize,
    /// How many segment kinds the model tells apart.
    pub kinds: usize,
    /// The most tokens that it can take, special ones included.
    pub positions: usize,
    /// The most tokens of a text, if fewer are wanted than the model and the tokeniser's file allow.
    pub max_length: Option<usize>,
    /// Whether texts are put into lower case first.
    pub lower_case: bool,
}
