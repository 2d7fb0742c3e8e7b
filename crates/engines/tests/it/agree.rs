//! Agreement with transformers, for each family, embedding and with heads. Set
//! `ONELANE_TINY_MODELS` to the folder that `tests/tiny_models.py` wrote; without it these tests say
//! that they were skipped.

use std::path::PathBuf;
use std::sync::Barrier;

use crate::common::difference;
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, ExecutorConfig};
use onelane_engines::{
    ClassificationModel, DeviceName, EmbeddingConfig, EmbeddingModel, Padding, TokenisedText,
    Tokeniser,
};
use serde::Deserialize;

const FAMILIES: [&str; 8] = [
    "bert",
    "distilbert",
    "roberta",
    "xlm-roberta",
    "camembert",
    "mpnet",
    "modernbert",
    "modernbert-biased",
];

/// Threads that use one queue.
const THREADS: usize = 8;

/// What transformers answered.
#[derive(Deserialize)]
struct Expected {
    texts: Vec<String>,
    of_texts: Vec<Vec<f32>>,
    /// Each text's last hidden states, one after the other.
    #[serde(default)]
    of_tokens: Vec<Vec<f32>>,
    #[serde(default)]
    pairs: Vec<(String, String)>,
    #[serde(default)]
    of_pairs: Vec<Vec<f32>>,
    #[serde(default)]
    labels: Vec<String>,
}

/// A folder and what is expected of it, or `None` with a word about it.
fn tiny(family: &str, kind: &str) -> Option<(PathBuf, Expected)> {
    let Some(all) = std::env::var_os("ONELANE_TINY_MODELS") else {
        eprintln!("SKIPPED: ONELANE_TINY_MODELS does not name what tests/tiny_models.py wrote");
        return None;
    };
    let dir = PathBuf::from(all).join(format!("{family}-{kind}"));
    let expected = std::fs::read(dir.join("expected.json")).unwrap();
    Some((dir, serde_json::from_slice(&expected).unwrap()))
}

/// Both ways of computing.
fn both() -> [EmbeddingConfig; 2] {
    [Padding::Pad, Padding::Skip].map(|padding| EmbeddingConfig::default().padding(padding))
}

/// Compares what an engine makes of items alone, and together with those of their bucket.
fn agree<E>(what: &str, engine: &mut E, items: &[TokenisedText], expected: &[Vec<f32>])
where
    E: Engine<Item = TokenisedText, Output = Vec<f32>>,
{
    assert_eq!(items.len(), expected.len());
    for (index, (item, expected)) in items.iter().zip(expected).enumerate() {
        let alone = engine.infer(std::slice::from_ref(item)).unwrap();
        let off = difference(&alone[0], expected);
        assert!(off < 1e-4, "{what}, input {index} alone: {off}");
        let others = items.iter().filter(|other| other.bucket() == item.bucket());
        let batch: Vec<TokenisedText> = others.chain([item]).cloned().collect();
        let together = engine.infer(&batch).unwrap();
        let off = difference(together.last().unwrap(), expected);
        assert!(off < 1e-4, "{what}, input {index} in a batch: {off}");
    }
}

fn texts(tokeniser: &Tokeniser, expected: &Expected) -> Vec<TokenisedText> {
    expected.texts.iter().map(|text| tokeniser.encode(text).unwrap()).collect()
}

#[test]
fn embeddings_are_those_of_transformers() {
    for family in FAMILIES {
        let Some((dir, expected)) = tiny(family, "embed") else { return };
        for config in both() {
            let model = EmbeddingModel::open(&dir, DeviceName::Cpu, config).unwrap();
            let items = texts(model.tokeniser(), &expected);
            agree(family, &mut model.load().unwrap(), &items, &expected.of_texts);
        }
    }
}

#[test]
fn vectors_of_tokens_are_the_last_hidden_states_of_transformers() {
    for family in FAMILIES {
        let Some((dir, expected)) = tiny(family, "embed") else { return };
        for config in both() {
            let model = EmbeddingModel::open(&dir, DeviceName::Cpu, config).unwrap();
            let mut engine = model.load().unwrap();
            let items = texts(model.tokeniser(), &expected);
            let each = items.iter().cloned().map(TokenisedText::with_each_token);
            let each: Vec<TokenisedText> = each.collect();
            agree(family, &mut engine, &each, &expected.of_tokens);
            // Both kinds of answers from one call, whatever a queue would do.
            let mixed = engine.infer(&[items[1].clone(), each[1].clone()]).unwrap();
            assert!(difference(&mixed[0], &expected.of_texts[1]) < 1e-4, "{family}");
            assert!(difference(&mixed[1], &expected.of_tokens[1]) < 1e-4, "{family}");
        }
    }
}

#[test]
fn under_concurrency_answers_are_those_of_transformers() {
    for family in FAMILIES {
        let Some((dir, expected)) = tiny(family, "embed") else { return };
        for config in both() {
            let model = EmbeddingModel::open(&dir, DeviceName::Cpu, config).unwrap();
            let items = texts(model.tokeniser(), &expected);
            let device = DeviceExecutor::new(ExecutorConfig::new("agree")).unwrap();
            let factory = model.clone();
            let queue =
                BatchQueue::new(&device, BatchConfig::default().max_batch_size(8), move || {
                    Ok(factory.load()?)
                });
            let queue = queue.unwrap();
            let start = Barrier::new(THREADS);
            std::thread::scope(|scope| {
                for thread in 0..THREADS {
                    let (queue, items, expected, start) = (&queue, &items, &expected, &start);
                    scope.spawn(move || {
                        start.wait();
                        for round in 0..3 * items.len() {
                            let index = (thread + round) % items.len();
                            let (item, wanted) = match (thread + round) % 3 {
                                0 => (items[index].clone().with_each_token(), &expected.of_tokens),
                                _ => (items[index].clone(), &expected.of_texts),
                            };
                            let answer = queue.submit(item).unwrap().wait().unwrap();
                            let off = difference(&answer, &wanted[index]);
                            assert!(off < 1e-4, "{family}, input {index}: {off}");
                        }
                    });
                }
            });
        }
    }
}

#[test]
fn projections_and_poolings_are_those_of_sentence_transformers() {
    for kind in ["dense", "cls"] {
        let Some((dir, expected)) = tiny("bert", kind) else { return };
        for config in both() {
            let model = EmbeddingModel::open(&dir, DeviceName::Cpu, config).unwrap();
            assert_eq!(model.hidden_size(), expected.of_texts[0].len());
            let items = texts(model.tokeniser(), &expected);
            agree(kind, &mut model.load().unwrap(), &items, &expected.of_texts);
            if kind == "dense" {
                let settings = model.settings();
                assert_eq!(settings.prompts["query"], "w1 w2 ");
                assert_eq!(settings.default_prompt.as_deref(), Some("w5 "));
            }
        }
    }
}

#[test]
fn scores_of_texts_and_pairs_are_those_of_transformers() {
    for family in FAMILIES {
        for kind in ["rerank", "classify"] {
            let Some((dir, expected)) = tiny(family, kind) else { return };
            let what = format!("{family}-{kind}");
            assert!(ClassificationModel::is_in(&dir).unwrap(), "{what}");
            for config in both() {
                let model = ClassificationModel::open(&dir, DeviceName::Cpu, config).unwrap();
                assert_eq!(model.labels(), expected.labels);
                let mut engine = model.load().unwrap();
                let items = texts(model.tokeniser(), &expected);
                agree(&what, &mut engine, &items, &expected.of_texts);
                let pair = |(a, b): &(String, String)| model.tokeniser().encode_pair(a, b).unwrap();
                let items: Vec<TokenisedText> = expected.pairs.iter().map(pair).collect();
                agree(&what, &mut engine, &items, &expected.of_pairs);
                let cut: Vec<bool> = items.iter().map(TokenisedText::truncated).collect();
                assert_eq!(cut, [false, false, false, false, true, true]);
            }
        }
    }
}

#[test]
fn a_model_that_embeds_is_no_classifier() {
    let Some((dir, _)) = tiny("bert", "embed") else { return };
    assert!(!ClassificationModel::is_in(&dir).unwrap());
    let error = ClassificationModel::open(&dir, DeviceName::Cpu, EmbeddingConfig::default());
    assert!(error.err().unwrap().to_string().contains("classifier.weight"));
}
