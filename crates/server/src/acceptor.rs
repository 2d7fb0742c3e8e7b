//! Accepts connections, each served by a task of its own, until it is told to stop; then whatever the
//! system has already taken for this listener, and no more.
//!
//! A client whose connection waits in the listener's backlog has been told that it is connected, and
//! may have sent its request: if the listener closed now, the system would reset it.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::ServerConfig;
use crate::connection::{self, Closing};
use crate::listener::Listener;
use crate::stream::Stream;

/// How long to wait when no connection can be accepted, for want of file descriptors.
const NO_CONNECTION: Duration = Duration::from_millis(50);

/// No backlog is longer. It bounds what is accepted at the end while more and more come.
const BACKLOG: usize = 4096;

/// Accepts connections.
pub(crate) struct Acceptor {
    pub(crate) listener: Listener,
    pub(crate) router: Router,
    pub(crate) config: Arc<ServerConfig>,
    /// What the connections are told.
    pub(crate) closing: watch::Receiver<Closing>,
    /// Held by each connection while it lives.
    pub(crate) alive: mpsc::Sender<()>,
}

impl Acceptor {
    /// Accepts until `stop` is sent, or dropped; then closes the listener.
    pub(crate) async fn run(self, mut stop: oneshot::Receiver<()>) {
        loop {
            let accepted = tokio::select! {
                biased;
                _ = &mut stop => break,
                accepted = self.listener.accept() => accepted,
            };
            match accepted {
                Ok(stream) => self.serve(stream),
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "no connection can be accepted");
                    tokio::time::sleep(NO_CONNECTION).await;
                }
            }
        }
        for _ in 0..BACKLOG {
            match self.listener.accept_waiting() {
                Ok(Some(stream)) => self.serve(stream),
                Ok(None) => break,
                Err(error) if is_of_one_connection(&error) => {}
                Err(error) => {
                    tracing::warn!(%error, "connections that waited were not accepted");
                    break;
                }
            }
        }
    }

    fn serve(&self, stream: Box<dyn Stream>) {
        let (config, router) = (Arc::clone(&self.config), self.router.clone());
        let (closing, alive) = (self.closing.clone(), self.alive.clone());
        let stream = (stream, self.listener.handshake());
        tokio::spawn(async move {
            connection::serve(stream, router, &config, closing).await;
            drop(alive);
        });
    }
}

/// Whether the connection was gone before it was accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionAborted, ConnectionRefused, ConnectionReset, InvalidInput};
    matches!(error.kind(), ConnectionAborted | ConnectionRefused | ConnectionReset | InvalidInput)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;

    use axum::routing::get;
    use onelane::testing::within_a_minute;

    use super::*;

    #[test]
    fn connections_that_wait_when_the_listener_closes_are_answered() {
        within_a_minute(|| {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            let _within = runtime.enter();
            let listener = Listener::tcp("127.0.0.1:0").unwrap();
            let at = listener.address().unwrap();
            // Nobody accepts yet: the system has taken them, and the requests of all but the last,
            // which has not sent its own yet.
            let connect = |_| TcpStream::connect(at).unwrap();
            let mut clients: Vec<TcpStream> = (0..20).map(connect).collect();
            let (late, early) = clients.split_last_mut().unwrap();
            let request = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
            early.iter_mut().for_each(|client| client.write_all(request).unwrap());

            let (close, closing) = watch::channel(Closing::Open);
            let (alive, mut connections) = mpsc::channel(1);
            let router = Router::new().route("/", get(|| async { "here" }));
            let config = Arc::new(ServerConfig::default());
            let acceptor = Acceptor { listener, router, config, closing, alive };
            let (stop, stopped) = oneshot::channel();
            stop.send(()).unwrap();
            runtime.block_on(acceptor.run(stopped));
            assert!(TcpStream::connect(at).is_err(), "it still listens");
            close.send_replace(Closing::Finish);
            late.write_all(request).unwrap();
            for mut client in clients {
                let mut answer = String::new();
                client.read_to_string(&mut answer).unwrap();
                assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("here"), "{answer}");
            }
            runtime.block_on(async { while connections.recv().await.is_some() {} });
        });
    }
}
