//! How a connection begins: by TLS, or by nothing.

use std::io;

use crate::stream::Stream;
#[cfg(feature = "tls")]
use crate::tls::Tls;

/// What a listener's streams begin with.
pub(crate) struct Handshake {
    #[cfg(feature = "tls")]
    pub(crate) tls: Option<Tls>,
}

impl Handshake {
    pub(crate) async fn with(self, stream: Box<dyn Stream>) -> io::Result<Box<dyn Stream>> {
        #[cfg(feature = "tls")]
        if let Some(tls) = &self.tls {
            return tls.handshake(stream).await;
        }
        Ok(stream)
    }
}
