//! The check at the start: a text must have the same answer alone as in a batch.
//!
//! Texts of growing length are tried, grouped by the engine's own batch keys, so that every length
//! bucket that they reach is seen. A runtime that computes a batch wrongly is found before it has
//! answered anybody.

use onelane::{BatchItem, Engine};

use crate::group::{self, GroupError, Weighed};
use crate::inputs::Input;
use crate::text_lane::TextLane;

/// The greatest difference between two answers to one text.
const TOLERANCE: f32 = 1e-4;

/// Texts of a bucket that run together.
const TOGETHER: usize = 3;

/// A text has at most this many words.
const MOST_WORDS: usize = 1 << 10;

const WORDS: [&str; 8] = ["the", "quick", "queue", "runs", "one", "batch", "at", "once"];

/// `words` words, others for each seed.
fn text(words: usize, seed: usize) -> String {
    let word = |i: usize| WORDS[(i * i + i * seed + 3 * seed) % WORDS.len()];
    (0..words).map(word).collect::<Vec<_>>().join(" ")
}

/// Runs texts of each bucket alone and together.
///
/// # Errors
/// What differs, or what failed.
pub(crate) async fn run<E: Engine>(lane: &TextLane<E>) -> Result<(), String> {
    for bucket in buckets(lane)? {
        let mut alone = Vec::new();
        for input in &bucket {
            alone.extend(answers(lane, std::slice::from_ref(input)).await?);
        }
        let together = answers(lane, &bucket).await?;
        for (index, (alone, together)) in alone.iter().zip(&together).enumerate() {
            check(&bucket[index], alone, together)?;
        }
    }
    Ok(())
}

fn check(input: &Input, alone: &[f32], together: &[f32]) -> Result<(), String> {
    let size = input.size();
    if alone.len() != together.len() {
        return Err(format!(
            "a text of {size} bytes has {} numbers alone and {} in a batch",
            alone.len(),
            together.len()
        ));
    }
    let difference = alone.iter().zip(together).map(|(a, b)| (a - b).abs());
    // A NaN is not within the tolerance either.
    match difference.clone().find(|d| d.is_nan() || *d > TOLERANCE) {
        Some(_) => Err(format!(
            "a text of {size} bytes has another answer in a batch than alone: they differ by {}, \
             more than {TOLERANCE}; the device or its runtime computes batches wrongly",
            difference.fold(0.0, f32::max)
        )),
        None => Ok(()),
    }
}

/// Some texts for each batch key that texts of growing length reach.
fn buckets<E: Engine>(lane: &TextLane<E>) -> Result<Vec<Vec<Input>>, String> {
    let mut buckets: Vec<(<E::Item as BatchItem>::Key, Vec<Input>)> = Vec::new();
    let mut words = 2;
    'longer: while words <= MOST_WORDS {
        for seed in 0..TOGETHER {
            let input = (lane.probe)(text(words - seed % 2, seed));
            let tokenised = (lane.encode)(&input).map_err(|error| error.to_string())?;
            if tokenised.truncated {
                break 'longer;
            }
            let key = tokenised.item.key();
            match buckets.iter_mut().find(|(other, _)| *other == key) {
                Some((_, inputs)) if inputs.len() < TOGETHER => inputs.push(input),
                Some(_) => {}
                None => buckets.push((key, vec![input])),
            }
        }
        words += words / 2;
    }
    Ok(buckets.into_iter().map(|(_, inputs)| inputs).collect())
}

async fn answers<E: Engine>(lane: &TextLane<E>, inputs: &[Input]) -> Result<Vec<Vec<f32>>, String> {
    let mut items = Vec::new();
    for input in inputs {
        let tokenised = (lane.encode)(input).map_err(|error| error.to_string())?;
        items.push(Weighed::new(tokenised.item, |request| request));
    }
    match group::run(&lane.lane.queue, items).await {
        Ok(outputs) => Ok(outputs.into_iter().map(|answer| (lane.vector)(answer.output)).collect()),
        Err(GroupError::Refused(refusal)) => Err(refusal.to_string()),
        Err(GroupError::Failed(_, error)) => Err(error.to_string()),
    }
}
