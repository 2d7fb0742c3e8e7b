//! A server with toy models, which need no files: words are hashed into a vector. It shows how an
//! engine is bound to the server; the tests of client libraries run against it.
//!
//! ```text
//! cargo run -p onelane-server --example hashing -- 3000
//! ```

use std::error::Error;

use onelane::{BatchConfig, BatchItem, DeviceExecutor, Engine, EngineError};
use onelane_server::{
    Classifier, Embedder, Listener, Model, ModelInfo, Reranker, Server, ServerConfig, Signals,
    TextError, Token, Tokenised, Tokens,
};

const WIDTH: usize = 32;
const LIMIT: usize = 512;

/// What the engines run on: the hashes of the words of one text, or two.
struct Words(Vec<Vec<u64>>);

impl BatchItem for Words {
    type Key = usize;

    fn key(&self) -> usize {
        self.cost().next_power_of_two()
    }

    fn cost(&self) -> usize {
        self.0.iter().map(Vec::len).sum::<usize>().max(1)
    }
}

fn hash(word: &str) -> u64 {
    word.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
    })
}

fn words(texts: &[&str]) -> Result<Tokenised<Words>, TextError> {
    let mut all: Vec<Vec<u64>> =
        texts.iter().map(|text| text.split_whitespace().map(hash).collect()).collect();
    let truncated = all.iter().any(|words| words.len() > LIMIT);
    all.iter_mut().for_each(|words| words.truncate(LIMIT));
    let item = Words(all);
    Ok(Tokenised { tokens: item.cost(), truncated, item })
}

fn vector(words: &[u64]) -> Vec<f32> {
    let mut sums = [0.01_f32; WIDTH];
    for word in words {
        for (index, sum) in sums.iter_mut().enumerate() {
            *sum += if word.rotate_left(index as u32) & 1 == 0 { 1.0 } else { -1.0 };
        }
    }
    let norm = sums.iter().map(|sum| sum * sum).sum::<f32>().sqrt();
    sums.iter().map(|sum| sum / norm).collect()
}

#[derive(Clone)]
struct Hashing;

/// Embeds.
struct Vectors;

impl Engine for Vectors {
    type Item = Words;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[Words]) -> Result<Vec<Vec<f32>>, EngineError> {
        Ok(batch.iter().map(|words| vector(&words.0[0])).collect())
    }
}

impl Tokens for Hashing {
    fn tokens(&self, text: &str, _special: bool) -> Result<Vec<Token>, TextError> {
        let token = |word: &str| Token {
            id: hash(word) as u32,
            text: word.to_owned(),
            special: false,
            start: None,
            stop: None,
        };
        Ok(text.split_whitespace().map(token).collect())
    }

    fn decode(&self, ids: &[u32], _skip_special: bool) -> Result<String, TextError> {
        Ok(ids.iter().map(u32::to_string).collect::<Vec<_>>().join(" "))
    }
}

impl Embedder for Hashing {
    type Engine = Vectors;

    fn load(&self) -> Result<Vectors, EngineError> {
        Ok(Vectors)
    }

    fn encode(&self, text: &str) -> Result<Tokenised<Words>, TextError> {
        words(&[text])
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT).dimensions(WIDTH).matryoshka(true).pooling("mean")
    }
}

/// Scores by the similarity of the vectors.
struct Similarity;

impl Engine for Similarity {
    type Item = Words;
    type Output = f32;

    fn infer(&mut self, batch: &[Words]) -> Result<Vec<f32>, EngineError> {
        let score = |words: &Words| {
            let (query, text) = (vector(&words.0[0]), vector(&words.0[1]));
            query.iter().zip(text).map(|(a, b)| a * b).sum::<f32>() * 4.0
        };
        Ok(batch.iter().map(score).collect())
    }
}

impl Reranker for Hashing {
    type Engine = Similarity;

    fn load(&self) -> Result<Similarity, EngineError> {
        Ok(Similarity)
    }

    fn encode(&self, query: &str, text: &str) -> Result<Tokenised<Words>, TextError> {
        words(&[query, text])
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT)
    }
}

/// Labels by the first three numbers of the vector.
struct Labels;

impl Engine for Labels {
    type Item = Words;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[Words]) -> Result<Vec<Vec<f32>>, EngineError> {
        Ok(batch.iter().map(|words| vector(&words.0.concat())[..3].to_vec()).collect())
    }
}

impl Classifier for Hashing {
    type Engine = Labels;

    fn load(&self) -> Result<Labels, EngineError> {
        Ok(Labels)
    }

    fn encode(&self, text: &str, pair: Option<&str>) -> Result<Tokenised<Words>, TextError> {
        pair.map_or_else(|| words(&[text]), |pair| words(&[text, pair]))
    }

    fn labels(&self) -> Vec<String> {
        ["good", "bad", "neither"].map(str::to_owned).into()
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let port: u16 = std::env::args().nth(1).unwrap_or_else(|| "3000".to_owned()).parse()?;
    let device = DeviceExecutor::shared("cpu")?;
    let queue = BatchConfig::default().capacity(4096);
    let models = vec![
        Model::embedder("toy", Hashing, &device, queue.clone()),
        Model::reranker("toy-rerank", Hashing, &device, queue.clone()),
        Model::classifier("toy-classify", Hashing, &device, queue),
    ];
    let config = ServerConfig::default().drain_delay(std::time::Duration::ZERO);
    let listener = Listener::tcp(format!("127.0.0.1:{port}"))?;
    println!("{listener}");
    Server::new(config, models)?.serve(listener, Signals::of_process()?).await?;
    Ok(())
}
