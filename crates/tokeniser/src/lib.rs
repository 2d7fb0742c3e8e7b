//! Texts as token ids in length buckets: what requests to a text model are, whatever computes it.
//!
//! | to do | use |
//! |---|---|
//! | tokenise | [`Tokeniser`], with the [`Vocabulary`] of its model |
//! | bound the shapes that a device sees | [`BucketConfig`], [`Buckets`] |
//! | send it to a queue | [`TokenisedText`], a [`BatchItem`](onelane::BatchItem) |

#![forbid(unsafe_code)]

mod bucket;
mod tokenised;
mod tokeniser;
mod tokenizer_file;
mod tokens;
mod vocabulary;

pub use bucket::{BucketConfig, BucketError, Buckets, Shape};
pub use tokenised::TokenisedText;
pub use tokeniser::{MAX_TEXT_BYTES, TokeniseError, Tokeniser, TokeniserError};
pub use tokenizer_file::FILE_BYTES;
pub use tokens::TextToken;
pub use vocabulary::Vocabulary;
