//! MiniLM in an isolated worker over in process: requests a second of 64 threads, in pairs. The
//! model's directory is `ONELANE_MINILM`. `cargo bench -p onelane-bench --bench isolated`.

use std::time::{Duration, Instant};

use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, EngineError};
use onelane_bench::Paired;
use onelane_engines::{
    DeviceName, EmbeddingConfig, EmbeddingEngine, EmbeddingModel, TokenisedText,
};
use onelane_isolate::{Isolated, IsolationConfig, Supervisor, serve, this_program};

const THREADS: usize = 64;
const REQUESTS: usize = 10;
const ROUNDS: usize = 9;

/// In a child as in its parent: the variable is inherited.
fn load() -> Result<EmbeddingEngine, EngineError> {
    Ok(open()?.load()?)
}

fn open() -> Result<EmbeddingModel, EngineError> {
    let dir = std::env::var("ONELANE_MINILM")
        .map_err(|_| EngineError::failed("set ONELANE_MINILM to the model's directory"))?;
    let config = EmbeddingConfig::default();
    EmbeddingModel::open(&dir, DeviceName::Cpu, config).map_err(EngineError::from)
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    serve::<EmbeddingEngine>(load);
    let model = open()?;
    let texts = [
        "The ferry leaves at nine.",
        "Rain is expected in the north tomorrow, with wind from the west.",
        "Which of the two plans covers damage to the roof?",
        "Please send the signed form back within ten days, together with a copy of your passport.",
    ];
    let texts = texts.map(|text| model.tokeniser().encode(text).expect("it is text"));
    let supervisor = Supervisor::new(this_program, IsolationConfig::default())?;
    let [near, far] = ["bench:0", "bench:1"].map(DeviceExecutor::shared);
    let config = BatchConfig::default();
    let direct = BatchQueue::new(&near?, config.clone(), load)?;
    let isolated =
        BatchQueue::new(&far?, config, Isolated::<EmbeddingEngine>::factory(&supervisor))?;
    for text in &texts {
        let ask = |answer: Vec<f32>| answer.iter().map(|x| x * x).sum::<f32>();
        let norm = ask(direct.submit(text.clone()).expect("open").wait()?);
        assert!((norm - 1.0).abs() < 1e-3, "a vector of length {norm}");
    }
    let mut paired = Paired::default();
    per_second(&isolated, &texts);
    for _ in 0..ROUNDS {
        paired.push(vec![per_second(&isolated, &texts), per_second(&direct, &texts)]);
    }
    let [ratio, least, most] = paired.ratio(0, 1);
    println!(
        "MiniLM, {THREADS} threads: {:.0} a second in process, {:.0} isolated: {ratio:.3}, \
         {least:.3} to {most:.3} in {ROUNDS} pairs (aim: 0.95 at least)",
        paired.rate(1),
        paired.rate(0)
    );
    Ok(())
}

fn per_second<E>(queue: &BatchQueue<E>, texts: &[TokenisedText]) -> f64
where
    E: Engine<Item = TokenisedText, Output = Vec<f32>>,
{
    let since = Instant::now();
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || {
                for request in 0..REQUESTS {
                    let text = texts[(thread + request) % texts.len()].clone();
                    let handle = queue.submit(text).expect("open");
                    let answer = handle.wait_timeout(Duration::from_secs(120));
                    assert!(matches!(answer, Ok(Ok(vector)) if vector.len() == 384));
                }
            });
        }
    });
    (THREADS * REQUESTS) as f64 / since.elapsed().as_secs_f64()
}
