//! Spans of requests at a stand-in for a collector.
//!
//! The server runs in a process of its own: what a process records, and where it sends that, is set
//! once, and by its environment.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::mpsc;

use onelane::testing::within_a_minute;
use onelane_server::Traces;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::trace::v1::Span;
use prost::Message;
use serde_json::json;
use tracing_subscriber::layer::SubscriberExt;

use crate::fake::Fake;
use crate::running::Running;

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const CALLER: &str = "00f067aa0ba902b7";
const SERVED: &str = "otlp::a_process_that_sends_its_spans";

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Reads a request and accepts it; what came with it.
fn export(stream: &TcpStream) -> ExportTraceServiceRequest {
    let mut reader = BufReader::new(stream);
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.starts_with("POST /v1/traces "), "{line}");
    let mut length = None;
    loop {
        line.clear();
        reader.read_line(&mut line).unwrap();
        let Some((name, value)) = line.trim().split_once(": ") else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = Some(value.parse().unwrap()),
            "content-type" => assert_eq!(value, "application/x-protobuf"),
            _ => {}
        }
    }
    let mut body = vec![0; length.unwrap()];
    reader.read_exact(&mut body).unwrap();
    let accepted = "HTTP/1.1 200 OK\r\ncontent-type: application/x-protobuf\r\n\
                    content-length: 0\r\nconnection: close\r\n\r\n";
    (&mut &*stream).write_all(accepted.as_bytes()).unwrap();
    ExportTraceServiceRequest::decode(body.as_slice()).unwrap()
}

fn attribute<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Any {
    let found = attributes.iter().find(|attribute| attribute.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {attributes:?}"));
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn text(span: &Span, key: &str) -> String {
    match attribute(&span.attributes, key) {
        Any::StringValue(text) => text.clone(),
        other => panic!("{key} is {other:?}"),
    }
}

fn seconds(span: &Span, key: &str) -> f64 {
    match attribute(&span.attributes, key) {
        Any::DoubleValue(number) => *number,
        other => panic!("{key} is {other:?}"),
    }
}

#[test]
fn a_request_s_span_joins_its_caller_s_trace() {
    within_a_minute(|| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let endpoint = format!("http://{}", listener.local_addr().unwrap());
        let (send, exports) = mpsc::channel();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if send.send(export(&stream.unwrap())).is_err() {
                    return;
                }
            }
        });
        let child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", SERVED, "--ignored", "--test-threads=1"])
            .env("OTEL_EXPORTER_OTLP_ENDPOINT", &endpoint)
            .stdout(Stdio::piped())
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&child.stdout);
        assert!(child.status.success() && said.contains("1 passed"), "{said}");

        let mut spans = Vec::new();
        for export in exports.try_iter() {
            for resource in export.resource_spans {
                let about = resource.resource.unwrap();
                let service = attribute(&about.attributes, "service.name");
                assert_eq!(*service, Any::StringValue("onelane".to_owned()));
                spans.extend(resource.scope_spans.into_iter().flat_map(|scope| scope.spans));
            }
        }
        let joined: Vec<&Span> = spans.iter().filter(|span| hex(&span.trace_id) == TRACE).collect();
        let named = |name: &str| {
            let found: Vec<&&Span> = joined.iter().filter(|span| span.name == name).collect();
            assert_eq!(found.len(), 1, "{name}: {joined:?}");
            *found[0]
        };
        let request = named("POST /v1/embeddings");
        assert_eq!((hex(&request.parent_span_id).as_str(), request.kind), (CALLER, 2));
        assert_eq!(text(request, "http.request.method"), "POST");
        assert_eq!(text(request, "http.route"), "/v1/embeddings");
        assert_eq!(text(request, "url.path"), "/v1/embeddings");
        let status = attribute(&request.attributes, "http.response.status_code");
        assert_eq!(*status, Any::IntValue(200));
        let (tokenise, infer) = (named("tokenise"), named("infer"));
        for inner in [tokenise, infer] {
            assert_eq!(inner.parent_span_id, request.span_id);
            assert!(request.start_time_unix_nano <= inner.start_time_unix_nano);
            assert!(inner.end_time_unix_nano <= request.end_time_unix_nano);
        }
        assert!(tokenise.end_time_unix_nano <= infer.start_time_unix_nano);
        assert_eq!(text(infer, "onelane.model"), "fake");
        assert_eq!(*attribute(&infer.attributes, "onelane.requests"), Any::IntValue(2));
        assert_eq!(*attribute(&tokenise.attributes, "onelane.texts"), Any::IntValue(2));
        let (wait, service) =
            (seconds(infer, "onelane.wait_seconds"), seconds(infer, "onelane.service_seconds"));
        let took = (infer.end_time_unix_nano - infer.start_time_unix_nano) as f64 / 1e9;
        assert!(
            wait > 0.0 && service > 0.0 && wait + service < took + 1e-3,
            "{wait} {service} {took}"
        );
        assert_eq!(joined.len(), 3, "{joined:?}");
        // Who says nothing of a trace begins one; what the engine fails on is an error.
        let alone = spans.iter().find(|span| span.name == "POST /embed").unwrap();
        assert!(alone.parent_span_id.is_empty() && hex(&alone.trace_id) != TRACE);
        assert_ne!(alone.status.as_ref().map(|status| status.code), Some(2));
        let failed = spans.iter().find(|span| span.name == "POST /api/embed").unwrap();
        assert_eq!(failed.status.as_ref().unwrap().code, 2);
        assert_eq!(text(failed, "error.type"), "500");
    });
}

#[test]
#[ignore = "another test runs it, in a process of its own"]
fn a_process_that_sends_its_spans() {
    let traces =
        Traces::from_env().unwrap().expect("the test that runs this one names an endpoint");
    let subscriber = tracing_subscriber::registry().with(traces.layer());
    tracing::subscriber::set_global_default(subscriber).unwrap();
    let server = Running::new(&Fake::default());
    let traceparent = format!("00-{TRACE}-{CALLER}-01");
    let headers = [("traceparent", traceparent.as_str())];
    let answer = server.post_with("/v1/embeddings", &headers, json!({"input": ["a", "b c"]}));
    assert_eq!(answer.status, 200);
    assert_eq!(server.post("/embed", json!({"inputs": ["a"]})).status, 200);
    assert_eq!(server.post("/api/embed", json!({"input": ["poison"]})).status, 500);
    drop(server);
    traces.shutdown();
}
