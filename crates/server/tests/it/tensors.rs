//! Models of tensors, over HTTP in JSON and in binary, and over gRPC.

use std::thread::JoinHandle;

use onelane::BatchConfig;
use onelane::testing::within_a_minute;
use onelane_server::{Datatype, Model};
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fake::Fake;
use crate::fake_tensors::{Echo, Sums, bytes, floats};
use crate::grpc;
use crate::running::{Running, config, device, queue, until};

const INFER: &str = "/v2/models/sums/infer";

fn sums(sums: &Sums, queue: BatchConfig) -> Running {
    let model = Model::predictor("sums", sums.clone(), &device(), queue);
    let server = Running::of(vec![model], config());
    server.wait_ready();
    server
}

/// A call of one row for each word: its number in the call, and 10.
fn call(words: &[&str]) -> Value {
    let x: Vec<[usize; 2]> = (0..words.len()).map(|row| [row, 10]).collect();
    json!({"inputs": [
        {"name": "x", "shape": [words.len(), 2], "datatype": "FP32", "data": x},
        {"name": "word", "shape": [words.len()], "datatype": "BYTES", "data": words},
    ]})
}

fn beside(server: &Running, headers: &[(&str, &str)], body: &Value) -> JoinHandle<Answer> {
    let stream = client::send(server.at, "POST", INFER, headers, body.to_string().as_bytes());
    std::thread::spawn(move || client::answer(stream))
}

/// A body of JSON and the tensors after it.
fn binary(head: &Value, raw: &[&[u8]]) -> (String, Vec<u8>) {
    let head = head.to_string();
    (head.len().to_string(), [head.as_bytes(), &raw.concat()].concat())
}

fn post_binary(server: &Running, path: &str, head: &Value, raw: &[&[u8]]) -> Answer {
    let (length, body) = binary(head, raw);
    let headers = [("inference-header-content-length", length.as_str())];
    client::call(server.at, "POST", path, &headers, &body)
}

/// The JSON of an answer and the bytes after it.
fn split(answer: &Answer) -> (Value, &[u8]) {
    assert_eq!(answer.status, 200, "{}", answer.text());
    let length = answer.header("inference-header-content-length").unwrap().parse().unwrap();
    let (head, raw) = answer.body.split_at(length);
    (serde_json::from_slice(head).unwrap(), raw)
}

#[test]
fn json_binary_and_grpc_have_the_same_answers() {
    within_a_minute(|| {
        let server = sums(&Sums::default(), queue());
        let answer = server.post(INFER, call(&["a", "b"])).json();
        let outputs = json!([
            {"name": "sum", "datatype": "FP32", "shape": [2], "data": [10.0, 11.0]},
            {"name": "loud", "datatype": "BYTES", "shape": [2], "data": ["A", "B"]},
        ]);
        assert_eq!((&answer["outputs"], &answer["model_name"]), (&outputs, &json!("sums")));

        let (x, words) = (floats(&[0.0, 10.0, 1.0, 10.0]), bytes(&["a", "b"]));
        // The inputs in another order, one output in binary, and the outputs in the order asked for.
        let head = json!({"id": "7",
            "inputs": [
                {"name": "word", "shape": [2], "datatype": "BYTES",
                 "parameters": {"binary_data_size": words.len()}},
                {"name": "x", "shape": [2, 2], "datatype": "FP32",
                 "parameters": {"binary_data_size": x.len()}},
            ],
            "outputs": [{"name": "loud", "parameters": {"binary_data": true}}, {"name": "sum"}],
        });
        let answer = post_binary(&server, INFER, &head, &[&words, &x]);
        let (head, raw) = split(&answer);
        let loud = bytes(&["A", "B"]);
        assert_eq!(raw, loud);
        assert_eq!(head["id"], "7");
        assert_eq!(
            head["outputs"],
            json!([
                {"name": "loud", "datatype": "BYTES", "shape": [2],
                 "parameters": {"binary_data_size": loud.len()}},
                {"name": "sum", "datatype": "FP32", "shape": [2], "data": [10.0, 11.0]},
            ])
        );

        grpc::with(server.at, async |mut client| {
            let inputs = || {
                vec![
                    (grpc::input("x", "FP32", &[2, 2]), x.clone()),
                    (grpc::input("word", "BYTES", &[2]), words.clone()),
                ]
            };
            let sum = ("sum".into(), "FP32".into(), vec![2], floats(&[10.0, 11.0]));
            let loud = ("loud".into(), "BYTES".into(), vec![2], loud.clone());
            let both = grpc::request("sums", inputs(), &[]);
            let answer = grpc::outputs(client.model_infer(both).await);
            assert_eq!(answer, [sum, loud.clone()]);
            let one = grpc::request("sums", inputs(), &["loud"]);
            assert_eq!(grpc::outputs(client.model_infer(one).await), [loud]);
        });
    });
}

#[test]
fn what_a_model_declares_is_told() {
    within_a_minute(|| {
        let models = vec![
            Model::predictor("sums", Sums::default(), &device(), queue()),
            Model::predictor("echo", Echo::default(), &device(), queue()),
        ];
        let server = Running::of(models, config());
        server.wait_ready();
        let metadata = server.get("/v2/models/sums").json();
        assert_eq!(
            metadata["inputs"],
            json!([{"name": "x", "datatype": "FP32", "shape": [-1, 2]},
                   {"name": "word", "datatype": "BYTES", "shape": [-1]}])
        );
        assert_eq!(
            metadata["outputs"][0],
            json!({"name": "sum", "datatype": "FP32", "shape": [-1]})
        );
        let configuration = server.get("/v2/models/sums/config").json();
        assert_eq!(
            configuration["input"],
            json!([{"name": "x", "data_type": "TYPE_FP32", "dims": [-1, 2]},
                   {"name": "word", "data_type": "TYPE_STRING", "dims": [-1]}])
        );
        let undeclared = server.get("/v2/models/echo").json();
        assert_eq!((&undeclared["inputs"], &undeclared["outputs"]), (&json!([]), &json!([])));
        grpc::with(server.at, async |mut client| {
            let request =
                grpc::pb::ModelMetadataRequest { name: "sums".into(), ..Default::default() };
            let metadata = client.model_metadata(request).await.unwrap().into_inner();
            let told = |tensor: &grpc::pb::model_metadata_response::TensorMetadata| {
                (tensor.name.clone(), tensor.datatype.clone(), tensor.shape.clone())
            };
            let inputs: Vec<_> = metadata.inputs.iter().map(told).collect();
            let x = ("x".to_owned(), "FP32".to_owned(), vec![-1, 2]);
            assert_eq!(inputs, [x, ("word".to_owned(), "BYTES".to_owned(), vec![-1])]);
        });
    });
}

#[test]
fn every_type_comes_back_over_grpc_and_in_binary() {
    within_a_minute(|| {
        let echo = Echo::default();
        let model = Model::predictor("echo", echo.clone(), &device(), queue());
        let server = Running::of(vec![model], config());
        server.wait_ready();
        for datatype in Datatype::ALL {
            let raw = match datatype.size() {
                Some(1) => vec![1, 0, 1, 1, 0, 0],
                Some(size) => (0..6 * size).map(|byte| byte as u8).collect(),
                None => bytes(&[&b"a"[..], b"", b"\xff\x00", b"bc", b"d", b""]),
            };
            let name = datatype.name();
            grpc::with(server.at, async |mut client| {
                let inputs = vec![(grpc::input("x", name, &[3, 2]), raw.clone())];
                let answer = client.model_infer(grpc::request("echo", inputs, &[])).await;
                let same = ("x".to_owned(), name.to_owned(), vec![3, 2], raw.clone());
                assert_eq!(grpc::outputs(answer), [same]);
            });
            let head = json!({
                "parameters": {"binary_data_output": true},
                "inputs": [{"name": "x", "shape": [3, 2], "datatype": name,
                            "parameters": {"binary_data_size": raw.len()}}],
            });
            let answer = post_binary(&server, "/v2/models/echo/infer", &head, &[&raw]);
            assert_eq!(split(&answer).1, raw, "{name}");
        }
        assert!(echo.0.lock().unwrap().iter().all(|&rows| rows == 3));
        // Numbers of the protocol's own types.
        grpc::with(server.at, async |mut client| {
            let mut ask = async |datatype: &str, contents| {
                let mut input = grpc::input("x", datatype, &[2]);
                input.contents = Some(contents);
                let mut request = grpc::request("echo", Vec::new(), &[]);
                request.inputs = vec![input];
                client.model_infer(request).await
            };
            let ints = |numbers: &[i32]| grpc::pb::InferTensorContents {
                int_contents: numbers.to_vec(),
                ..Default::default()
            };
            let answer = grpc::outputs(ask("INT8", ints(&[-1, 127])).await);
            assert_eq!(answer[0].3, [255, 127]);
            let answer = grpc::outputs(ask("INT32", ints(&[-1, 1])).await);
            assert_eq!(answer[0].3, [-1_i32, 1].map(i32::to_le_bytes).concat());
            let wrong = ask("INT8", ints(&[1, 128])).await.unwrap_err();
            assert_eq!(wrong.code(), tonic::Code::InvalidArgument);
            assert!(wrong.message().starts_with("x[1]: "), "{}", wrong.message());
            let half = ask("FP16", ints(&[1, 2])).await.unwrap_err();
            assert!(half.message().contains("raw_input_contents"), "{}", half.message());
        });
    });
}

#[test]
fn rows_of_many_callers_run_together_and_each_gets_its_own() {
    within_a_minute(|| {
        let fake = Sums::default();
        let server = sums(&fake, queue());
        let gate = beside(&server, &[], &call(&["gate"]));
        fake.gate.wait_for_arrivals(1);
        let first = beside(&server, &[], &call(&["a", "b", "c"]));
        server.wait_waiting(3);
        let second = beside(&server, &[], &call(&["d", "e"]));
        server.wait_waiting(5);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        let outputs = |answer: JoinHandle<Answer>| answer.join().unwrap().json()["outputs"].clone();
        let (first, second) = (outputs(first), outputs(second));
        assert_eq!(first[0]["data"], json!([10.0, 11.0, 12.0]));
        assert_eq!(first[1]["data"], json!(["A", "B", "C"]));
        assert_eq!(second[0]["data"], json!([10.0, 11.0]));
        assert_eq!(second[1]["data"], json!(["D", "E"]));
        assert_eq!(fake.batches(), [vec!["gate"], vec!["a", "b", "c", "d", "e"]]);
        // A call of more rows than a batch has is run in parts.
        let words: Vec<String> = (0..20).map(|row| format!("w{row}")).collect();
        let words: Vec<&str> = words.iter().map(String::as_str).collect();
        let answer = server.post(INFER, call(&words)).json();
        let sums: Vec<f64> = (0..20).map(|row| f64::from(row) + 10.0).collect();
        assert_eq!(answer["outputs"][0]["data"], json!(sums));
        let sizes: Vec<usize> = fake.batches()[2..].iter().map(Vec::len).collect();
        assert_eq!(sizes, [8, 8, 4]);
    });
}

#[test]
fn a_row_that_fails_is_named_and_fails_no_other_call() {
    within_a_minute(|| {
        let fake = Sums::default();
        let server = sums(&fake, queue());
        let gate = beside(&server, &[], &call(&["gate"]));
        fake.gate.wait_for_arrivals(1);
        let innocent = beside(&server, &[], &call(&["a"]));
        server.wait_waiting(1);
        let guilty = beside(&server, &[], &call(&["b", "poison"]));
        server.wait_waiting(3);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        assert_eq!(innocent.join().unwrap().status, 200);
        let guilty = guilty.join().unwrap();
        assert_eq!((guilty.status, guilty.header("x-should-retry")), (500, Some("false")));
        assert!(guilty.message().starts_with("row[1]: "), "{}", guilty.message());
        // An output that is not as declared is the engine's fault, too.
        let wide = server.post(INFER, call(&["wide"]));
        assert_eq!(wide.status, 500);
        let said = "the engine's output \"sum\" must have the shape [-1], not [1, 1]";
        assert_eq!(wide.message(), said);
    });
}

#[test]
fn urgent_rows_go_first_and_what_is_late_or_unwanted_does_not_run() {
    within_a_minute(|| {
        let fake = Sums::default();
        let server = sums(&fake, queue().max_batch_size(1));
        let gate = beside(&server, &[], &call(&["gate"]));
        fake.gate.wait_for_arrivals(1);
        let bulk = beside(&server, &[("x-priority", "bulk")], &call(&["bulk"]));
        server.wait_waiting(1);
        let mut urgent = call(&["urgent"]);
        urgent["parameters"] = json!({"priority": 1});
        let urgent = beside(&server, &[], &urgent);
        server.wait_waiting(2);
        let gone =
            client::send(server.at, "POST", INFER, &[], call(&["gone"]).to_string().as_bytes());
        server.wait_waiting(3);
        drop(gone);
        server.wait_waiting(2);
        let mut late = call(&["late"]);
        late["parameters"] = json!({"timeout": 1000});
        let late = server.post(INFER, late);
        assert_eq!((late.status, late.header("x-should-retry")), (504, Some("false")));
        fake.gate.open_for_good();
        for answer in [gate, bulk, urgent] {
            assert_eq!(answer.join().unwrap().status, 200);
        }
        assert_eq!(fake.batches(), [["gate"], ["urgent"], ["bulk"]]);
    });
}

#[test]
fn a_full_queue_refuses_a_call_whole() {
    within_a_minute(|| {
        let fake = Sums::default();
        let server = sums(&fake, queue().capacity(2));
        let gate = beside(&server, &[], &call(&["gate"]));
        fake.gate.wait_for_arrivals(1);
        let first = beside(&server, &[], &call(&["a"]));
        server.wait_waiting(1);
        let refused = server.post(INFER, call(&["b", "c"]));
        assert_eq!(refused.status, 429);
        assert!(
            refused.header("retry-after").is_some() && refused.header("retry-after-ms").is_some()
        );
        assert_eq!(server.waiting(), 1);
        fake.gate.open_for_good();
        assert_eq!(gate.join().unwrap().status, 200);
        assert_eq!(first.join().unwrap().status, 200);
    });
}

#[test]
fn what_makes_no_sense_is_refused_by_name() {
    within_a_minute(|| {
        let fake = Sums::default();
        let server = Running::of(
            vec![Model::predictor("sums", fake.clone(), &device(), queue())],
            config().max_texts(3),
        );
        server.wait_ready();
        let x = |shape: Value, datatype: &str, data: Value| json!({"name": "x", "shape": shape, "datatype": datatype, "data": data});
        let word = json!({"name": "word", "shape": [1], "datatype": "BYTES", "data": ["a"]});
        let good = x(json!([1, 2]), "FP32", json!([1, 2]));
        let named =
            |name: &str| json!({"name": name, "shape": [1], "datatype": "INT8", "data": [1]});
        for (inputs, said) in [
            (json!([good]), "word: is missing: the model takes x, word"),
            (json!([]), "x: is missing"),
            (json!([good, word, named("y")]), "y: is no input of the model, which takes x, word"),
            (json!([good, word, good]), "x: is given twice"),
            (
                json!([x(json!([1, 2]), "FP64", json!([1, 2])), word]),
                "x: must be of type FP32, not FP64",
            ),
            (json!([x(json!([1, 2]), "FLOAT", json!([1, 2])), word]), "x: \"FLOAT\" is no type"),
            (
                json!([x(json!([1, 3]), "FP32", json!([1, 2, 3])), word]),
                "x: must have the shape [-1, 2], not [1, 3]",
            ),
            (
                json!([x(json!([2]), "FP32", json!([1, 2])), word]),
                "x: must have the shape [-1, 2], not [2]",
            ),
            (
                json!([x(json!([1, 2]), "FP32", json!([1])), word]),
                "x: has 4 bytes of FP32 and a shape of 2 elements",
            ),
            (
                json!([x(json!([1, 2]), "FP32", json!([1, "2"])), word]),
                "x[1]: must be a number of type FP32",
            ),
            (
                json!([x(json!([1, -2]), "FP32", json!([])), word]),
                "x: has a shape that no tensor has",
            ),
            (
                json!([x(json!([2, 2]), "FP32", json!([1, 2, 3, 4])), word]),
                "word: has 1 rows, and x has 2",
            ),
            (
                json!([x(json!([0, 2]), "FP32", json!([])),
                       {"name": "word", "shape": [0], "datatype": "BYTES", "data": []}]),
                "x: must have at least one row",
            ),
            (
                call(&["a", "b", "c", "d"])["inputs"].clone(),
                "x: 4 rows are more than the 3 of a call",
            ),
            (call(&["a", "rude"])["inputs"].clone(), "word: element 1 is rude"),
            (json!([{"name": "x", "shape": [1, 2], "datatype": "FP32"}, word]), "x: has no data"),
        ] {
            let answer = server.post(INFER, json!({"inputs": inputs}));
            assert_eq!(answer.status, 400, "{said}: {}", answer.text());
            assert!(answer.message().starts_with(said), "{said}: {}", answer.message());
        }
        for (outputs, said) in [
            (json!([{"name": "other"}]), "outputs: the model gives sum, loud, not \"other\""),
            (json!([{"name": "sum"}, {"name": "sum"}]), "outputs: \"sum\" is asked for twice"),
        ] {
            let mut asked = call(&["a"]);
            asked["outputs"] = outputs;
            let answer = server.post(INFER, asked);
            assert_eq!((answer.status, answer.message().as_str()), (400, said));
        }
        for (size, raw, said) in [
            (8, vec![0; 7], "x: says that it is larger than the body"),
            (8, vec![0; 9], "1 bytes are left that no tensor says are its own"),
            (7, vec![0; 7], "x: has 7 bytes of FP32 and a shape of 2 elements"),
        ] {
            let head = json!({"inputs": [{"name": "x", "shape": [1, 2], "datatype": "FP32",
                                          "parameters": {"binary_data_size": size}}, word]});
            let answer = post_binary(&server, INFER, &head, &[&raw]);
            assert_eq!((answer.status, answer.message().as_str()), (400, said));
        }
        grpc::with(server.at, async |mut client| {
            for (inputs, said) in [
                (vec![(grpc::input("x", "FP32", &[1, 2]), vec![0; 7])], "x: has 7 bytes of FP32"),
                (vec![(grpc::input("x", "FP32", &[1, 2]), vec![0; 8])], "word: is missing"),
                (vec![(grpc::input("x", "INT32", &[1, 2]), vec![0; 8])], "x: must be of type FP32"),
                (
                    vec![(grpc::input("word", "BYTES", &[1]), vec![9, 0, 0, 0])],
                    "word: the tensor is shorter",
                ),
            ] {
                let refused = client.model_infer(grpc::request("sums", inputs, &[])).await;
                let refused = refused.unwrap_err();
                assert_eq!(refused.code(), tonic::Code::InvalidArgument, "{said}");
                assert!(refused.message().starts_with(said), "{said}: {}", refused.message());
            }
        });
        assert!(fake.batches().is_empty(), "nothing of it has reached the engine");
    });
}

#[test]
fn undeclared_inputs_without_common_rows_are_a_call_of_their_own() {
    within_a_minute(|| {
        let echo = Echo::default();
        let model = Model::predictor("echo", echo.clone(), &device(), queue());
        let server = Running::of(vec![model], config());
        server.wait_ready();
        let tensor = |name: &str, shape: Value, data: Value| json!({"name": name, "shape": shape, "datatype": "INT32", "data": data});
        let ask = |inputs: Value| {
            let answer = server.post("/v2/models/echo/infer", json!({"inputs": inputs}));
            assert_eq!(answer.status, 200, "{}", answer.text());
            answer.json()["outputs"].clone()
        };
        let inputs = json!([
            tensor("a", json!([2, 1]), json!([1, 2])),
            tensor("b", json!([3]), json!([3, 4, 5]))
        ]);
        assert_eq!(ask(inputs.clone()), inputs);
        let scalar = json!([tensor("s", json!([]), json!([7]))]);
        assert_eq!(ask(scalar.clone()), scalar);
        let rows = json!([
            tensor("a", json!([2, 1]), json!([1, 2])),
            tensor("b", json!([2]), json!([3, 4]))
        ]);
        assert_eq!(ask(rows.clone()), rows);
        assert_eq!(*echo.0.lock().unwrap(), [0, 0, 2]);
        let unknown = json!({"inputs": rows, "outputs": [{"name": "c"}]});
        let unknown = server.post("/v2/models/echo/infer", unknown);
        assert_eq!(
            (unknown.status, unknown.message().as_str()),
            (400, "outputs: the model gives a, b, not \"c\"")
        );
        let none = server.post("/v2/models/echo/infer", json!({"inputs": []}));
        assert_eq!((none.status, none.message().as_str()), (400, "inputs: must not be empty"));
    });
}

#[test]
fn routes_of_texts_answer_404_and_pages_work_where_there_are_tensors_alone() {
    within_a_minute(|| {
        let server = sums(&Sums::default(), queue());
        assert_eq!(server.post(INFER, call(&["a"])).status, 200);
        for (path, body) in [
            ("/v1/embeddings", json!({"input": "a"})),
            ("/v1/embeddings", json!({"input": "a", "model": "sums"})),
            ("/embed", json!({"inputs": "a"})),
            ("/embed_all", json!({"inputs": "a"})),
            ("/rerank", json!({"query": "a", "texts": ["b"]})),
            ("/v1/rerank", json!({"query": "a", "documents": ["b"]})),
            ("/predict", json!({"inputs": "a"})),
            ("/similarity", json!({"inputs": {"source_sentence": "a", "sentences": ["b"]}})),
            ("/tokenize", json!({"inputs": "a"})),
            ("/tokenize", json!({"inputs": "a", "model": "sums"})),
            ("/decode", json!({"ids": [1]})),
            ("/api/embed", json!({"input": "a"})),
            ("/", json!({"inputs": "a"})),
        ] {
            let answer = server.post(path, body);
            assert_eq!(answer.status, 404, "{path}: {}", answer.text());
        }
        assert_eq!(server.get("/stats").json()["models"][0]["task"], "predict");
        assert_eq!(server.get("/api/tags").json()["models"], json!([]));
        for path in [
            "/ready",
            "/live",
            "/health",
            "/info",
            "/v1/models",
            "/openapi.json",
            "/v2/models/sums/ready",
            "/v2/models/sums/stats",
        ] {
            assert_eq!(server.get(path).status, 200, "{path}");
        }
        let metrics = server.get("/metrics");
        let completed = "onelane_requests_total{model=\"sums\",outcome=\"completed\"} 1";
        assert!(
            metrics.text().lines().any(|line| line.starts_with(completed)),
            "{}",
            metrics.text()
        );
    });
}

#[test]
fn models_of_texts_and_of_tensors_share_a_server() {
    within_a_minute(|| {
        let at = device();
        let models = vec![
            Model::predictor("sums", Sums::default(), &at, queue()),
            Model::embedder("fake", Fake::default(), &at, queue()),
        ];
        let server = Running::of(models, config());
        server.wait_ready();
        assert_eq!(server.post(INFER, call(&["a"])).status, 200);
        assert_eq!(server.post("/", json!({"inputs": "a"})).status, 200);
        assert_eq!(server.post("/tokenize", json!({"inputs": "a"})).status, 200);
        assert_eq!(server.get("/info").json()["model_id"], "fake");
        let tensors =
            json!({"inputs": [{"name": "text", "shape": [1], "datatype": "BYTES", "data": ["a"]}]});
        assert_eq!(server.post("/v2/models/fake/infer", tensors).status, 200);
        until("both have run", || {
            let stats = server.get("/stats").json();
            (0..2).all(|model| stats["models"][model]["completed"].as_u64() > Some(0))
        });
    });
}
