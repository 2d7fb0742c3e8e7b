//! What the queue costs: `embed` as eight client threads do it, against the same engine offline.
//!
//! Offline is the best that can be done without a queue: one thread knows all texts, tokenises them,
//! sorts them by length and runs them in batches of 32. Through the queue, eight threads take texts
//! in input order and submit them one by one, with at most 512 under way, as `onelane embed` does.
//! Both count from text to embedding. The two run in turn, several times; the figure is the median
//! of the ratios of neighbours, so that a change in the machine's speed meets both.
//!
//!     ONELANE_MINILM=DIR cargo bench -p onelane-engines [-- TEXTS ROUNDS [FILE]]
//!
//! Exit 1 when the queue has less than 90% of the offline throughput.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, ExecutorConfig, ResponseHandle};
use onelane_engines::{
    DeviceName, EmbeddingConfig, EmbeddingEngine, EmbeddingModel, TokenisedText,
};

const BATCH: usize = 32;
const THREADS: usize = 8;
const UNDER_WAY: usize = 16 * BATCH;

type Error = Box<dyn std::error::Error>;

fn main() -> Result<ExitCode, Error> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |arg| arg.parse());
    let (count, rounds) = (number(0, 1000)?, number(1, 5)?);
    let Some(dir) = std::env::var_os("ONELANE_MINILM").map(PathBuf::from) else {
        println!("SKIPPED: ONELANE_MINILM does not name the directory of all-MiniLM-L6-v2");
        return Ok(ExitCode::SUCCESS);
    };
    let source = match args.get(2) {
        Some(file) => std::fs::read_to_string(file)?,
        None => include_str!("../../../LICENSE-APACHE").to_owned(),
    };
    let texts = texts(&source, count);

    let model = EmbeddingModel::open(dir, DeviceName::Cpu, EmbeddingConfig::default())?;
    let mut engine = model.load()?;
    let device = DeviceExecutor::new(ExecutorConfig::new("cpu"))?;
    let factory = model.clone();
    let config = BatchConfig::default().max_batch_size(BATCH).capacity(UNDER_WAY);
    let queue = BatchQueue::new(&device, config, move || Ok(factory.load()?))?;

    let tokens: usize = {
        let lengths =
            texts.iter().map(|text| model.tokeniser().encode(text).map(|t| t.ids().len()));
        lengths.sum::<Result<usize, _>>()?
    };
    println!("{count} texts of {:.1} tokens on average", tokens as f64 / count as f64);
    // The first round warms up.
    let mut ratios = Vec::new();
    for round in 0..=rounds {
        let offline = offline(&model, &mut engine, &texts)?;
        let queued = queued(&model, &queue, &texts)?;
        let ratio = offline.as_secs_f64() / queued.as_secs_f64();
        let rate = |took: Duration| count as f64 / took.as_secs_f64();
        println!(
            "{}: offline {:.1} texts/s, queue {:.1} texts/s, ratio {ratio:.3}",
            if round == 0 { "warm-up".to_owned() } else { format!("round {round}") },
            rate(offline),
            rate(queued),
        );
        if round > 0 {
            ratios.push(ratio);
        }
    }
    ratios.sort_by(f64::total_cmp);
    let stats = queue.stats();
    println!(
        "{:.1} texts a batch, {:.1}% padding, {} distinct shapes",
        stats.mean_batch_size(),
        100.0 * stats.padding_waste(),
        model.shapes().len()
    );
    let median = ratios.get(ratios.len() / 2).copied().unwrap_or(0.0);
    println!("median ratio queue / offline: {median:.3} (at least 0.9 is wanted)");
    Ok(ExitCode::from(u8::from(median < 0.9)))
}

/// Lines and paragraphs of a document, over and over, each a little different.
fn texts(source: &str, count: usize) -> Vec<String> {
    let lines = source.lines().map(|line| line.trim().to_owned());
    let paragraphs =
        source.split("\n\n").map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let all: Vec<String> = lines.chain(paragraphs).filter(|text| !text.is_empty()).collect();
    // A stride that is prime to the number of texts mixes the lengths.
    (0..count).map(|i| format!("{} {i}", all[i * 7919 % all.len()])).collect()
}

/// One thread, all texts known beforehand.
fn offline(
    model: &EmbeddingModel,
    engine: &mut EmbeddingEngine,
    texts: &[String],
) -> Result<Duration, Error> {
    let started = Instant::now();
    let encoded: Result<Vec<TokenisedText>, _> =
        texts.iter().map(|text| model.tokeniser().encode(text)).collect();
    let mut encoded = encoded?;
    encoded.sort_by_key(|text| text.ids().len());
    for batch in encoded.chunks(BATCH) {
        std::hint::black_box(engine.infer(batch)?);
    }
    Ok(started.elapsed())
}

/// Eight threads, each submitting one text at a time; one more collects the answers.
fn queued(
    model: &EmbeddingModel,
    queue: &BatchQueue<EmbeddingEngine>,
    texts: &[String],
) -> Result<Duration, Error> {
    let started = Instant::now();
    let next = AtomicUsize::new(0);
    let (send, handles) = mpsc::sync_channel::<ResponseHandle<Vec<f32>>>(UNDER_WAY);
    std::thread::scope(|scope| -> Result<(), Error> {
        let clients: Vec<_> = (0..THREADS)
            .map(|_| {
                let (next, send) = (&next, send.clone());
                scope.spawn(move || -> Result<(), String> {
                    while let Some(text) = texts.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let encoded = model.tokeniser().encode(text).map_err(|e| e.to_string())?;
                        let handle = queue.submit(encoded).map_err(|e| e.to_string())?;
                        send.send(handle).map_err(|e| e.to_string())?;
                    }
                    Ok(())
                })
            })
            .collect();
        drop(send);
        for handle in handles {
            std::hint::black_box(handle.wait()?);
        }
        for client in clients {
            client.join().map_err(|_| "a client panicked")??;
        }
        Ok(())
    })?;
    Ok(started.elapsed())
}
