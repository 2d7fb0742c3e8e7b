//! `onelane.serve`: the server of `onelane-server` in front of models in Python. HTTP, tokenising,
//! queueing, deadlines and metrics are Rust's; the interpreter is entered for a batch.

mod calls;
mod model;
mod server;
mod state;
mod tensor_engine;
mod tensor_model;
mod text_engine;
mod text_model;

pub(crate) use server::Server;
