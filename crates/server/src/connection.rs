//! One connection: HTTP/1.1 or HTTP/2, whichever the client begins with, and its end when the
//! server closes.
//!
//! A client that sends nothing, or its headers a byte at a time, is cut off after the header
//! timeout; what it may make the server hold is bounded by the header limit.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulConnection;
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::sync::{Notify, watch};
use tower::Layer;

use crate::config::ServerConfig;
use crate::handshake::Handshake;
use crate::stream::Stream;

/// What a connection is told to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Closing {
    /// To go on.
    Open,
    /// To end when what it has been asked is answered.
    Finish,
    /// To end.
    Cut,
}

/// Waits until a connection is to close this far.
async fn told(closing: &mut watch::Receiver<Closing>, least: Closing) {
    // A server that is gone has cut its connections before.
    let _ = closing.wait_for(|now| *now >= least).await;
}

/// How long a connection without a request yet is still served when it is told to finish: its first
/// one may be on the way.
const FIRST_REQUEST: Duration = Duration::from_millis(250);

/// Waits until a connection is to finish, and has had its first request or the time for it.
async fn to_finish(closing: &mut watch::Receiver<Closing>, first: &Notify) {
    told(closing, Closing::Finish).await;
    let cut = told(closing, Closing::Cut);
    let _ = tokio::time::timeout(FIRST_REQUEST, async {
        tokio::select! {
            () = first.notified() => {}
            () = cut => {}
        }
    })
    .await;
}

/// What an HTTP/2 client begins with.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// The most streams of one HTTP/2 connection.
const STREAMS: u32 = 1024;

/// Serves one connection to its end, or, once `closing` says so, to the end of what it has asked.
pub(crate) async fn serve(
    (stream, handshake): (Box<dyn Stream>, Handshake),
    router: Router,
    config: &ServerConfig,
    mut closing: watch::Receiver<Closing>,
) {
    // Holds a permit from the first request on.
    let first = Arc::new(Notify::new());
    let begun = tokio::select! {
        begun = tokio::time::timeout(config.header_timeout, begin(stream, handshake)) => begun,
        () = to_finish(&mut closing, &first) => return,
    };
    let Ok(Ok((stream, is_http2))) = begun else { return };
    let noted = Arc::clone(&first);
    let noting = tower::util::MapRequestLayer::new(move |request: Request<Incoming>| {
        noted.notify_one();
        request
    });
    let service = TowerToHyperService::new(noting.layer(router));
    let io = TokioIo::new(stream);
    let ended = if is_http2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS)
            .max_header_list_size(u32::try_from(config.header_limit).unwrap_or(u32::MAX))
            .keep_alive_interval(config.header_timeout)
            .keep_alive_timeout(config.header_timeout);
        until_closed(builder.serve_connection(io, service), closing, &first).await
    } else {
        let mut builder = http1::Builder::new();
        builder
            .timer(TokioTimer::new())
            .header_read_timeout(config.header_timeout)
            .max_headers(config.max_headers)
            .max_buf_size(config.header_limit.max(8 << 10));
        until_closed(builder.serve_connection(io, service), closing, &first).await
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection broke off");
    }
}

/// Serves a connection until it has ended; told to finish, it answers what it has, and told to cut,
/// it is dropped. `first` is notified of each request.
async fn until_closed<C: GracefulConnection>(
    connection: C,
    mut closing: watch::Receiver<Closing>,
    first: &Notify,
) -> Result<(), C::Error> {
    let mut connection = pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return ended,
        () = to_finish(&mut closing, first) => connection.as_mut().graceful_shutdown(),
    }
    tokio::select! {
        ended = connection => ended,
        () = told(&mut closing, Closing::Cut) => Ok(()),
    }
}

/// Reads until it is clear what the client speaks, and gives back what was read with the stream.
async fn begin(stream: Box<dyn Stream>, handshake: Handshake) -> io::Result<(Prefixed, bool)> {
    let mut stream = handshake.with(stream).await?;
    let mut read = [0; PREFACE.len()];
    let mut filled = 0;
    while filled < PREFACE.len() && PREFACE.starts_with(&read[..filled]) {
        let count = stream.read(&mut read[filled..]).await?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += count;
    }
    let prefix = read[..filled].to_vec();
    Ok((Prefixed { prefix, taken: 0, stream }, read == PREFACE))
}

/// A stream with what was read of it before in front.
struct Prefixed {
    prefix: Vec<u8>,
    taken: usize,
    stream: Box<dyn Stream>,
}

impl AsyncRead for Prefixed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let rest = &self.prefix[self.taken..];
        if rest.is_empty() {
            return Pin::new(&mut self.stream).poll_read(context, into);
        }
        let count = rest.len().min(into.remaining());
        into.put_slice(&rest[..count]);
        self.taken += count;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Prefixed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
