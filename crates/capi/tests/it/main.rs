//! The ABI, called as C calls it.

mod header;
