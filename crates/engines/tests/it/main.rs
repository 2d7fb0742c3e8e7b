//! The integration tests of the engines, in one binary.
//!
//! `cargo test -p onelane-engines --test it FILE::` runs one file of them.

#[path = "../common/mod.rs"]
mod common;
mod load;

mod agree;
mod damaged;
mod device;
mod embedding;
mod minilm;
mod mlp;
mod modern;
mod random_damage;
mod tokeniser;
