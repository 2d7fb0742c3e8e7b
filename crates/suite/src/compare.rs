//! Comparing results: against a golden result within a tolerance, and between threads.
//!
//! Invariant: a value that is not finite, and a result of another shape, never pass.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::case::Draw;
use crate::host::HostTensor;

/// How far a result may lie from the golden one: `|result - golden| <= absolute + relative ·
/// |golden|`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Tolerance {
    /// The part that grows with the golden value.
    pub relative: f32,
    /// The part that does not.
    pub absolute: f32,
}

impl Tolerance {
    /// Both parts alike.
    pub const fn both(tolerance: f32) -> Self {
        Self { relative: tolerance, absolute: tolerance }
    }
}

/// What a comparison found.
#[derive(Clone, Debug, PartialEq)]
pub struct Comparison {
    /// The greatest absolute difference; `None` when a difference is not finite, or when the shapes
    /// differ.
    pub max_diff: Option<f64>,
    /// Why the result does not pass; `None` when it passes.
    pub fault: Option<String>,
}

/// Elements that are compared at once; large enough to vectorise, small enough to stay in cache.
const CHUNK: usize = 4096;

/// Compares a result with the golden one.
pub fn compare(result: &HostTensor, golden: &HostTensor, tolerance: Tolerance) -> Comparison {
    if result.shape() != golden.shape() {
        return Comparison {
            max_diff: None,
            fault: Some(format!(
                "the shape is {:?}, but should be {:?}",
                result.shape(),
                golden.shape()
            )),
        };
    }
    let mut max_diff = 0f32;
    let mut not_finite = 0usize;
    let mut outside = 0usize;
    let mut first_outside = None;
    let chunks = result.data().chunks(CHUNK).zip(golden.data().chunks(CHUNK));
    for (chunk, (result, golden)) in chunks.enumerate() {
        if same_bits(result, golden) && all_finite(golden) {
            continue;
        }
        for (at, (&result, &golden)) in result.iter().zip(golden).enumerate() {
            let diff = (result - golden).abs();
            // None of the programs gives infinities, so they are faults even when both have them.
            let inside = diff <= tolerance.absolute + tolerance.relative * golden.abs();
            if !inside || !golden.is_finite() {
                outside += 1;
                first_outside.get_or_insert((chunk * CHUNK + at, result, golden));
            }
            if !diff.is_finite() {
                not_finite += 1;
            } else {
                max_diff = max_diff.max(diff);
            }
        }
    }
    Comparison {
        max_diff: (not_finite == 0).then_some(f64::from(max_diff)),
        fault: first_outside.map(|(at, is, should)| {
            format!(
                "{outside} of {} elements are outside the tolerance; element {at} is {is}, should be \
                 {should}",
                result.data().len()
            )
        }),
    }
}

fn all_finite(x: &[f32]) -> bool {
    x.iter().fold(true, |all, x| all & x.is_finite())
}

fn same_bits(a: &[f32], b: &[f32]) -> bool {
    let differing = a.iter().zip(b).fold(0u32, |bits, (a, b)| bits | (a.to_bits() ^ b.to_bits()));
    differing == 0
}

/// Collects how far results for the same input lie from each other, over threads and iterations.
#[derive(Debug, Default)]
pub(crate) struct Spread(Mutex<HashMap<Draw, Range>>);

/// The least and the greatest value of each element so far.
#[derive(Debug, Default)]
struct Range {
    /// A result equalled the golden one; it need not be kept, the golden one stands for it.
    golden_seen: bool,
    bounds: Option<(Vec<f32>, Vec<f32>)>,
}

impl Spread {
    /// Takes in a result of `draw`, whose golden result is `golden`.
    pub(crate) fn add(&self, draw: Draw, result: &HostTensor, golden: &HostTensor) {
        if result.shape() != golden.shape() {
            return;
        }
        // The scan runs outside the lock: nearly all results equal the golden one bit for bit.
        let is_golden = same_bits(result.data(), golden.data());
        let mut ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let range = ranges.entry(draw).or_default();
        if is_golden {
            range.golden_seen = true;
            if range.bounds.is_none() {
                return;
            }
        }
        let golden_seen = range.golden_seen;
        let (low, high) = range.bounds.get_or_insert_with(|| {
            let first = if golden_seen { golden } else { result };
            (first.data().to_vec(), first.data().to_vec())
        });
        for ((low, high), &x) in low.iter_mut().zip(high).zip(result.data()) {
            // `min` and `max` pass over what is not a number; the comparison reports that.
            *low = low.min(x);
            *high = high.max(x);
        }
    }

    /// The greatest difference between two results for the same input.
    pub(crate) fn greatest(&self) -> f64 {
        let ranges = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let differences = ranges
            .values()
            .filter_map(|range| range.bounds.as_ref())
            .flat_map(|(low, high)| low.iter().zip(high).map(|(l, h)| f64::from(h - l)));
        differences.fold(0.0, f64::max)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(data: &[f32]) -> HostTensor {
        HostTensor::new([data.len()], data.to_vec())
    }

    const TOLERANCE: Tolerance = Tolerance::both(1e-3);

    #[test]
    fn tolerance_has_an_absolute_and_a_relative_part() {
        let close = compare(&row(&[1000.9, 0.0009]), &row(&[1000.0, 0.0]), TOLERANCE);
        assert_eq!(close.fault, None);
        assert!((close.max_diff.unwrap() - 0.9).abs() < 1e-3);
        let far = compare(&row(&[1000.0, 0.0011]), &row(&[1000.0, 0.0]), TOLERANCE);
        assert!(far.fault.unwrap().contains("element 1"));
    }

    #[test]
    fn what_is_not_finite_never_passes() {
        for (result, golden) in [
            (f32::NAN, 1.0),
            (1.0, f32::NAN),
            (f32::NAN, f32::NAN),
            (f32::INFINITY, f32::INFINITY),
            (f32::INFINITY, 1.0),
        ] {
            // One equal element beside it, and a chunk of equal ones before it.
            let mut results = vec![2.0; CHUNK + 1];
            let mut goldens = results.clone();
            results.push(result);
            goldens.push(golden);
            let found = compare(&row(&results), &row(&goldens), TOLERANCE);
            assert!(found.fault.is_some(), "{result} against {golden}");
            assert_eq!(found.max_diff, None);
        }
    }

    #[test]
    fn other_shapes_never_pass() {
        let found = compare(&row(&[1.0]), &row(&[1.0, 1.0]), TOLERANCE);
        assert!(found.fault.unwrap().contains("shape"));
        assert_eq!(found.max_diff, None);
    }

    #[test]
    fn spread_is_between_results_not_to_golden() {
        let case = crate::TEN[0];
        let (a, b) = (case.draw(0, 0), case.draw(1, 0));
        let golden = row(&[0.0, 0.0]);
        let spread = Spread::default();
        spread.add(a, &row(&[1.0, 1.0]), &golden);
        assert_eq!(spread.greatest(), 0.0, "one result differs from nobody");
        spread.add(b, &row(&[5.0, 5.0]), &golden);
        assert_eq!(spread.greatest(), 0.0, "another input is another matter");
        spread.add(a, &row(&[1.0, 3.0]), &golden);
        assert_eq!(spread.greatest(), 2.0);
        spread.add(a, &golden, &golden);
        assert_eq!(spread.greatest(), 3.0);
        spread.add(b, &golden, &golden);
        assert_eq!(spread.greatest(), 5.0);
    }

    #[test]
    fn spread_remembers_that_golden_was_seen() {
        let draw = crate::TEN[0].draw(0, 0);
        let golden = row(&[0.0]);
        let spread = Spread::default();
        spread.add(draw, &golden, &golden);
        spread.add(draw, &row(&[0.5]), &golden);
        assert_eq!(spread.greatest(), 0.5);
    }
}
