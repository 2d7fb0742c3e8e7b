//! `onelane.serve`: the server of `onelane-server` in front of models in Python. HTTP, tokenising,
//! queueing, deadlines and metrics are Rust's; the interpreter is entered for a batch.

mod engine;
mod model;
mod server;
mod state;

pub(crate) use server::Server;
