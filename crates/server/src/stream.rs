//! A client's byte stream, whatever it is made of.

use tokio::io::{AsyncRead, AsyncWrite};

/// A client's byte stream.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}
