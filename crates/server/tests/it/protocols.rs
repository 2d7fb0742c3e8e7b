//! What each family of protocols answers.

use std::os::unix::net::UnixStream;

use onelane::testing::within_a_minute;
use onelane_server::{Listener, Model, Server, Signals};
use serde_json::{Value, json};

use crate::client;
use crate::fake::{Fake, LIMIT, Labels, Shared, vector};
use crate::running::{Running, config, device, queue, until};

fn floats(value: &Value) -> Vec<f32> {
    serde_json::from_value(value.clone()).unwrap()
}

#[test]
fn openai_embeds_as_floats_and_base64() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let texts = ["a b c", "d"];
        let ask = |more: Value| {
            let mut body = json!({"model": "fake", "input": texts});
            body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            server.post("/v1/embeddings", body)
        };
        let plain = ask(json!({})).json();
        assert_eq!(plain["usage"], json!({"prompt_tokens": 4, "total_tokens": 4}));
        assert_eq!((&plain["object"], &plain["model"]), (&json!("list"), &json!("fake")));
        for (index, text) in texts.iter().enumerate() {
            assert_eq!(plain["data"][index]["index"], index);
            assert_eq!(floats(&plain["data"][index]["embedding"]), vector(text));
        }
        let packed = ask(json!({"encoding_format": "base64"})).json();
        let packed = packed["data"][0]["embedding"].as_str().unwrap();
        assert_eq!(unpacked(packed), vector(texts[0]));
        // Not made to be cut.
        let refused = ask(json!({"dimensions": 2}));
        assert_eq!(
            (refused.status, &refused.json()["error"]["param"]),
            (400, &json!("dimensions"))
        );
        assert_eq!(ask(json!({"dimensions": 4})).status, 200);
        assert_eq!(ask(json!({"dimensions": 0})).status, 400);
        assert_eq!(ask(json!({"priority": "soon"})).status, 400);
        let unknown = ask(json!({"model": "other"}));
        assert_eq!(
            (unknown.status, &unknown.json()["error"]["code"]),
            (404, &json!("model_not_found"))
        );
        let ids = ask(json!({"input": [[1, 2]]}));
        assert!(ids.message().contains("check_embedding_ctx_length"), "{}", ids.message());
        assert_eq!(server.get("/v1/models").json()["data"][0]["id"], "fake");
        assert_eq!(server.get("/v1/models/fake").json()["object"], "model");
        assert_eq!(server.get("/v1/models/other").status, 404);
    });
}

#[test]
fn prompts_go_before_the_texts() {
    within_a_minute(|| {
        let fake = Fake { default_prompt: Some("text: ".to_owned()), ..Fake::default() };
        let server = Running::new(&fake);
        let embed = |body: Value| server.post("/embed", body);
        let vectors = |body: Value| floats(&embed(body).json()[0]);
        assert_eq!(vectors(json!({"inputs": ["a"]})), vector("text: a"));
        let asked = json!({"inputs": ["a"], "prompt_name": "query"});
        assert_eq!(vectors(asked), vector("ask: a"));
        let openai = server.post("/v1/embeddings", json!({"input": "a"})).json();
        assert_eq!(floats(&openai["data"][0]["embedding"]), vector("text: a"));
        let unknown = embed(json!({"inputs": "a", "prompt_name": "other"}));
        assert_eq!(unknown.status, 422);
        let said = "prompt_name: no prompt is called \"other\"; there is query";
        assert_eq!(unknown.message(), said);
    });
}

/// The floats of a base64 text, read by hand.
fn unpacked(text: &str) -> Vec<f32> {
    const DIGITS: &[u8] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let (mut bits, mut held, mut bytes) = (0_u32, 0, Vec::new());
    for digit in text.bytes().filter(|byte| *byte != b'=') {
        bits = bits << 6 | DIGITS.iter().position(|known| *known == digit).unwrap() as u32;
        held += 6;
        if held >= 8 {
            held -= 8;
            bytes.push((bits >> held) as u8);
        }
    }
    bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
}

#[test]
fn cut_embeddings_have_length_one_and_cut_texts_are_told() {
    within_a_minute(|| {
        let server =
            Running::with(&Fake::default(), queue(), config().matryoshka(true).max_texts(2));
        let cut = server.post("/embed", json!({"inputs": "some text", "dimensions": 2}));
        let cut = floats(&cut.json()[0]);
        let full = vector("some text");
        assert_eq!(cut.len(), 2);
        assert!((cut.iter().map(|n| n * n).sum::<f32>() - 1.0).abs() < 1e-6);
        assert!((cut[0] / cut[1] - full[0] / full[1]).abs() < 1e-5);
        let long = "w ".repeat(LIMIT + 1);
        let told = server.post("/v1/embeddings", json!({"input": ["a", long]}));
        assert_eq!((told.status, told.header("x-truncated-inputs")), (200, Some("1")));
        let refused = server.post("/embed", json!({"inputs": ["a", long], "truncate": false}));
        assert_eq!(refused.status, 413);
        assert!(refused.message().starts_with("inputs[1]"), "{}", refused.message());
        assert_eq!(server.post("/embed", json!({"inputs": ["a", "b", "c"]})).status, 422);
    });
}

#[test]
fn tei_routes_answer_in_tei_s_form() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let one = server.post("/embed", json!({"inputs": "a text"}));
        assert_eq!(floats(&one.json()[0]), vector("a text"));
        assert_eq!(one.header("x-compute-tokens"), Some("2"));
        assert_eq!(one.header("x-compute-characters"), Some("6"));
        assert_eq!(server.post("/", json!({"inputs": ["a text"]})).json(), one.json());
        assert_eq!(server.post("/embed", json!({"inputs": "a", "normalize": false})).status, 422);
        let pairs = json!({"inputs": {"source_sentence": "a", "sentences": ["a", "other"]}});
        for path in ["/similarity", "/"] {
            let scores = floats(&server.post(path, pairs.clone()).json());
            assert_eq!(scores.len(), 2);
            assert!((scores[0] - 1.0).abs() < 1e-6 && scores[1] < 1.0, "{scores:?}");
        }
        let tokens = server.post("/tokenize", json!({"inputs": "ab cde"})).json();
        assert_eq!(
            tokens[0][0],
            json!({"id": 0, "text": "[S]", "special": true, "start": null, "stop": null})
        );
        assert_eq!(
            tokens[0][2],
            json!({"id": 3, "text": "cde", "special": false, "start": 3, "stop": 6})
        );
        assert_eq!(server.post("/decode", json!({"ids": [1, 2]})).json(), json!(["x xx"]));
        assert_eq!(server.post("/decode", json!({"ids": [[1], [3]]})).json(), json!(["x", "xxx"]));
        let info = server.get("/info").json();
        assert_eq!((&info["model_id"], &info["max_input_length"]), (&json!("fake"), &json!(LIMIT)));
        assert_eq!(server.post("/rerank", json!({"query": "q", "texts": ["t"]})).status, 404);
    });
}

fn all_tasks() -> Running {
    let (fake, device) = (Fake::default(), device());
    let server = Running::of(
        vec![
            Model::embedder("fake", fake.clone(), &device, queue()).alias("other-name"),
            Model::reranker("shared", Shared(fake.clone()), &device, queue()),
            Model::classifier("labels", Labels(fake), &device, queue()),
        ],
        config(),
    );
    server.wait_ready();
    server
}

#[test]
fn reranking_is_best_first_in_each_form() {
    within_a_minute(|| {
        let server = all_tasks();
        let texts = ["x y", "a b c", "a x"];
        let tei =
            server.post("/rerank", json!({"query": "a b", "texts": texts, "return_text": true}));
        let tei = tei.json();
        let order: Vec<u64> = (0..3).map(|i| tei[i]["index"].as_u64().unwrap()).collect();
        assert_eq!(order, [1, 2, 0]);
        assert_eq!(tei[0]["text"], "a b c");
        assert!((tei[2]["score"].as_f64().unwrap() - 0.5).abs() < 1e-6, "sigmoid of 0");
        let raw =
            server.post("/rerank", json!({"query": "a b", "texts": texts, "raw_scores": true}));
        assert_eq!(raw.json()[0]["score"], 2.0);
        let documents = json!(["x y", {"text": "a b c"}, "a x"]);
        for path in ["/v1/rerank", "/v2/rerank"] {
            let body = json!({"query": "a b", "documents": documents, "top_n": 2,
                              "return_documents": true});
            let ranks = server.post(path, body).json();
            assert_eq!(ranks["results"].as_array().unwrap().len(), 2);
            assert_eq!(ranks["results"], ranks["data"]);
            assert_eq!(ranks["results"][0]["index"], 1);
            assert_eq!(ranks["results"][0]["document"], json!({"text": "a b c"}));
            assert_eq!(ranks["usage"]["total_tokens"], 13);
            assert!(ranks["id"].as_str().is_some_and(|id| !id.is_empty()));
            let wrong = server.post(path, json!({"query": "", "documents": ["a"]}));
            assert_eq!(wrong.status, 400);
            assert_eq!(wrong.json()["message"], wrong.json()["detail"]);
        }
        let voyage =
            json!({"query": "a", "documents": ["a"], "top_k": 1, "return_documents": true});
        let voyage = server.post("/v1/rerank", voyage).json();
        assert_eq!(voyage["data"][0]["document"], "a");
        let wrong_model = json!({"model": "fake", "query": "a", "documents": ["a"]});
        assert_eq!(server.post("/v1/rerank", wrong_model).status, 404);
        let named = server.post("/v1/embeddings", json!({"model": "other-name", "input": "a"}));
        assert_eq!(named.status, 200);
    });
}

#[test]
fn labels_come_best_first() {
    within_a_minute(|| {
        let server = all_tasks();
        let one = server.post("/predict", json!({"inputs": "some text"})).json();
        let labels = one.as_array().unwrap();
        let sum: f64 = labels.iter().map(|label| label["score"].as_f64().unwrap()).sum();
        assert!((sum - 1.0).abs() < 1e-5, "{sum}");
        assert!(labels.windows(2).all(|two| two[0]["score"].as_f64() >= two[1]["score"].as_f64()));
        let best =
            vector("some text").iter().copied().enumerate().max_by(|a, b| a.1.total_cmp(&b.1));
        let names = ["north", "east", "south", "west"];
        assert_eq!(labels[0]["label"], names[best.unwrap().0]);
        let pair = server.post("/predict", json!({"inputs": ["some", "text"]})).json();
        assert_eq!(pair.as_array().unwrap().len(), 4);
        let many =
            server.post("/predict", json!({"inputs": [["some text"], ["a", "pair"]]})).json();
        assert_eq!((many.as_array().unwrap().len(), &many[0]), (2, &one));
        assert_eq!(server.post("/predict", json!({"inputs": [["a", "b", "c"]]})).status, 422);
    });
}

#[test]
fn ollama_s_routes_embed() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        let many = server.post("/api/embed", json!({"model": "fake:latest", "input": ["a", "b"]}));
        let many = many.json();
        assert_eq!(floats(&many["embeddings"][1]), vector("b"));
        assert_eq!(
            (&many["model"], &many["prompt_eval_count"]),
            (&json!("fake:latest"), &json!(2))
        );
        let one = server.post("/api/embeddings", json!({"model": "fake", "prompt": "a"})).json();
        assert_eq!(floats(&one["embedding"]), vector("a"));
        assert_eq!(server.get("/api/tags").json()["models"][0]["name"], "fake");
        assert!(server.get("/api/version").json()["version"].is_string());
        assert!(
            server.post("/api/embed", json!({"model": "x", "input": "a"})).json()["error"]
                .is_string()
        );
    });
}

#[test]
fn the_open_inference_protocol_speaks_json_and_binary() {
    within_a_minute(|| {
        let server = all_tasks();
        let text =
            |data: Value| json!({"name": "text", "shape": [2], "datatype": "BYTES", "data": data});
        let body = json!({"id": "7", "inputs": [text(json!(["a", "b c"]))]});
        for path in ["/v2/models/fake/infer", "/v2/models/fake/versions/1/infer"] {
            let answer = server.post(path, body.clone()).json();
            let output = &answer["outputs"][0];
            assert_eq!((&answer["id"], &output["shape"]), (&json!("7"), &json!([2, 4])));
            assert_eq!(floats(&output["data"]), [vector("a"), vector("b c")].concat());
        }
        // Binary in and out.
        let raw = [&[1, 0, 0, 0][..], b"a", &[3, 0, 0, 0], b"b c"].concat();
        let head = json!({"inputs": [{"name": "text", "shape": [2], "datatype": "BYTES",
            "parameters": {"binary_data_size": raw.len()}}],
            "outputs": [{"name": "embedding", "parameters": {"binary_data": true}}]})
        .to_string();
        let length = head.len().to_string();
        let headers = [("inference-header-content-length", length.as_str())];
        let whole = [head.as_bytes(), &raw].concat();
        let answer = client::call(server.at, "POST", "/v2/models/fake/infer", &headers, &whole);
        assert_eq!(answer.status, 200, "{}", answer.text());
        let split: usize =
            answer.header("inference-header-content-length").unwrap().parse().unwrap();
        let (head, numbers) = answer.body.split_at(split);
        let head: Value = serde_json::from_slice(head).unwrap();
        assert_eq!(head["outputs"][0]["parameters"]["binary_data_size"], numbers.len());
        let numbers: Vec<f32> = numbers
            .chunks_exact(4)
            .map(|four| f32::from_le_bytes(four.try_into().unwrap()))
            .collect();
        assert_eq!(numbers, [vector("a"), vector("b c")].concat());
        // Query and texts.
        let rerank = json!({"inputs": [text(json!(["a x", "z"])),
            {"name": "query", "shape": [1], "datatype": "BYTES", "data": ["a"]}]});
        let scores = server.post("/v2/models/shared/infer", rerank).json();
        assert_eq!(floats(&scores["outputs"][0]["data"]), [1.0, 0.0]);
        for wrong in [
            json!({"inputs": [text(json!(["only one"]))]}),
            json!({"inputs": []}),
            json!({"inputs": [{"name": "text", "shape": [-2], "datatype": "BYTES", "data": ["a"]}]}),
            json!({"inputs": [{"name": "text", "shape": [1], "datatype": "FP32", "data": [1.0]}]}),
            json!({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES",
                               "parameters": {"binary_data_size": 99}}]}),
        ] {
            let answer = server.post("/v2/models/fake/infer", wrong);
            assert_eq!(answer.status, 400, "{}", answer.text());
        }
        for (path, status) in [
            ("/v2", 200),
            ("/v2/health/live", 200),
            ("/v2/health/ready", 200),
            ("/v2/models/fake", 200),
            ("/v2/models/fake/ready", 200),
            ("/v2/models/fake/config", 200),
            ("/v2/models/fake/stats", 200),
            ("/v2/models/fake/versions/1", 200),
            ("/v2/models/fake/versions/2", 404),
            ("/v2/models/other", 404),
        ] {
            assert_eq!(server.get(path).status, status, "{path}");
        }
        assert_eq!(server.get("/v2/models/fake").json()["outputs"][0]["shape"], json!([-1, 4]));
    });
}

#[test]
fn a_key_is_wanted_where_there_is_one() {
    within_a_minute(|| {
        let key = config().api_key(Some("secret".to_owned()));
        let server = Running::of(
            vec![Model::embedder("fake", Fake::default(), &device(), queue())],
            key.cors_origins(vec!["https://page.test".to_owned()]),
        );
        server.wait_ready();
        let body = json!({"input": "a"});
        let ask =
            |key: &str| server.post_with("/v1/embeddings", &[("authorization", key)], body.clone());
        assert_eq!(ask("Bearer secret").status, 200);
        for wrong in ["Bearer secre", "Bearer secret1", "Basic secret", "", "Bearer "] {
            let refused = ask(wrong);
            assert_eq!(refused.status, 401, "{wrong:?}");
            assert_eq!(refused.json()["error"]["code"], "invalid_api_key");
        }
        assert_eq!(server.get("/metrics").status, 401);
        assert_eq!(server.get("/live").status, 200);
        let asks = [("origin", "https://page.test"), ("access-control-request-method", "POST")];
        let flight = client::call(server.at, "OPTIONS", "/v1/embeddings", &asks, b"");
        assert_eq!(flight.header("access-control-allow-origin"), Some("https://page.test"));
        let other = [("origin", "https://other.test"), ("access-control-request-method", "POST")];
        let flight = client::call(server.at, "OPTIONS", "/v1/embeddings", &other, b"");
        assert_eq!(flight.header("access-control-allow-origin"), None);
    });
}

#[test]
fn metrics_pages_and_the_description_are_there() {
    within_a_minute(|| {
        let server = Running::new(&Fake::default());
        assert_eq!(server.post("/embed", json!({"inputs": ["a", "b c"]})).status, 200);
        let metrics = server.get("/metrics");
        for series in [
            "onelane_requests_total{model=\"fake\",outcome=\"completed\"}",
            "onelane_waiting{model=\"fake\",class=\"interactive\"} 0",
            "onelane_wait_seconds_bucket{le=\"+Inf\",model=\"fake\",class=\"normal\"}",
            "onelane_batch_size_count{model=\"fake\"}",
            "onelane_device_seconds_total{model=\"fake\",device=\"fake\"}",
            "onelane_health{model=\"fake\",state=\"ready\"} 1",
            "http_server_request_duration_seconds_count{http_route=\"/embed\",http_response_status_code=\"200\"} 1",
        ] {
            assert!(metrics.text().contains(series), "no {series} in\n{}", metrics.text());
        }
        assert!(metrics.text().ends_with("# EOF\n"));
        let described = server.get("/openapi.json").json();
        for path in
            ["/v1/embeddings", "/embed", "/v2/rerank", "/api/embed", "/v2/models/{model}/infer"]
        {
            assert!(described["paths"][path]["post"].is_object(), "{path}");
        }
        let width = &described["components"]["schemas"]["EmbedRequest"]["properties"]["dimensions"];
        assert_eq!((&width["minimum"], &width["maximum"]), (&json!(4), &json!(4)));
        let page = client::call(server.at, "GET", "/", &[("accept", "text/html")], b"");
        assert!(page.text().starts_with("<!doctype html>"));
        for elsewhere in ["src=\"http", "href=\"http", "@import", "url(http"] {
            assert!(!page.text().contains(elsewhere), "{elsewhere}");
        }
        assert_eq!(server.get("/").text(), "onelane is running");
        assert_eq!(server.get("/docs/").status, 200);
        assert!(server.get("/live").header("x-request-id").is_some());
        let own = client::call(server.at, "GET", "/live", &[("x-request-id", "mine")], b"");
        assert_eq!(own.header("x-request-id"), Some("mine"));
    });
}

#[test]
fn a_unix_socket_serves_and_goes_with_its_server() {
    within_a_minute(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let (stop, signals) = Signals::manual();
        let at = path.clone();
        let server = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let model = Model::embedder("fake", Fake::default(), &device(), queue());
                let listener = Listener::unix(&at).unwrap();
                Server::new(config(), vec![model]).unwrap().serve(listener, signals).await
            })
        });
        until("it listens", || UnixStream::connect(&path).is_ok());
        let mut stream = UnixStream::connect(&path).unwrap();
        client::write(&mut stream, "GET", "/live", &[], b"");
        assert_eq!(client::answer(stream).status, 200);
        stop.signal();
        server.join().unwrap().unwrap();
        assert!(!path.exists());
        std::fs::write(&path, "a file of somebody's").unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let refused = runtime.block_on(async { Listener::unix(&path) }).unwrap_err();
        assert!(refused.to_string().contains("no socket"), "{refused}");
    });
}

#[test]
fn models_need_names_of_their_own() {
    let model = || Model::embedder("fake", Fake::default(), &device(), queue());
    assert!(Server::new(config(), vec![]).is_err());
    let twice = Server::new(config(), vec![model(), model().alias("x")]);
    assert!(twice.err().unwrap().to_string().contains("\"fake\""));
}
