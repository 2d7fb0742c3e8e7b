//! A server behind a certificate.

use std::io::Write;
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};

use onelane::testing::within_a_minute;
use onelane_server::{Listener, Model, Server, Signals};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto, pki_types::CertificateDer,
};

use crate::client;
use crate::fake::Fake;
use crate::running::{config, device, queue};

/// A certificate for localhost that signs itself, valid for a hundred years, its key, and another key:
/// made by `openssl req -x509 -newkey ed25519` for these tests alone.
const CERTIFICATE: &str = "-----BEGIN CERTIFICATE-----
MIIBUjCCAQSgAwIBAgIUY/+3pUBmV8S26uDEE0CZlgzr6RswBQYDK2VwMBQxEjAQ
BgNVBAMMCWxvY2FsaG9zdDAgFw0yNjExMjgyMzI0MjJaGA8yMTI2MTEwNDIzMjQy
MlowFDESMBAGA1UEAwwJbG9jYWxob3N0MCowBQYDK2VwAyEABp0VzVoQyEC6mekw
F2oqLqK0C6jqkVS4nKUFONXRiS2jZjBkMB0GA1UdDgQWBBRmbGptc4KHsCM/YqQg
MadlSWeqQDAfBgNVHSMEGDAWgBRmbGptc4KHsCM/YqQgMadlSWeqQDAUBgNVHREE
DTALgglsb2NhbGhvc3QwDAYDVR0TAQH/BAIwADAFBgMrZXADQQBLzFzX0VlX1Fke
/RLw0sPLzJTz0d4umX8/lxSPL4TXRYo5MsuWvDOiWElE7nrRA+w2rLgRu6wBVawm
Jg5Si0EG
-----END CERTIFICATE-----
";
const KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIE8sQHdEmj81oMP/v9de2MjDDcWS7WSgFQe3D3YNCPjh
-----END PRIVATE KEY-----
";
const OTHER_KEY: &str = "-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VwBCIEIL8LSclR9XzE3xz3eUS+7x8B2FhhKmyHXGFTKpKqN5CB
-----END PRIVATE KEY-----
";

/// Writes the certificate and its key.
fn certificate(dir: &Path) -> (PathBuf, PathBuf) {
    let (certificate, key) = (dir.join("cert.pem"), dir.join("key.pem"));
    std::fs::write(&certificate, CERTIFICATE).unwrap();
    std::fs::write(&key, KEY).unwrap();
    (certificate, key)
}

/// A client's connection that trusts the certificate.
fn connect(
    at: SocketAddr,
    certificate: &Path,
    protocol: &[u8],
) -> StreamOwned<ClientConnection, TcpStream> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(certificate).unwrap()).unwrap();
    let provider = Arc::new(crypto::ring::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![protocol.to_vec()];
    let name = ServerName::try_from("localhost").unwrap();
    let connection = ClientConnection::new(Arc::new(config), name).unwrap();
    StreamOwned::new(connection, TcpStream::connect(at).unwrap())
}

#[test]
fn tls_serves_both_versions_of_http_and_outlives_plain_clients() {
    within_a_minute(|| {
        let dir = tempfile::tempdir().unwrap();
        let (certificate, key) = certificate(dir.path());
        let (stop, signals) = Signals::manual();
        let (send, receive) = mpsc::channel();
        let (of_server, key) = (certificate.clone(), key);
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let model = Model::embedder("fake", Fake::default(), &device(), queue());
                let listener = Listener::tcp("127.0.0.1:0").unwrap().tls(&of_server, &key).unwrap();
                assert!(listener.to_string().starts_with("https://127.0.0.1:"), "{listener}");
                send.send(listener.address().unwrap()).unwrap();
                Server::new(config(), vec![model]).unwrap().serve(listener, signals).await
            })
        });
        let at = receive.recv().unwrap();
        // Who speaks no TLS is cut off, and nobody else is.
        let mut plain = TcpStream::connect(at).unwrap();
        plain.write_all(b"GET /live HTTP/1.1\r\nhost: x\r\n\r\n").unwrap();
        let mut silent = TcpStream::connect(at).unwrap();
        silent.write_all(&[22]).unwrap();
        let mut stream = connect(at, &certificate, b"http/1.1");
        client::write(&mut stream, "GET", "/live", &[], b"");
        assert_eq!(client::answer(&mut stream).status, 200);
        let mut newer = connect(at, &certificate, b"h2");
        newer.conn.complete_io(&mut newer.sock).unwrap();
        assert_eq!(newer.conn.alpn_protocol(), Some(&b"h2"[..]));
        // HTTP/2 begins with the server's settings: a frame of type 4.
        newer.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").unwrap();
        let mut head = [0; 9];
        std::io::Read::read_exact(&mut newer, &mut head).unwrap();
        assert_eq!(head[3], 4, "{head:?}");
        // It would not answer the ping that ends a connection of HTTP/2.
        drop(newer);
        stop.signal();
        server.join().unwrap().unwrap();
    });
}

#[test]
fn a_wrong_certificate_or_key_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let (certificate, key) = certificate(dir.path());
    let other = dir.path().join("other.pem");
    std::fs::write(&other, OTHER_KEY).unwrap();
    let none = dir.path().join("none.pem");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    for (certificate, key, named) in [
        (&none, &key, "none.pem"),
        (&certificate, &none, "none.pem"),
        (&key, &key, "key.pem"),
        (&certificate, &certificate, "cert.pem"),
        (&certificate, &other, "other.pem"),
    ] {
        let tls =
            runtime.block_on(async { Listener::tcp("127.0.0.1:0").unwrap().tls(certificate, key) });
        let error = tls.unwrap_err().to_string();
        assert!(error.contains(named), "{error}");
    }
}
