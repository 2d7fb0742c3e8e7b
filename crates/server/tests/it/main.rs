//! The server over real loopback connections, in front of engines that are told what to do.

mod admission;
mod client;
mod each_token;
mod fake;
mod fake_tensors;
mod grpc;
mod hostile;
mod life;
#[cfg(feature = "otlp")]
mod otlp;
mod protocols;
mod running;
mod tensors;
#[cfg(feature = "tls")]
mod tls;
