//! Engines that are told what to do by the texts that they get.
//!
//! A word is a token. `poison` fails its batch, `nan` is answered with what is no number, `gate`
//! waits at the test's gate. What ran is noted, batch by batch.

use std::sync::{Arc, Mutex};

use onelane::testing::Gate;
use onelane::{BatchItem, Engine, EngineError};
use onelane_server::{
    Classifier, Embedder, ModelInfo, Reranker, TextError, Token, Tokenised, Tokens,
};

pub const WIDTH: usize = 4;
pub const LIMIT: usize = 64;

/// What the engines of a test share with it.
#[derive(Clone, Default)]
pub struct Fake {
    pub gate: Gate,
    pub ran: Arc<Mutex<Vec<Vec<String>>>>,
    /// Answers depend on the batch: what the self-check is for.
    pub wrong: bool,
    /// What is put before each text unasked; `ask: ` is the prompt `query`.
    pub default_prompt: Option<String>,
}

impl Fake {
    /// Every text that ran, in order.
    pub fn texts(&self) -> Vec<String> {
        self.ran.lock().unwrap().concat()
    }
}

#[derive(Debug)]
pub struct Words {
    texts: Vec<String>,
    count: usize,
    each: bool,
}

impl BatchItem for Words {
    type Key = (usize, bool);

    fn key(&self) -> (usize, bool) {
        (self.count.next_power_of_two(), self.each)
    }

    fn cost(&self) -> usize {
        self.count
    }
}

fn words(texts: &[&str]) -> Result<Tokenised<Words>, TextError> {
    let all: usize = texts.iter().map(|text| text.split_whitespace().count()).sum();
    if texts.iter().any(|text| text.contains('\u{7}')) {
        return Err(TextError("it rings a bell".to_owned()));
    }
    let count = all.clamp(1, LIMIT);
    let texts = texts.iter().map(|text| (*text).to_owned()).collect();
    Ok(Tokenised {
        item: Words { texts, count, each: false },
        tokens: count,
        truncated: all > LIMIT,
    })
}

/// The vector of a text: of length 1, and another one for another text.
pub fn vector(text: &str) -> Vec<f32> {
    let mut numbers = [1.0_f32; WIDTH];
    for (index, byte) in text.bytes().enumerate() {
        numbers[(index + usize::from(byte)) % WIDTH] += f32::from(byte) / 16.0;
    }
    let norm = numbers.iter().map(|n| n * n).sum::<f32>().sqrt();
    numbers.iter().map(|n| n / norm).collect()
}

pub struct FakeEngine(Fake);

impl FakeEngine {
    fn note(&self, batch: &[Words]) -> Result<(), EngineError> {
        let texts = || batch.iter().flat_map(|item| &item.texts);
        self.0.ran.lock().unwrap().push(texts().cloned().collect());
        if texts().any(|text| text.starts_with("gate")) {
            self.0.gate.pass();
        }
        if texts().any(|text| text == "poison") {
            return Err(EngineError::failed("it is poisoned"));
        }
        Ok(())
    }
}

impl Engine for FakeEngine {
    type Item = Words;
    type Output = Vec<f32>;

    fn infer(&mut self, batch: &[Words]) -> Result<Vec<Vec<f32>>, EngineError> {
        self.note(batch)?;
        let one = |item: &Words| {
            if item.each {
                let words = item.texts[0].split_whitespace().take(LIMIT);
                return words.flat_map(vector).collect();
            }
            let mut numbers = vector(&item.texts.concat());
            if item.texts[0] == "nan" {
                numbers[0] = f32::NAN;
            }
            if self.0.wrong && batch.len() > 1 {
                numbers[0] += 0.01;
            }
            numbers
        };
        Ok(batch.iter().map(one).collect())
    }
}

impl Tokens for Fake {
    fn tokens(&self, text: &str, special: bool) -> Result<Vec<Token>, TextError> {
        let start = Token { id: 0, text: "[S]".into(), special: true, start: None, stop: None };
        let token = |word: &str| Token {
            id: word.len() as u32,
            text: word.to_owned(),
            special: false,
            start: text.find(word),
            stop: text.find(word).map(|at| at + word.len()),
        };
        Ok(special.then_some(start).into_iter().chain(text.split(' ').map(token)).collect())
    }

    fn decode(&self, ids: &[u32], _skip_special: bool) -> Result<String, TextError> {
        Ok(ids.iter().map(|id| "x".repeat(*id as usize % 9)).collect::<Vec<_>>().join(" "))
    }
}

impl Embedder for Fake {
    type Engine = FakeEngine;

    fn load(&self) -> Result<FakeEngine, EngineError> {
        Ok(FakeEngine(self.clone()))
    }

    fn encode(&self, text: &str) -> Result<Tokenised<Words>, TextError> {
        words(&[text])
    }

    fn each_token(&self, item: Words) -> Result<Words, TextError> {
        Ok(Words { each: true, ..item })
    }

    fn info(&self) -> ModelInfo {
        let prompts = [("query".to_owned(), "ask: ".to_owned())].into();
        let info = ModelInfo::new(LIMIT).dimensions(WIDTH).pooling("mean").each_token(true);
        info.prompts(prompts, self.default_prompt.clone())
    }
}

/// Embeds texts alone, and leaves to the server what a model may leave.
pub struct Plain(pub Fake);

impl Tokens for Plain {}

impl Embedder for Plain {
    type Engine = FakeEngine;

    fn load(&self) -> Result<FakeEngine, EngineError> {
        self.0.load()
    }

    fn encode(&self, text: &str) -> Result<Tokenised<Words>, TextError> {
        self.0.encode(text)
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT).dimensions(WIDTH)
    }
}

/// Scores a text by the words that it shares with the query.
pub struct Shared(pub Fake);

pub struct SharedEngine(FakeEngine);

impl Engine for SharedEngine {
    type Item = Words;
    type Output = f32;

    fn infer(&mut self, batch: &[Words]) -> Result<Vec<f32>, EngineError> {
        self.0.note(batch)?;
        let score = |item: &Words| {
            let query: Vec<&str> = item.texts[0].split(' ').collect();
            item.texts[1].split(' ').filter(|word| query.contains(word)).count() as f32
        };
        Ok(batch.iter().map(score).collect())
    }
}

impl Tokens for Shared {}

impl Reranker for Shared {
    type Engine = SharedEngine;

    fn load(&self) -> Result<SharedEngine, EngineError> {
        Ok(SharedEngine(FakeEngine(self.0.clone())))
    }

    fn encode(&self, query: &str, text: &str) -> Result<Tokenised<Words>, TextError> {
        words(&[query, text])
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT)
    }
}

/// Labels a text by its vector.
pub struct Labels(pub Fake);

impl Tokens for Labels {}

impl Classifier for Labels {
    type Engine = FakeEngine;

    fn load(&self) -> Result<FakeEngine, EngineError> {
        Ok(FakeEngine(self.0.clone()))
    }

    fn encode(&self, text: &str, pair: Option<&str>) -> Result<Tokenised<Words>, TextError> {
        match pair {
            Some(pair) => words(&[text, pair]),
            None => words(&[text]),
        }
    }

    fn labels(&self) -> Vec<String> {
        ["north", "east", "south", "west"].map(str::to_owned).into()
    }

    fn info(&self) -> ModelInfo {
        ModelInfo::new(LIMIT)
    }
}
