//! The ABI, called as C calls it.

mod arguments;
mod common;
mod header;
mod lifecycle;
mod sequences;
