//! Embeddings: a batch row equals the single row, padding changes nothing, shapes stay few.

use std::collections::BTreeSet;

use crate::common::{
    HEADS, LAYERS, SPECIAL, Tensors, TinyBert, WIDTH, WORDS, difference, in_time, text, write_json,
};
use onelane::{BatchConfig, BatchItem, BatchQueue, DeviceExecutor, Engine, ExecutorConfig};
use onelane_engines::{
    BucketConfig, DeviceName, EmbeddingConfig, EmbeddingModel, Padding, Shape, TokenisedText,
};
use serde_json::json;

const BOTH: [Padding; 2] = [Padding::Pad, Padding::Skip];

fn open(dir: &tempfile::TempDir, config: EmbeddingConfig) -> EmbeddingModel {
    EmbeddingModel::open(dir.path(), DeviceName::Cpu, config).unwrap()
}

fn with(padding: Padding) -> EmbeddingConfig {
    EmbeddingConfig::default().padding(padding)
}

/// Texts of every length that a bucket of the model can hold, in a mixed order.
fn texts_of_each_bucket(model: &EmbeddingModel) -> Vec<(usize, Vec<TokenisedText>)> {
    let mut shortest = 2;
    let buckets = model.tokeniser().buckets();
    buckets
        .lengths()
        .iter()
        .map(|&length| {
            let tokens: Vec<usize> =
                (shortest.max(2)..=length).step_by(3).chain([length]).collect();
            shortest = length + 1;
            let texts = tokens.iter().enumerate().map(|(i, tokens)| {
                let encoded = model.tokeniser().encode(&text(tokens - 2, i)).unwrap();
                assert_eq!((encoded.cost(), encoded.bucket()), (*tokens, length));
                encoded
            });
            (length, texts.collect())
        })
        .collect()
}

#[test]
fn a_batch_row_equals_the_single_row_in_every_bucket() {
    let dir = TinyBert::new().write();
    for padding in BOTH {
        for buckets in [BucketConfig::fine(), BucketConfig::coarse()] {
            let model = open(&dir, with(padding).buckets(buckets));
            let mut engine = model.load().unwrap();
            for (length, texts) in texts_of_each_bucket(&model) {
                let together = engine.infer(&texts).unwrap();
                assert_eq!(together.len(), texts.len());
                for (row, text) in together.iter().zip(&texts) {
                    let alone = engine.infer(std::slice::from_ref(text)).unwrap();
                    let off = difference(row, &alone[0]);
                    assert!(off < 1e-5, "{padding:?}, bucket {length}: {off}");
                    let norm = row.iter().map(|v| v * v).sum::<f32>().sqrt();
                    assert!((norm - 1.0).abs() < 1e-5, "length {norm}");
                }
            }
        }
    }
}

#[test]
fn padding_never_changes_a_row() {
    let dir = TinyBert::new().write();
    let skipping = open(&dir, with(Padding::Skip));
    let mut skipping_engine = skipping.load().unwrap();
    // One bucket of the full length: each row is padded as far as it can be.
    let far = BucketConfig::coarse().lengths([160]).rows([1, 32]);
    let padding = open(&dir, with(Padding::Pad).buckets(far));
    let mut padding_engine = padding.load().unwrap();
    for (i, words) in [0, 1, 5, 14, 15, 40, 100, 158].into_iter().enumerate() {
        let text = text(words, i);
        let embed = |model: &EmbeddingModel| model.tokeniser().encode(&text).unwrap();
        let bare = skipping_engine.infer(&[embed(&skipping)]).unwrap();
        let padded = padding_engine.infer(&[embed(&padding)]).unwrap();
        let off = difference(&bare[0], &padded[0]);
        assert!(off < 1e-5, "{words} words: {off}");
    }
}

#[test]
fn embeddings_are_those_of_a_plain_bert() {
    let tiny = TinyBert::new();
    let dir = tiny.write();
    for padding in BOTH {
        let model = open(&dir, with(padding));
        let mut engine = model.load().unwrap();
        for (i, words) in [0, 1, 6, 33, 150].into_iter().enumerate() {
            let encoded = model.tokeniser().encode(&text(words, i)).unwrap();
            let expected = plain_bert(&tiny.tensors, encoded.ids(), "mean", true);
            let off = difference(&engine.infer(&[encoded]).unwrap()[0], &expected);
            assert!(off < 1e-5, "{padding:?}, {words} words: {off}");
        }
    }
}

#[test]
fn a_text_is_pooled_and_scaled_as_the_directory_says() {
    let tiny = TinyBert::new();
    for mode in ["cls", "lasttoken", "mean"] {
        for normalise in [true, false] {
            let dir = tiny.write();
            let mut modules = vec![
                json!({"type": "x.Transformer", "path": ""}),
                json!({"type": "x.Pooling", "path": "1_Pooling"}),
            ];
            if normalise {
                modules.push(json!({"type": "x.Normalize", "path": "2_Normalize"}));
            }
            write_json(dir.path(), "modules.json", &json!(modules));
            write_json(dir.path(), "1_Pooling/config.json", &json!({"pooling_mode": mode}));
            for padding in BOTH {
                let model = open(&dir, with(padding));
                let mut engine = model.load().unwrap();
                let texts: Vec<_> = [0, 3, 7]
                    .map(|words| model.tokeniser().encode(&text(words, 1)).unwrap())
                    .into();
                for text in texts {
                    let expected = plain_bert(&tiny.tensors, text.ids(), mode, normalise);
                    let off = difference(&engine.infer(&[text]).unwrap()[0], &expected);
                    assert!(off < 1e-5, "{mode}, {normalise}, {padding:?}: {off}");
                }
            }
        }
    }
}

#[test]
fn shapes_stay_within_the_documented_bound() {
    let dir = TinyBert::new().write();
    for padding in BOTH {
        let config = BucketConfig::coarse().lengths([16, 32, 64, 128]).rows([1, 8, 32]);
        let model = open(&dir, with(padding).buckets(config));
        let bound = model.tokeniser().buckets().max_shapes();
        assert_eq!(bound, 15, "4 lengths and the limit, 3 row counts");
        let mut engine = model.load().unwrap();
        let mut expected = BTreeSet::new();
        for (length, texts) in texts_of_each_bucket(&model) {
            for size in 1..=40 {
                let batch: Vec<_> = texts.iter().cycle().take(size).cloned().collect();
                assert_eq!(engine.infer(&batch).unwrap().len(), size);
                let cost: usize = batch.iter().map(BatchItem::cost).sum();
                match padding {
                    Padding::Skip => assert_eq!(engine.padded_cost(&batch), cost),
                    _ => assert!(engine.padded_cost(&batch) >= size * length),
                }
            }
            expected.extend([1, 8, 32].map(|rows| Shape { rows, length }));
        }
        assert_eq!(model.shapes(), expected.into_iter().collect::<Vec<_>>());
    }
}

#[test]
fn eight_threads_through_the_queue_get_their_own_embeddings() {
    let dir = TinyBert::new().write();
    in_time(move || {
        let model = open(&dir, EmbeddingConfig::default());
        let mut alone = model.load().unwrap();
        let device = DeviceExecutor::new(ExecutorConfig::new("cpu")).unwrap();
        let factory = model.clone();
        let config = BatchConfig::default().max_batch_size(16);
        let queue = BatchQueue::new(&device, config, move || Ok(factory.load()?)).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let results: Vec<Vec<(TokenisedText, Vec<f32>)>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (model, queue, barrier) = (&model, &queue, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let submit = |i: usize| {
                            let text = text((i * 13 + thread * 7) % 150, i + thread);
                            let encoded = model.tokeniser().encode(&text).unwrap();
                            (encoded.clone(), queue.submit(encoded).unwrap())
                        };
                        let pending: Vec<_> = (0..40).map(submit).collect();
                        pending
                            .into_iter()
                            .map(|(text, handle)| (text, handle.wait().unwrap()))
                            .collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (text, embedding) in results.into_iter().flatten() {
            let expected = alone.infer(&[text]).unwrap();
            assert!(difference(&expected[0], &embedding) < 1e-5);
        }
        let stats = queue.stats();
        assert_eq!((stats.completed, stats.failed), (320, 0));
        assert_eq!(stats.padding_waste(), 0.0, "the cpu computes real tokens only");
    });
}

#[test]
fn computed_padding_is_reported_as_waste() {
    let dir = TinyBert::new().write();
    in_time(move || {
        let one = BucketConfig::coarse().lengths([64]).rows([1]);
        let model = open(&dir, with(Padding::Pad).buckets(one));
        let device = DeviceExecutor::new(ExecutorConfig::new("cpu")).unwrap();
        let factory = model.clone();
        let queue =
            BatchQueue::new(&device, BatchConfig::default(), move || Ok(factory.load()?)).unwrap();
        let encoded = model.tokeniser().encode(&text(14, 1)).unwrap();
        queue.submit(encoded).unwrap().wait().unwrap();
        // 16 real tokens in a row of 64.
        assert!((queue.stats().padding_waste() - 0.75).abs() < 1e-9);
    });
}

#[test]
fn an_activation_is_the_one_that_the_config_names() {
    let embed = |activation: &str| {
        let mut tiny = TinyBert::new();
        tiny.config["hidden_act"] = activation.into();
        let dir = tiny.write();
        let model = open(&dir, EmbeddingConfig::default());
        let encoded = model.tokeniser().encode(&text(20, 3)).unwrap();
        model.load().unwrap().infer(&[encoded]).unwrap().remove(0)
    };
    let (erf, tanh, relu) = (embed("gelu"), embed("gelu_new"), embed("relu"));
    // The two GELUs differ by up to 5e-4 in a unit.
    let off = difference(&erf, &tanh);
    assert!((1e-6..1e-2).contains(&off), "gelu and gelu_new differ by {off}");
    assert!(difference(&erf, &relu) > 1e-3);
}

#[test]
fn weights_in_half_precision_and_under_old_names_are_the_same_weights() {
    let mut tiny = TinyBert::new();
    // What bf16 can hold: the upper half of an f32.
    for (_, data) in tiny.tensors.values_mut() {
        data.iter_mut().for_each(|v| *v = f32::from_bits(v.to_bits() & 0xffff_0000));
    }
    let embed = |dir: &tempfile::TempDir| {
        let model = open(dir, EmbeddingConfig::default());
        let encoded = model.tokeniser().encode(&text(20, 3)).unwrap();
        model.load().unwrap().infer(&[encoded]).unwrap().remove(0)
    };
    let dir = tiny.write();
    let expected = embed(&dir);
    std::fs::write(dir.path().join("model.safetensors"), tiny.safetensors_bf16()).unwrap();
    assert_eq!(embed(&dir), expected, "bf16");

    // A checkpoint with a head on top, with the names that TensorFlow gave.
    let old = |name: String| {
        let name = name.replace("LayerNorm.weight", "LayerNorm.gamma");
        format!("bert.{}", name.replace("LayerNorm.bias", "LayerNorm.beta"))
    };
    let tensors = std::mem::take(&mut tiny.tensors);
    tiny.tensors = tensors.into_iter().map(|(name, tensor)| (old(name), tensor)).collect();
    assert_eq!(embed(&tiny.write()), expected, "old names");
}

/// What [`plain_tokens`] and a pooling give, of length 1 if asked.
fn plain_bert(tensors: &Tensors, ids: &[u32], pooling: &str, normalise: bool) -> Vec<f32> {
    let tokens = plain_tokens(tensors, ids);
    let pooled: Vec<f64> = match pooling {
        "cls" => tokens[0].clone(),
        "lasttoken" => tokens[tokens.len() - 1].clone(),
        _ => (0..WIDTH)
            .map(|c| tokens.iter().map(|row| row[c]).sum::<f64>() / tokens.len() as f64)
            .collect(),
    };
    let norm = if normalise { pooled.iter().map(|v| v * v).sum::<f64>().sqrt() } else { 1.0 };
    pooled.iter().map(|v| (v / norm) as f32).collect()
}

/// The last hidden states of a BERT, written for clarity in f64.
fn plain_tokens(tensors: &Tensors, ids: &[u32]) -> Vec<Vec<f64>> {
    let get = |name: &str| -> Vec<f64> { tensors[name].1.iter().map(|&v| v.into()).collect() };
    let linear = |x: &[Vec<f64>], at: &str| -> Vec<Vec<f64>> {
        let (weight, bias) = (get(&format!("{at}.weight")), get(&format!("{at}.bias")));
        let width = x[0].len();
        let one = |row: &Vec<f64>| {
            let dot =
                |o: usize| row.iter().zip(&weight[o * width..]).map(|(a, b)| a * b).sum::<f64>();
            bias.iter().enumerate().map(|(o, b)| dot(o) + b).collect()
        };
        x.iter().map(one).collect()
    };
    let norm = |x: Vec<Vec<f64>>, y: &[Vec<f64>], at: &str| -> Vec<Vec<f64>> {
        let (gamma, beta) = (get(&format!("{at}.weight")), get(&format!("{at}.bias")));
        let one = |(a, b): (Vec<f64>, &Vec<f64>)| {
            let sum: Vec<f64> = a.iter().zip(b).map(|(a, b)| a + b).collect();
            let n = sum.len() as f64;
            let mean = sum.iter().sum::<f64>() / n;
            let variance = sum.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / n;
            let scaled = sum.iter().map(|v| (v - mean) / (variance + 1e-12).sqrt());
            scaled.zip(gamma.iter().zip(&beta)).map(|(v, (g, b))| v * g + b).collect()
        };
        x.into_iter().zip(y).map(one).collect()
    };
    assert!(ids.iter().all(|&id| (id as usize) < SPECIAL.len() + WORDS));
    let row = |name: &str, i: usize| -> Vec<f64> {
        get(&format!("embeddings.{name}_embeddings.weight"))[i * WIDTH..][..WIDTH].to_vec()
    };
    let words: Vec<Vec<f64>> = ids.iter().map(|&id| row("word", id as usize)).collect();
    let kind = row("token_type", 0);
    let places: Vec<Vec<f64>> = (0..ids.len())
        .map(|i| row("position", i).iter().zip(&kind).map(|(p, k)| p + k).collect())
        .collect();
    let mut x = norm(words, &places, "embeddings.LayerNorm");
    for layer in 0..LAYERS {
        let at = format!("encoder.layer.{layer}");
        let part = |name: &str| linear(&x, &format!("{at}.attention.self.{name}"));
        let (q, k, v) = (part("query"), part("key"), part("value"));
        let size = WIDTH / HEADS;
        let mut attended = vec![vec![0.0; WIDTH]; ids.len()];
        for head in 0..HEADS {
            let columns = head * size..(head + 1) * size;
            for (q, out) in q.iter().zip(&mut attended) {
                let dot = |k: &Vec<f64>| {
                    let pairs = q[columns.clone()].iter().zip(&k[columns.clone()]);
                    (pairs.map(|(a, b)| a * b).sum::<f64>() / (size as f64).sqrt()).exp()
                };
                let weights: Vec<f64> = k.iter().map(dot).collect();
                let total: f64 = weights.iter().sum();
                for (weight, v) in weights.iter().zip(&v) {
                    for c in columns.clone() {
                        out[c] += weight / total * v[c];
                    }
                }
            }
        }
        let attended = linear(&attended, &format!("{at}.attention.output.dense"));
        let a = norm(attended, &x, &format!("{at}.attention.output.LayerNorm"));
        let mut up = linear(&a, &format!("{at}.intermediate.dense"));
        for v in up.iter_mut().flatten() {
            *v *= 0.5 * (1.0 + libm::erf(*v / 2_f64.sqrt()));
        }
        let down = linear(&up, &format!("{at}.output.dense"));
        x = norm(down, &a, &format!("{at}.output.LayerNorm"));
    }
    x
}
