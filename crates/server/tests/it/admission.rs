//! What is admitted, in what order it runs, what is refused and what is given up.

use onelane::testing::within_a_minute;
use serde_json::json;

use crate::client;
use crate::fake::{Fake, vector};
use crate::running::{Running, config, queue};

#[test]
fn a_call_is_refused_whole_and_told_when_to_come_again() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::with(&fake, queue().capacity(4), config());
        let first = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let second = server.embed_beside(&["a", "b"], &[]);
        server.wait_waiting(2);
        // Two would fit, three do not: none of them is taken.
        let refused = server.post("/v1/embeddings", json!({"input": ["c", "d", "e"]}));
        assert_eq!(refused.status, 429);
        let millis: u64 = refused.header("retry-after-ms").unwrap().parse().unwrap();
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!(millis >= 1 && seconds == millis.div_ceil(1000), "{millis} ms, {seconds} s");
        assert_eq!(refused.json()["error"]["type"], "rate_limit_error");
        assert_eq!(server.waiting(), 2);
        fake.gate.open_for_good();
        assert_eq!(first.join().unwrap().status, 200);
        assert_eq!(second.join().unwrap().status, 200);
        assert_eq!(fake.texts(), ["gate", "a", "b"]);
    });
}

#[test]
fn a_call_larger_than_the_queue_is_fed_to_it_in_order() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::with(&fake, queue().capacity(4), config());
        let texts: Vec<String> =
            (0..50).map(|i| format!("text {i}{}", " x".repeat(i % 5))).collect();
        let answer = server.post("/embed", json!({"inputs": texts}));
        assert_eq!(answer.status, 200, "{}", answer.text());
        let vectors: Vec<Vec<f32>> = serde_json::from_value(answer.json()).unwrap();
        let expected: Vec<Vec<f32>> = texts.iter().map(|text| vector(text)).collect();
        assert_eq!(vectors, expected);
    });
}

#[test]
fn a_poisoned_text_fails_its_call_by_name_and_no_other() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::new(&fake);
        let gate = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let innocent = server.embed_beside(&["innocent"], &[]);
        server.wait_waiting(1);
        let guilty = server.embed_beside(&["fine", "poison"], &[]);
        server.wait_waiting(3);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        assert_eq!(innocent.join().unwrap().status, 200);
        let guilty = guilty.join().unwrap();
        assert_eq!((guilty.status, guilty.header("x-should-retry")), (424, Some("false")));
        assert!(guilty.message().starts_with("inputs[1]: "), "{}", guilty.message());
        let guilty = server.post("/v1/embeddings", json!({"input": ["a", "b", "nan"]}));
        assert_eq!((guilty.status, guilty.header("x-should-retry")), (500, Some("false")));
        assert_eq!(guilty.json()["error"]["param"], "input[2]");
    });
}

#[test]
fn what_a_client_that_leaves_has_waiting_is_not_computed() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::with(&fake, queue().capacity(1000), config());
        let gate = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let leave = || {
            let body = json!({"inputs": ["unwanted", "unwanted"]}).to_string();
            let headers = [("content-type", "application/json")];
            client::send(server.at, "POST", "/embed", &headers, body.as_bytes())
        };
        let leaving: Vec<_> = (0..100).map(|_| leave()).collect();
        server.wait_waiting(200);
        drop(leaving);
        server.wait_waiting(0);
        assert_eq!(server.stat("cancelled"), 200);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        assert_eq!(fake.texts(), ["gate"]);
    });
}

#[test]
fn what_has_not_started_by_its_deadline_is_not_computed() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::new(&fake);
        let gate = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        for header in [("x-request-timeout-ms", "30"), ("x-stainless-read-timeout", "0.03")] {
            let late = server.post_with("/v1/embeddings", &[header], json!({"input": "late"}));
            assert_eq!((late.status, late.header("x-should-retry")), (504, Some("false")));
        }
        let timeout = json!({"parameters": {"timeout": 30_000}, "inputs": [
            {"name": "text", "shape": [1], "datatype": "BYTES", "data": ["late"]}]});
        assert_eq!(server.post("/v2/models/fake/infer", timeout).status, 504);
        assert_eq!(server.stat("expired"), 3);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        assert_eq!(fake.texts(), ["gate"]);
    });
}

#[test]
fn urgent_calls_go_first_and_large_ones_are_bulk() {
    within_a_minute(|| {
        let fake = Fake::default();
        let one = queue().max_batch_size(1).ageing(std::time::Duration::MAX);
        let server = Running::with(&fake, one, config());
        let gate = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let many = vec!["many"; 33];
        let calls = [
            (&many[..], &[][..], 33),
            (&["normal"], &[], 34),
            (&["bulk"], &[("priority", "u=7")], 35),
            (&["urgent"], &[("x-priority", "interactive")], 36),
        ];
        let mut waiting = Vec::new();
        for (texts, headers, count) in calls {
            waiting.push(server.embed_beside(texts, headers));
            server.wait_waiting(count);
        }
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        for call in waiting {
            assert_eq!(call.join().unwrap().status, 200);
        }
        let texts = fake.texts();
        assert_eq!(texts[..4], ["gate", "urgent", "normal", "many"]);
        assert_eq!(texts[36], "bulk");
    });
}

#[test]
fn texts_of_many_calls_share_batches() {
    within_a_minute(|| {
        let fake = Fake::default();
        let server = Running::new(&fake);
        let gate = server.embed_beside(&["gate"], &[]);
        fake.gate.wait_for_arrivals(1);
        let calls: Vec<_> = (0..8).map(|_| server.embed_beside(&["same length"], &[])).collect();
        server.wait_waiting(8);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        for call in calls {
            assert_eq!(call.join().unwrap().status, 200);
        }
        let sizes: Vec<usize> = fake.ran.lock().unwrap().iter().map(Vec::len).collect();
        assert_eq!(sizes, [1, 8]);
    });
}
