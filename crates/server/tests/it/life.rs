//! From loading to the last answer.

use std::io::Read;
use std::net::TcpStream;
use std::time::Duration;

use onelane::testing::within_a_minute;
use onelane_server::{Model, ServeError};
use serde_json::json;

use crate::client;
use crate::fake::Fake;
use crate::running::{Running, config, device, queue, until};

#[test]
fn a_drain_fails_ready_first_and_no_accepted_call() {
    within_a_minute(|| {
        let fake = Fake::default();
        // The listener stays open until the test has seen what it came for.
        let server = Running::with(&fake, queue(), config().drain_delay(Duration::from_secs(1)));
        let running = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let waiting = server.embed_beside(&["waits"], &[]);
        server.wait_waiting(1);
        server.stop.signal();
        until("/ready fails", || server.get("/ready").status == 503);
        assert_eq!(server.get("/live").status, 200);
        assert_eq!(server.get("/health").status, 503);
        let late = server.embed_beside(&["late"], &[]);
        server.wait_waiting(2);
        until("the listener is closed", || TcpStream::connect(server.at).is_err());
        fake.gate.open_for_good();
        for call in [running, waiting, late] {
            assert_eq!(call.join().unwrap().status, 200);
        }
        server.ended().unwrap();
    });
}

#[test]
fn a_second_signal_aborts_and_those_who_wait_are_told() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::new(&fake);
        let running = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let waiting = server.embed_beside(&["waits"], &[]);
        server.wait_waiting(1);
        server.stop.signal();
        server.stop.signal();
        assert_eq!(waiting.join().unwrap().status, 503);
        fake.gate.open_for_good();
        assert_eq!(running.join().unwrap().status, 200);
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Aborted { .. })), "{ended:?}");
        assert!(!fake.texts().contains(&"waits".to_owned()));
    });
}

#[test]
fn a_drain_that_takes_too_long_is_cut_short() {
    within_a_minute(|| {
        let fake = Fake::default();
        let short = config().drain_timeout(Duration::from_millis(50));
        let server = Running::with(&fake, queue(), short);
        let running = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let waiting = server.embed_beside(&["waits"], &[]);
        server.wait_waiting(1);
        server.stop.signal();
        assert_eq!(waiting.join().unwrap().status, 503);
        fake.gate.open_for_good();
        assert_eq!(running.join().unwrap().status, 200);
        assert!(matches!(server.ended(), Err(ServeError::Aborted { .. })));
    });
}

#[test]
fn a_model_that_computes_batches_wrongly_is_not_served() {
    within_a_minute(|| {
        let fake = Fake { wrong: true, ..Fake::default() };
        let model = || Model::embedder("fake", fake.clone(), &device(), queue());
        let ended = Running::of(vec![model()], config()).ended();
        let Err(ServeError::SelfCheck { model: name, reason }) = ended else {
            panic!("{ended:?}");
        };
        assert_eq!(name, "fake");
        assert!(reason.contains("another answer in a batch than alone"), "{reason}");
        let server = Running::of(vec![model()], config().self_check(false));
        server.wait_ready();
    });
}

#[test]
fn the_self_check_sees_every_bucket_alone_and_together() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server =
            Running::of(vec![Model::embedder("fake", fake.clone(), &device(), queue())], config());
        server.wait_ready();
        let ran = fake.ran.lock().unwrap().clone();
        let buckets = |of: &dyn Fn(&[String]) -> bool| {
            let key = |text: &String| text.split(' ').count().next_power_of_two();
            let mut keys: Vec<usize> =
                ran.iter().filter(|batch| of(batch)).flatten().map(key).collect();
            keys.sort_unstable();
            keys.dedup();
            keys
        };
        assert_eq!(buckets(&|batch| batch.len() == 1), [1, 2, 4, 8, 16, 32, 64]);
        assert_eq!(buckets(&|batch| batch.len() > 1), [2, 4, 8, 16, 32, 64]);
    });
}

#[test]
fn a_device_that_hangs_is_seen_and_ends_the_server() {
    within_a_minute(|| {
        let fake = Fake::default();
        let stalls = queue().stall_after(Duration::from_millis(20));
        let long = Duration::from_secs(4);
        let server = Running::with(&fake, stalls, config().stall_exit(Some(long)));
        let call = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        until("/ready fails", || server.get("/ready").status == 503);
        assert!(
            server
                .get("/metrics")
                .text()
                .contains("onelane_health{model=\"fake\",state=\"stalled\"} 1")
        );
        let ended = server.ended();
        assert!(matches!(ended, Err(ServeError::Hung { .. })), "{ended:?}");
        fake.gate.open_for_good();
        // Its connection was cut: there is nothing to be read of it.
        assert!(call.join().is_err());
    });
}

#[test]
fn a_server_that_loads_says_so() {
    within_a_minute(|| {
        let fake = Fake::default();
        let device = device();
        let gate = fake.gate.clone();
        let held = device.submit(move || gate.pass()).unwrap();
        let server =
            Running::of(vec![Model::embedder("fake", fake.clone(), &device, queue())], config());
        until("it listens", || server.get("/live").status == 200);
        assert_eq!(server.get("/ready").status, 503);
        let early = server.post("/v1/embeddings", json!({"input": "early"}));
        assert_eq!(early.status, 503);
        assert!(early.message().contains("loading"), "{}", early.message());
        fake.gate.open_for_good();
        held.wait().unwrap();
        server.wait_ready();
        assert_eq!(server.post("/v1/embeddings", json!({"input": "now"})).status, 200);
    });
}

#[test]
fn idle_connections_do_not_hold_a_drain_up() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::new(&fake);
        let mut silent = TcpStream::connect(server.at).unwrap();
        let mut kept = TcpStream::connect(server.at).unwrap();
        client::write(&mut kept, "GET", "/live", &[], b"");
        server.stop.signal();
        // Reset, if it had not been accepted yet.
        assert!(matches!(silent.read(&mut [0]), Ok(0) | Err(_)));
        server.ended().unwrap();
    });
}
