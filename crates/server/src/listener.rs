//! Where a server listens: a TCP address or a Unix socket, by TLS or without.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::handshake::Handshake;
use crate::stream::Stream;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// Where a server listens.
#[derive(Debug)]
pub struct Listener {
    kind: Kind,
    #[cfg(feature = "tls")]
    tls: Option<Tls>,
}

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

impl Listener {
    fn new(kind: Kind) -> Self {
        Self {
            kind,
            #[cfg(feature = "tls")]
            tls: None,
        }
    }

    /// Speaks TLS (1.2 or 1.3; HTTP/2 by ALPN) with this certificate chain and its private key, both
    /// PEM. They are read now and not again.
    ///
    /// # Errors
    /// A file that cannot be read, or does not hold what it should; the text names it.
    #[cfg(feature = "tls")]
    pub fn tls(mut self, certificate: &Path, key: &Path) -> io::Result<Self> {
        self.tls = Some(Tls::read(certificate, key)?);
        Ok(self)
    }

    /// Listens on a TCP address; port 0 takes a free one. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the address cannot be had; the text names it.
    pub fn tcp(address: impl ToSocketAddrs + std::fmt::Display) -> io::Result<Self> {
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {address}: {error}"))
        };
        let listener = std::net::TcpListener::bind(&address).map_err(named)?;
        listener.set_nonblocking(true).map_err(named)?;
        Ok(Self::new(Kind::Tcp(TcpListener::from_std(listener).map_err(named)?)))
    }

    /// Listens on a port of a host, as [`tcp`](Self::tcp) does; the host may be an IPv6 address, with
    /// brackets or without.
    ///
    /// # Errors
    /// As [`tcp`](Self::tcp).
    pub fn host(host: &str, port: u16) -> io::Result<Self> {
        if host.contains(':') && !host.starts_with('[') {
            return Self::tcp(format!("[{host}]:{port}"));
        }
        Self::tcp(format!("{host}:{port}"))
    }

    /// Listens on a Unix socket; one that a server that has ended left behind is replaced. The file
    /// goes with the listener. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When it cannot be made: another server listens there, or it is a file of another kind.
    pub fn unix(path: impl AsRef<Path>) -> io::Result<Self> {
        let path = path.as_ref();
        let named = |error: io::Error| {
            io::Error::new(error.kind(), format!("cannot listen on {}: {error}", path.display()))
        };
        if let Ok(found) = std::fs::symlink_metadata(path) {
            if !found.file_type().is_socket() {
                return Err(named(io::Error::other("there is a file that is no socket")));
            }
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(named(io::Error::other("another server listens there")));
            }
            std::fs::remove_file(path).map_err(named)?;
        }
        let listener = UnixListener::bind(path).map_err(named)?;
        Ok(Self::new(Kind::Unix { listener, path: path.to_owned() }))
    }

    fn scheme(&self) -> &'static str {
        #[cfg(feature = "tls")]
        if self.tls.is_some() {
            return "https";
        }
        "http"
    }

    /// The TCP address, if it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.kind {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    /// What makes an accepted stream one that HTTP is spoken on. It waits for the client, so that it
    /// belongs to the connection's own task.
    pub(crate) fn handshake(&self) -> Handshake {
        Handshake {
            #[cfg(feature = "tls")]
            tls: self.tls.clone(),
        }
    }

    /// A connection that the system has taken already; `None` when there is no more.
    ///
    /// The system itself is asked: what the runtime knows of the socket is what was so a moment ago.
    pub(crate) fn accept_waiting(&self) -> io::Result<Option<Box<dyn Stream>>> {
        let accepted = match &self.kind {
            Kind::Tcp(listener) => {
                let listener = listener.as_fd().try_clone_to_owned()?;
                std::net::TcpListener::from(listener).accept().and_then(|(stream, _)| {
                    stream.set_nodelay(true)?;
                    stream.set_nonblocking(true)?;
                    Ok(Box::new(TcpStream::from_std(stream)?) as Box<dyn Stream>)
                })
            }
            Kind::Unix { listener, .. } => {
                let listener = listener.as_fd().try_clone_to_owned()?;
                let listener = std::os::unix::net::UnixListener::from(listener);
                listener.accept().and_then(|(stream, _)| {
                    stream.set_nonblocking(true)?;
                    Ok(Box::new(UnixStream::from_std(stream)?) as Box<dyn Stream>)
                })
            }
        };
        match accepted {
            Ok(stream) => Ok(Some(stream)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.kind {
            Kind::Tcp(listener) => {
                let (stream, _) = listener.accept().await?;
                // Answers are small and wanted now.
                stream.set_nodelay(true)?;
                Box::new(stream)
            }
            Kind::Unix { listener, .. } => Box::new(listener.accept().await?.0),
        })
    }
}

impl std::fmt::Display for Listener {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.kind {
            Kind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "{}://{address}", self.scheme()),
                Err(_) => f.write_str("a closed socket"),
            },
            Kind::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix { path, .. } = &self.kind {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}
