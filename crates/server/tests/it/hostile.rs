//! Clients that mean no good: too large, too slow, malformed.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;

use onelane::testing::within_a_minute;
use serde_json::json;

use crate::client;
use crate::fake::Fake;
use crate::running::{Running, config, queue};

#[test]
fn large_bodies_are_refused_before_they_are_read() {
    within_a_minute(|| {
        let server = Running::with(&Fake::default(), queue(), config().payload_limit(10_000));
        let large = vec![b' '; 64 << 20];
        let json = ("content-type", "application/json");
        let stated = client::call(server.at, "POST", "/embed", &[json], &large);
        assert_eq!(stated.status, 413);
        // Without saying how large it is.
        let mut stream = TcpStream::connect(server.at).unwrap();
        let head = "POST /embed HTTP/1.1\r\nhost: t\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
        stream.write_all(head.as_bytes()).unwrap();
        let chunk = [b"2000\r\n", &[b' '; 0x2000][..], b"\r\n"].concat();
        let _ = (0..8).try_for_each(|_| stream.write_all(&chunk));
        assert_eq!(client::answer(stream).status, 413);
        let values = format!("{{\"inputs\": [{}\"\"]}}", "[],".repeat(3000));
        assert_eq!(
            client::call(server.at, "POST", "/embed", &[json], values.as_bytes()).status,
            422
        );
        assert_eq!(server.post("/embed", json!({"inputs": "fine"})).status, 200);
    });
}

#[test]
fn many_and_large_headers_are_refused() {
    within_a_minute(|| {
        let server = Running::with(&Fake::default(), queue(), config().header_limit(16 << 10));
        let mut many = "GET /live HTTP/1.1\r\nhost: t\r\n".to_owned();
        (0..100_000).for_each(|i| many.push_str(&format!("x-{i}: y\r\n")));
        let large = format!("GET /live HTTP/1.1\r\nhost: t\r\nx: {}\r\n", "y".repeat(1 << 20));
        for request in [many, large] {
            let mut stream = TcpStream::connect(server.at).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            let _ = stream.write_all(request.as_bytes());
            let mut answer = Vec::new();
            // It may be reset while it still writes.
            let _ = stream.read_to_end(&mut answer);
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 431"), "{answer}");
        }
        assert_eq!(server.get("/live").status, 200);
    });
}

#[test]
fn who_is_slow_is_cut_off() {
    within_a_minute(|| {
        let short = Duration::from_millis(100);
        let config = config().header_timeout(short).body_timeout(short);
        let server = Running::with(&Fake::default(), queue(), config);
        for begun in ["", "G", "PRI * HT", "GET /live HTTP/1.1\r\nx: "] {
            let mut stream = TcpStream::connect(server.at).unwrap();
            stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
            stream.write_all(begun.as_bytes()).unwrap();
            let mut answer = Vec::new();
            stream.read_to_end(&mut answer).unwrap();
            let answer = String::from_utf8_lossy(&answer);
            assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 408"), "{answer}");
        }
        let mut stream = TcpStream::connect(server.at).unwrap();
        let head =
            "POST /embed HTTP/1.1\r\nhost: t\r\nconnection: close\r\ncontent-length: 9\r\n\r\n{";
        stream.write_all(head.as_bytes()).unwrap();
        assert_eq!(client::answer(stream).status, 408);
    });
}

#[test]
fn what_makes_no_sense_is_told_apart() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let post = |kind: &str, path: &str, body: &[u8]| {
            client::call(server.at, "POST", path, &[("content-type", kind)], body)
        };
        let json = "application/json";
        for body in [&b"{"[..], b"[]", b"\"x\"", b"{\"input\": 7}", b"\xff\xfe", b"", &[b'['; 4000]]
        {
            let answer = post(json, "/v1/embeddings", body);
            assert_eq!(answer.status, 400, "{}", answer.text());
            assert!(answer.json()["error"]["message"].is_string());
            assert_eq!(post(json, "/embed", body).status, 422);
            assert_eq!(post(json, "/api/embed", body).status, 400);
            assert_eq!(post(json, "/v2/models/fake/infer", body).status, 400);
        }
        assert_eq!(post("text/plain", "/v1/embeddings", b"{\"input\": \"a\"}").status, 415);
        assert_eq!(post("text/plain", "/api/embed", b"{\"input\": \"a\"}").status, 200);
        assert_eq!(server.get("/nowhere").status, 404);
        assert_eq!(server.get("/v1/nowhere").json()["error"]["code"], "model_not_found");
        assert_eq!(server.get("/embed").status, 405);
        let bell = server.post("/embed", json!({"inputs": ["fine", "\u{7}"]}));
        assert_eq!((bell.status, bell.message()), (422, "inputs[1]: it rings a bell".to_owned()));
        let mut garbage = TcpStream::connect(server.at).unwrap();
        garbage.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff garbage").unwrap();
        let _ = garbage.read_to_end(&mut Vec::new());
        assert_eq!(server.get("/live").status, 200);
    });
}

/// A frame of HTTP/2.
fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = (payload.len() as u32).to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// A header as it is spelt without tables.
fn header(name: &str, value: &str) -> Vec<u8> {
    let (name, value) = (name.as_bytes(), value.as_bytes());
    [&[0, name.len() as u8][..], name, &[value.len() as u8], value].concat()
}

#[test]
fn garbage_in_http_2_and_grpc_ends_its_own_connection_alone() {
    const OPENING: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let mut state = 1_u64;
        let mut random = move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 40) as u8
        };
        let mut noise = |count: usize| -> Vec<u8> { (0..count).map(|_| random()).collect() };
        let call = [
            &[0x83, 0x86][..],
            &header(":path", "/inference.GRPCInferenceService/ModelInfer"),
            &header(":authority", "test"),
            &header("content-type", "application/grpc"),
            &header("te", "trailers"),
        ]
        .concat();
        for round in 0..20 {
            let any_frames = (0..50).flat_map(|_| {
                let bytes = noise(4);
                frame(bytes[0] % 10, bytes[1], u32::from(bytes[2] % 9), &noise(bytes[3].into()))
            });
            let any_frames: Vec<u8> = any_frames.collect();
            // Streams that are reset as soon as they are opened.
            let resets = (0..2000).flat_map(|i| {
                let opened = frame(1, 5, 2 * i + 1, b"\x82\x87\x84\x41\x01x");
                [opened, frame(3, 0, 2 * i + 1, b"\0\0\0\x08")].concat()
            });
            // Headers that never end.
            let endless = frame(9, 0, 1, &b"\0\x01a\x01b".repeat(2000)).repeat(100);
            // A message that is shorter, or much longer, than it says, and no message at all.
            let stated = [10, 1000, u32::MAX / 2][round % 3].to_be_bytes();
            let message = [&[0][..], &stated, &noise(1000)].concat();
            for garbage in [
                noise(5000),
                any_frames,
                resets.collect(),
                [frame(1, 0, 1, b"\x82"), endless].concat(),
                [frame(1, 4, 1, &call), frame(0, 1, 1, &message)].concat(),
            ] {
                let mut stream = TcpStream::connect(server.at).unwrap();
                // The server may have closed it before everything is sent.
                let _ = stream.write_all(OPENING).and_then(|()| stream.write_all(&garbage));
            }
            assert_eq!(server.get("/live").status, 200);
        }
        assert_eq!(server.post("/embed", json!({"inputs": "fine"})).status, 200);
    });
}
