//! A tiny BERT directory with random weights, and a clock that turns a hang into a failure.
//!
//! Also used by the tests of the command line, so it needs `serde_json` and `tempfile` only.

#![allow(dead_code, reason = "each binary that has it uses a part of it")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::{Value, json};
use tempfile::TempDir;

pub const WIDTH: usize = 32;
pub const HEADS: usize = 4;
pub const LAYERS: usize = 2;
pub const INNER: usize = 64;
pub const WORDS: usize = 60;
pub const POSITIONS: usize = 160;
/// Special tokens come first in the vocabulary.
pub const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// Runs `f`, and fails if it has not ended after five minutes.
pub fn in_time<T: Send + 'static>(f: impl FnOnce() -> T + Send + 'static) -> T {
    let (send, receive) = mpsc::channel();
    let thread = std::thread::spawn(move || send.send(f()));
    match receive.recv_timeout(Duration::from_secs(300)) {
        Ok(value) => value,
        Err(mpsc::RecvTimeoutError::Timeout) => panic!("hangs"),
        Err(mpsc::RecvTimeoutError::Disconnected) => match thread.join() {
            Err(panic) => std::panic::resume_unwind(panic),
            Ok(_) => unreachable!("the value was sent"),
        },
    }
}

/// Named f32 tensors: shape and elements.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// The parts of a model directory, to be changed before they are written.
pub struct TinyBert {
    pub config: Value,
    pub tokenizer: Value,
    pub tensors: Tensors,
}

impl TinyBert {
    pub fn new() -> Self {
        let vocab_size = SPECIAL.len() + WORDS;
        let words = (0..WORDS).map(|i| format!("w{i}"));
        let vocab: serde_json::Map<String, Value> = SPECIAL
            .iter()
            .map(|s| (*s).to_owned())
            .chain(words)
            .enumerate()
            .map(|(id, word)| (word, json!(id)))
            .collect();
        let special = |id: usize| {
            json!({"id": id, "special": true, "content": SPECIAL[id], "single_word": false,
                   "lstrip": false, "rstrip": false, "normalized": false})
        };
        let token = |id: usize| json!({"id": SPECIAL[id], "ids": [id], "tokens": [SPECIAL[id]]});
        let piece = |id: usize| json!({"SpecialToken": {"id": SPECIAL[id], "type_id": 0}});
        let text = |part: &str, kind: usize| json!({"Sequence": {"id": part, "type_id": kind}});
        Self {
            config: json!({
                "model_type": "bert", "hidden_size": WIDTH, "num_hidden_layers": LAYERS,
                "num_attention_heads": HEADS, "intermediate_size": INNER,
                "vocab_size": vocab_size, "max_position_embeddings": POSITIONS,
                "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu",
                "position_embedding_type": "absolute", "pad_token_id": 0
            }),
            tokenizer: json!({
                "version": "1.0", "truncation": null,
                // As in published models: padding is switched on, and must be switched off.
                "padding": {"strategy": {"Fixed": 128}, "direction": "Right",
                    "pad_to_multiple_of": null, "pad_id": 0, "pad_type_id": 0, "pad_token": "[PAD]"},
                "added_tokens": [special(0), special(1), special(2), special(3), special(4)],
                "normalizer": {"type": "BertNormalizer", "clean_text": true,
                    "handle_chinese_chars": true, "strip_accents": null, "lowercase": false},
                "pre_tokenizer": {"type": "BertPreTokenizer"},
                "post_processor": {"type": "TemplateProcessing",
                    "single": [piece(2), text("A", 0), piece(3)],
                    "pair": [piece(2), text("A", 0), piece(3), text("B", 1)],
                    "special_tokens": {"[CLS]": token(2), "[SEP]": token(3)}},
                "decoder": {"type": "WordPiece", "prefix": "##", "cleanup": true},
                "model": {"type": "WordPiece", "unk_token": "[UNK]",
                    "continuing_subword_prefix": "##", "max_input_chars_per_word": 100,
                    "vocab": vocab}
            }),
            tensors: tensors(vocab_size),
        }
    }

    /// Writes the three needed files.
    pub fn write(&self) -> TempDir {
        let dir = tempfile::tempdir().unwrap();
        write_json(dir.path(), "config.json", &self.config);
        write_json(dir.path(), "tokenizer.json", &self.tokenizer);
        std::fs::write(dir.path().join("model.safetensors"), self.safetensors()).unwrap();
        dir
    }

    pub fn safetensors(&self) -> Vec<u8> {
        self.serialise("F32", |v| v.to_le_bytes().to_vec())
    }

    /// The upper halves of the floats.
    pub fn safetensors_bf16(&self) -> Vec<u8> {
        self.serialise("BF16", |v| v.to_le_bytes()[2..].to_vec())
    }

    /// The format: length of the header, header in JSON, data.
    fn serialise(&self, dtype: &str, bytes: impl Fn(&f32) -> Vec<u8>) -> Vec<u8> {
        let mut header = serde_json::Map::new();
        let mut data = Vec::new();
        for (name, (shape, numbers)) in &self.tensors {
            let start = data.len();
            data.extend(numbers.iter().flat_map(&bytes));
            let offsets = [start, data.len()];
            let entry = json!({"dtype": dtype, "shape": shape, "data_offsets": offsets});
            header.insert(name.clone(), entry);
        }
        let header = Value::Object(header).to_string().into_bytes();
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.extend(header);
        file.extend(data);
        file
    }
}

pub fn write_json(dir: &Path, name: &str, value: &Value) {
    let path = dir.join(name);
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, value.to_string()).unwrap();
}

fn tensors(vocab_size: usize) -> Tensors {
    let mut random = ChaCha8Rng::seed_from_u64(42);
    let mut tensors = Tensors::new();
    let mut add = |name: String, shape: &[usize], scale: f32, offset: f32| {
        let mut number = || (random.next_u32() >> 8) as f32 / (1 << 23) as f32 - 1.0;
        let n = shape.iter().product();
        let data = (0..n).map(|_| offset + scale * number()).collect();
        tensors.insert(name, (shape.to_vec(), data));
    };
    for (name, rows) in [("word", vocab_size), ("position", POSITIONS), ("token_type", 2)] {
        add(format!("embeddings.{name}_embeddings.weight"), &[rows, WIDTH], 1.0, 0.0);
    }
    let mut norms = vec!["embeddings.LayerNorm".to_owned()];
    for layer in 0..LAYERS {
        let at = format!("encoder.layer.{layer}");
        norms.push(format!("{at}.attention.output.LayerNorm"));
        norms.push(format!("{at}.output.LayerNorm"));
        for (name, from, to) in [
            ("attention.self.query", WIDTH, WIDTH),
            ("attention.self.key", WIDTH, WIDTH),
            ("attention.self.value", WIDTH, WIDTH),
            ("attention.output.dense", WIDTH, WIDTH),
            ("intermediate.dense", WIDTH, INNER),
            ("output.dense", INNER, WIDTH),
        ] {
            // Large enough that attention and GELU are far from linear.
            add(format!("{at}.{name}.weight"), &[to, from], 0.5, 0.0);
            add(format!("{at}.{name}.bias"), &[to], 0.5, 0.0);
        }
    }
    for at in norms {
        add(format!("{at}.weight"), &[WIDTH], 0.5, 1.0);
        add(format!("{at}.bias"), &[WIDTH], 0.5, 0.0);
    }
    tensors
}

/// A text of `words` words, another one for each seed: `words + 2` tokens.
pub fn text(words: usize, seed: usize) -> String {
    let word = |i: usize| format!("w{}", (i * i + 7 * seed + i * seed) % WORDS);
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

/// The greatest difference between two vectors.
pub fn difference(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    a.iter().zip(b).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max)
}
