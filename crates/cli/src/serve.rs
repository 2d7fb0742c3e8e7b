//! `onelane serve`: embeddings, reranking and classification over HTTP and gRPC, by candle engines behind batch queues.
//!
//! This file has the flags and starts the server; [`embedding`] and [`scoring`] bind engines to it,
//! [`isolated`] runs them in child processes.

mod embedding;
mod isolated;
mod scoring;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::ArgAction;
use onelane::{BatchConfig, DeviceExecutor, ExecutorConfig};
use onelane_engines::{
    ClassificationEngine, ClassificationModel, DeviceName, EmbeddingConfig, EmbeddingEngine,
    EmbeddingModel,
};
use onelane_isolate::Isolated;
use onelane_server::{Listener, Model, ServeError, Server, ServerConfig, Signals};
use onelane_terminal::at_least_one;

use embedding::Embedding;
use scoring::Scoring;

pub use isolated::run_if_child;

/// Serves embeddings, reranking and classification over HTTP and gRPC: the routes of OpenAI, text-embeddings-inference (TEI),
/// Ollama and the Open Inference Protocol, on one port.
///
/// Every text of every call goes through the model's batch queue: texts of similar length run
/// together, whoever sent them; urgent ones first; what is no longer wanted is not computed; and
/// what there is no room for is told so at once, with the time after which to come again.
///
/// A browser finds a live page at / and the description of all routes at /docs. The flags that TEI
/// has too have its names and environment variables.
///
/// SIGTERM and Ctrl-C drain: /ready fails at once, the listener closes after --drain-delay, and what
/// was accepted is finished. A second one aborts.
///
/// Exit codes: 0 drained, 1 the drain was cut short or the device hangs, 2 wrong usage or a start
/// that failed.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// A model's directory, with config.json, tokenizer.json and model.safetensors, and the name
    /// that clients call it by (the directory's, if left out); may be repeated
    #[arg(
        long,
        value_name = "[NAME=]DIR",
        required = true,
        env = "MODEL_ID",
        hide_env_values = true
    )]
    model_id: Vec<String>,

    /// Another name of the first model
    #[arg(long, value_name = "NAME", env = "SERVED_MODEL_NAME", hide_env_values = true)]
    served_model_name: Option<String>,

    /// The device of all models: cpu, metal[:N] or cuda[:N]
    #[arg(long, default_value_t = DeviceName::Cpu)]
    device: DeviceName,

    /// Worker threads of the device, each with engines of its own; more than one is for the cpu
    #[arg(long, value_name = "N", default_value = "1", value_parser = at_least_one)]
    workers: usize,

    /// Runs each model in a child process: a crash or a hang costs the text at fault only
    #[arg(long)]
    isolate: bool,

    /// The most texts of a model that wait; what is more gets 429
    #[arg(long, value_name = "N", default_value = "4096", value_parser = at_least_one,
          env = "MAX_CONCURRENT_REQUESTS", hide_env_values = true)]
    max_concurrent_requests: usize,

    /// The most tokens of a model that wait; no limit if left out
    #[arg(long, value_name = "N", value_parser = at_least_one)]
    max_queued_tokens: Option<usize>,

    /// The most tokens that run together
    #[arg(long, value_name = "N", default_value = "16384", value_parser = at_least_one,
          env = "MAX_BATCH_TOKENS", hide_env_values = true)]
    max_batch_tokens: usize,

    /// The most texts that run together
    #[arg(long, value_name = "N", default_value = "32", value_parser = at_least_one,
          env = "MAX_BATCH_REQUESTS", hide_env_values = true)]
    max_batch_requests: usize,

    /// How long a text waits until it goes before younger ones of the next class (bulk, normal,
    /// interactive), in seconds: so that none waits for ever
    #[arg(long, value_name = "SECONDS", default_value = "60", value_parser = seconds)]
    ageing: Duration,

    /// The most texts in a call
    #[arg(long, value_name = "N", default_value = "2048", value_parser = at_least_one,
          env = "MAX_CLIENT_BATCH_SIZE", hide_env_values = true)]
    max_client_batch_size: usize,

    /// Cuts texts that are longer than the model takes, and says so in x-truncated-inputs; if false,
    /// they are refused
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, action = ArgAction::Set, env = "AUTO_TRUNCATE", hide_env_values = true)]
    auto_truncate: bool,

    /// Lets calls ask for fewer dimensions of any model, also of those not made for it
    #[arg(long)]
    matryoshka: bool,

    /// Takes token ids for texts: they must be of the model's own tokeniser
    #[arg(long)]
    token_ids: bool,

    /// The address to listen on
    #[arg(long, value_name = "HOST", default_value = "127.0.0.1")]
    hostname: String,

    /// The port to listen on; 0 takes a free one
    #[arg(
        short,
        long,
        value_name = "PORT",
        default_value = "3000",
        env = "PORT",
        hide_env_values = true
    )]
    port: u16,

    /// Listens on this Unix socket instead
    #[arg(long, value_name = "PATH", env = "UDS_PATH", hide_env_values = true)]
    uds_path: Option<PathBuf>,

    /// A certificate chain, PEM: speaks TLS
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,

    /// The private key of --tls-cert, PEM
    #[cfg(feature = "tls")]
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,

    /// The most bytes in a body
    #[arg(long, value_name = "BYTES", default_value = "2000000", value_parser = at_least_one,
          env = "PAYLOAD_LIMIT", hide_env_values = true)]
    payload_limit: usize,

    /// What clients must send as `Authorization: Bearer KEY`
    #[arg(long, value_name = "KEY", env = "API_KEY", hide_env_values = true)]
    api_key: Option<String>,

    /// An origin whose pages may call from a browser, or *; may be repeated
    #[arg(long, value_name = "ORIGIN", env = "CORS_ALLOW_ORIGIN", hide_env_values = true)]
    cors_allow_origin: Vec<String>,

    /// The deadline of calls that name none, in seconds; none if left out
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    request_timeout: Option<Duration>,

    /// How long to go on accepting after SIGTERM, while /ready fails, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "5", value_parser = seconds)]
    drain_delay: Duration,

    /// How long what was accepted may take after that, in seconds
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    drain_timeout: Duration,

    /// Ends the server when a batch has run this long, in seconds; 0 never does
    #[arg(long, value_name = "SECONDS", default_value = "300", value_parser = seconds)]
    stall_exit: Duration,

    /// Embeds some texts alone and together at the start, and ends if they differ
    #[arg(long, value_name = "BOOL", default_value = "true", default_missing_value = "true",
          num_args = 0..=1, action = ArgAction::Set)]
    self_check: bool,
}

fn seconds(text: &str) -> Result<Duration, String> {
    let number: f64 = text.parse().map_err(|_| "must be a number of seconds".to_owned())?;
    Duration::try_from_secs_f64(number).map_err(|_| "must be a number of seconds".to_owned())
}

/// Runs the command.
///
/// # Errors
/// When it could not start: a model, the device or the address.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let models = models(&args)?;
    let server = Server::new(config(&args), models)?;
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .worker_threads(cores)
        // They tokenise what is long: more of them than cores would only take memory.
        .max_blocking_threads(cores + 2)
        .thread_name("onelane-http")
        .build()
        .context("cannot start the server's threads")?;
    let served = runtime.block_on(async {
        let signals = Signals::of_process().context("cannot handle signals")?;
        let listener = match &args.uds_path {
            Some(path) => Listener::unix(path)?,
            None => Listener::host(&args.hostname, args.port)?,
        };
        #[cfg(feature = "tls")]
        let listener = match (&args.tls_cert, &args.tls_key) {
            (Some(certificate), Some(key)) => listener.tls(certificate, key)?,
            _ => listener,
        };
        eprintln!("listening on {listener}");
        anyhow::Ok(server.serve(listener, signals).await)
    })?;
    // What still runs there has been told that it is over.
    runtime.shutdown_background();
    match served {
        Ok(()) => Ok(ExitCode::SUCCESS),
        Err(error @ (ServeError::Hung { .. } | ServeError::Aborted { .. })) => {
            eprintln!("error: {error}");
            // The worker may hang in the driver: nothing can be waited for.
            std::process::exit(1)
        }
        Err(error) => Err(error.into()),
    }
}

fn config(args: &Args) -> ServerConfig {
    ServerConfig::default()
        .max_texts(args.max_client_batch_size)
        .payload_limit(args.payload_limit)
        .auto_truncate(args.auto_truncate)
        .matryoshka(args.matryoshka)
        .token_ids(args.token_ids)
        .request_timeout(args.request_timeout)
        .api_key(args.api_key.clone())
        .cors_origins(args.cors_allow_origin.clone())
        .self_check(args.self_check)
        .drain_delay(args.drain_delay)
        .drain_timeout(args.drain_timeout)
        .stall_exit((!args.stall_exit.is_zero()).then_some(args.stall_exit))
}

fn models(args: &Args) -> anyhow::Result<Vec<Model>> {
    let executor = ExecutorConfig::new(args.device.to_string()).workers(args.workers);
    let device = DeviceExecutor::shared_with(executor)?;
    let queue = BatchConfig::default()
        .max_batch_size(args.max_batch_requests)
        .max_batch_cost(args.max_batch_tokens)
        .capacity(args.max_concurrent_requests)
        .capacity_cost(args.max_queued_tokens.unwrap_or(usize::MAX))
        .ageing(args.ageing);
    queue.validate()?;
    let mut models = Vec::new();
    for id in &args.model_id {
        let (name, dir) = named(id)?;
        let mut model = model(name, &dir, args, (&device, queue.clone()))?;
        if let (true, Some(alias)) = (models.is_empty(), &args.served_model_name) {
            model = model.alias(alias);
        }
        models.push(model);
    }
    Ok(models)
}

/// What a directory holds, bound to its queue.
fn model(
    name: String,
    dir: &Path,
    args: &Args,
    (device, queue): (&DeviceExecutor, BatchConfig),
) -> anyhow::Result<Model> {
    let config = EmbeddingConfig::default();
    let supervisor = || isolated::supervisor(dir, args.device);
    if ClassificationModel::is_in(dir)? {
        let model = ClassificationModel::open(dir, args.device, config)?;
        return Ok(if args.isolate {
            let load = Isolated::<ClassificationEngine>::factory(&supervisor()?);
            Scoring::with(model, load).served(name, device, queue)
        } else {
            Scoring::new(model).served(name, device, queue)
        });
    }
    let model = EmbeddingModel::open(dir, args.device, config)?;
    Ok(if args.isolate {
        let load = Isolated::<EmbeddingEngine>::factory(&supervisor()?);
        Model::embedder(name, Embedding::with(model, load), device, queue)
    } else {
        Model::embedder(name, Embedding::new(model), device, queue)
    })
}

/// `NAME=DIR`, or a directory and its own name.
fn named(id: &str) -> anyhow::Result<(String, PathBuf)> {
    let whole = Path::new(id);
    if let (Some((name, dir)), false) = (id.split_once('='), whole.is_dir()) {
        if name.is_empty() || dir.is_empty() {
            bail!("--model-id {id}: give NAME=DIR or DIR");
        }
        return Ok((name.to_owned(), dir.into()));
    }
    // For `.` and the like.
    let full = whole.canonicalize().unwrap_or_else(|_| whole.to_owned());
    let name = full.file_name().map(|name| name.to_string_lossy().into_owned());
    let name = name.with_context(|| format!("--model-id {id}: give it a name: NAME=DIR"))?;
    Ok((name, whole.to_owned()))
}
