//! The MLP: a batch row equals the single row, weights are those of the seed, rows are checked.

use crate::common::{difference, in_time};
use onelane::{BatchConfig, BatchQueue, DeviceExecutor, Engine, ExecutorConfig};
use onelane_engines::{DeviceName, MLP_WIDTH, MlpEngine, MlpRow, MlpRowError};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

fn row(seed: usize) -> MlpRow {
    let number = |i: usize| ((i * 37 + seed * 101) as f32 * 0.137).sin();
    MlpRow::new((0..MLP_WIDTH).map(number).collect()).unwrap()
}

#[test]
fn a_batch_row_equals_the_single_row() {
    let mut engine = MlpEngine::load(DeviceName::Cpu, 42).unwrap();
    for size in [1, 2, 3, 8, 31, 64, 200] {
        let batch: Vec<MlpRow> = (0..size).map(row).collect();
        let together = engine.infer(&batch).unwrap();
        assert_eq!(together.len(), size);
        for (row, together) in batch.iter().zip(&together) {
            let alone = engine.infer(std::slice::from_ref(row)).unwrap();
            assert_eq!(together.len(), MLP_WIDTH);
            assert!(difference(together, &alone[0]) < 1e-5, "batch of {size}");
        }
    }
    assert!(engine.infer(&[]).unwrap().is_empty());
}

#[test]
fn the_function_is_the_one_of_the_seed() {
    let infer = |seed| MlpEngine::load(DeviceName::Cpu, seed).unwrap().infer(&[row(1)]).unwrap();
    let (a, b, other) = (infer(42), infer(42), infer(43));
    assert_eq!(a, b);
    assert!(difference(&a[0], &other[0]) > 1e-2, "another seed, another model");
    assert!(a[0].iter().any(|v| *v > 0.0) && a[0].iter().any(|v| *v < 0.0));
    let plain = plain_mlp(42, row(1).values());
    assert!(difference(&a[0], &plain) < 1e-5);
    // Other platforms and versions must make the same weights.
    assert!(difference(&a[0][..4], &PINNED) < 1e-5, "{:?}", &a[0][..4]);
}

/// The first outputs of seed 42 for `row(1)`.
const PINNED: [f32; 4] = [-0.100_203_48, 0.157_163_46, 0.069_966_56, 0.002_855_582];

/// The documented model, written for clarity in f64: for each layer the weight (in, out), then the
/// bias, from one stream of numbers in -1..1, scaled by 1 / sqrt(in).
fn plain_mlp(seed: u64, row: &[f32]) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let mut x: Vec<f64> = row.iter().map(|&v| v.into()).collect();
    for (layer, width) in [1024, 1024, 512].into_iter().enumerate() {
        let bound = 1.0 / (x.len() as f64).sqrt();
        let mut number = || bound * (f64::from(rng.next_u32() >> 8) / f64::from(1 << 23) - 1.0);
        let mut y = vec![0.0; width];
        for x in &x {
            y.iter_mut().for_each(|y| *y += x * number());
        }
        y.iter_mut().for_each(|y| *y += number());
        if layer < 2 {
            y.iter_mut().for_each(|y| *y = y.max(0.0));
        }
        x = y;
    }
    x.into_iter().map(|v| v as f32).collect()
}

#[test]
fn a_row_of_another_length_is_refused_before_submission() {
    for length in [0, 511, 513] {
        let error = MlpRow::new(vec![0.0; length]).unwrap_err();
        assert_eq!(error, MlpRowError(length));
        assert!(error.to_string().contains("512"));
    }
}

#[test]
fn eight_threads_through_the_queue_get_their_own_rows() {
    in_time(|| {
        let device = DeviceExecutor::new(ExecutorConfig::new("cpu")).unwrap();
        let config = BatchConfig::default().max_batch_size(32);
        let factory = || Ok(MlpEngine::load(DeviceName::Cpu, 42)?);
        let queue = BatchQueue::new(&device, config, factory).unwrap();
        let mut alone = MlpEngine::load(DeviceName::Cpu, 42).unwrap();
        let barrier = std::sync::Barrier::new(8);
        let results: Vec<Vec<Vec<f32>>> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8)
                .map(|thread| {
                    let (queue, barrier) = (&queue, &barrier);
                    scope.spawn(move || {
                        barrier.wait();
                        (0..25)
                            .map(|i| queue.submit(row(thread * 25 + i)).unwrap().wait().unwrap())
                            .collect()
                    })
                })
                .collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        for (i, result) in results.iter().flatten().enumerate() {
            assert!(difference(result, &alone.infer(&[row(i)]).unwrap()[0]) < 1e-5);
        }
    });
}
