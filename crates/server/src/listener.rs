//! Where a server listens: a TCP address or a Unix socket.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

use tokio::net::{TcpListener, UnixListener};

use crate::connection::Stream;

/// Where a server listens.
#[derive(Debug)]
pub struct Listener(Kind);

#[derive(Debug)]
enum Kind {
    Tcp(TcpListener),
    Unix { listener: UnixListener, path: PathBuf },
}

impl Listener {
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
        Ok(Self(Kind::Tcp(TcpListener::from_std(listener).map_err(named)?)))
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
        Ok(Self(Kind::Unix { listener, path: path.to_owned() }))
    }

    /// The TCP address, if it is one.
    pub fn address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Kind::Tcp(listener) => listener.local_addr().ok(),
            Kind::Unix { .. } => None,
        }
    }

    pub(crate) async fn accept(&self) -> io::Result<Box<dyn Stream>> {
        Ok(match &self.0 {
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
        match &self.0 {
            Kind::Tcp(listener) => match listener.local_addr() {
                Ok(address) => write!(f, "http://{address}"),
                Err(_) => f.write_str("a closed socket"),
            },
            Kind::Unix { path, .. } => write!(f, "unix:{}", path.display()),
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        if let Kind::Unix { path, .. } = &self.0 {
            // It may be gone already.
            let _ = std::fs::remove_file(path);
        }
    }
}
