//! A server that runs beside its test.

use std::net::SocketAddr;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use onelane::{BatchConfig, DeviceExecutor, ExecutorConfig};
use onelane_server::{Listener, Model, ServeError, Server, ServerConfig, Signals, Stop};
use serde_json::{Value, json};

use crate::client::{self, Answer};
use crate::fake::Fake;

pub struct Running {
    pub at: SocketAddr,
    pub stop: Stop,
    server: Option<JoinHandle<Result<(), ServeError>>>,
}

/// A device of a test's own.
pub fn device() -> DeviceExecutor {
    DeviceExecutor::new(ExecutorConfig::new("fake")).unwrap()
}

pub fn queue() -> BatchConfig {
    BatchConfig::default().max_batch_size(8)
}

/// Short, so that no test waits.
pub fn config() -> ServerConfig {
    ServerConfig::default().drain_delay(Duration::ZERO)
}

impl Running {
    /// One model that embeds, called `fake`.
    pub fn with(fake: &Fake, queue: BatchConfig, config: ServerConfig) -> Self {
        let running =
            Self::of(vec![Model::embedder("fake", fake.clone(), &device(), queue)], config);
        running.wait_ready();
        // The self-check is not what the tests look at.
        fake.ran.lock().unwrap().clear();
        running
    }

    pub fn new(fake: &Fake) -> Self {
        Self::with(fake, queue(), config())
    }

    pub fn of(models: Vec<Model>, config: ServerConfig) -> Self {
        let (stop, signals) = Signals::manual();
        let (send, receive) = std::sync::mpsc::channel();
        let server = std::thread::spawn(move || {
            let mut runtime = tokio::runtime::Builder::new_multi_thread();
            let runtime = runtime.worker_threads(2).enable_all().build().unwrap();
            runtime.block_on(async {
                let listener = Listener::tcp("127.0.0.1:0").unwrap();
                send.send(listener.address().unwrap()).unwrap();
                Server::new(config, models)?.serve(listener, signals).await
            })
        });
        Self { at: receive.recv().unwrap(), stop, server: Some(server) }
    }

    pub fn wait_ready(&self) {
        until("the server is ready", || self.get("/ready").status == 200);
    }

    /// What the server ended with.
    pub fn ended(mut self) -> Result<(), ServeError> {
        self.server.take().unwrap().join().unwrap()
    }

    pub fn get(&self, path: &str) -> Answer {
        client::call(self.at, "GET", path, &[], b"")
    }

    pub fn post(&self, path: &str, body: Value) -> Answer {
        self.post_with(path, &[], body)
    }

    pub fn post_with(&self, path: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let headers = [headers, &[("content-type", "application/json")]].concat();
        client::call(self.at, "POST", path, &headers, body.to_string().as_bytes())
    }

    /// Asks for the embeddings of texts on a thread of its own.
    pub fn embed_beside(&self, texts: &[&str], headers: &[(&str, &str)]) -> JoinHandle<Answer> {
        let headers = [headers, &[("content-type", "application/json")]].concat();
        let body = json!({"inputs": texts}).to_string();
        let stream = client::send(self.at, "POST", "/embed", &headers, body.as_bytes());
        std::thread::spawn(move || client::answer(stream))
    }

    /// A field of the first model in `/stats`.
    pub fn stat(&self, field: &str) -> u64 {
        self.get("/stats").json()["models"][0][field].as_u64().unwrap()
    }

    /// Texts that wait in the first model's queue.
    pub fn waiting(&self) -> u64 {
        let stats = self.get("/stats").json();
        let classes = stats["models"][0]["waiting"].as_array().unwrap().clone();
        classes.iter().map(|class| class["waiting"].as_u64().unwrap()).sum()
    }

    pub fn wait_waiting(&self, count: u64) {
        until(&format!("{count} texts wait"), || self.waiting() == count);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Twice, so that nothing is waited for.
        self.stop.signal();
        self.stop.signal();
        if let Some(server) = self.server.take() {
            let _ = server.join();
        }
    }
}

/// Looks again and again until something is so.
pub fn until(what: &str, is_so: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_so() {
        assert!(start.elapsed() < Duration::from_secs(30), "it never came to be that {what}");
        std::thread::yield_now();
    }
}
