//! H13: the graph cache grows with each new input shape; shape buckets bound it.

use super::data::{Seeded, WEIGHTS};
use super::workload::{Row, Workload};
use crate::device::{SimConfig, SimDevice};
use crate::error::SimResult;
use crate::profile::Profile;

/// To which length an input is padded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Buckets {
    /// None: every length is a shape of its own.
    None,
    /// The next multiple.
    Multiple(usize),
    /// The next power of two.
    PowerOfTwo,
}

impl Buckets {
    /// The length that an input of `length` is padded to.
    pub fn padded(self, length: usize) -> usize {
        match self {
            Buckets::None => length,
            Buckets::Multiple(of) => length.next_multiple_of(of.max(1)),
            Buckets::PowerOfTwo => length.next_power_of_two(),
        }
    }
}

/// What the graph cache grew to.
#[derive(Clone, Copy, Debug, PartialEq, serde::Serialize)]
#[non_exhaustive]
pub struct Growth {
    /// Different lengths that came in.
    pub lengths: usize,
    /// Different shapes that the device saw.
    pub shapes: usize,
    /// Graphs in the cache.
    pub graphs: usize,
    /// Bytes of the graph cache, by the profile's rule.
    pub bytes: u64,
    /// The same after `empty_cache`.
    pub bytes_after_empty_cache: u64,
    /// The share of computed tokens that are padding, 0 to 1.
    pub padding: f64,
}

/// Runs an encoder layer on one input of each length from 1 to `lengths`.
///
/// # Errors
/// When the simulated process fails.
pub fn growth(profile: Profile, lengths: usize, buckets: Buckets) -> SimResult<Growth> {
    // A narrow layer: the graphs are as many, and the arithmetic is not the point.
    const WIDTH: usize = 16;
    let device = SimDevice::new(SimConfig::new(profile));
    let workload = Workload::new(Row::TransformerBlock).width(WIDTH);
    device.run(|_| {
        let model = workload.build(&device, &workload.weights())?;
        let mut seeded = Seeded::new(WEIGHTS);
        let mut shapes = std::collections::BTreeSet::new();
        let (mut tokens, mut computed) = (0, 0);
        for length in 1..=lengths {
            let padded = buckets.padded(length);
            shapes.insert(padded);
            tokens += length;
            computed += padded;
            let x = device.upload(&seeded.normal(&[1, padded, WIDTH]))?;
            model.forward(&x)?.download()?;
        }
        let full = device.stats();
        device.empty_cache()?;
        Ok(Growth {
            lengths,
            shapes: shapes.len(),
            graphs: full.graphs,
            bytes: full.graph_bytes,
            bytes_after_empty_cache: device.stats().graph_bytes,
            padding: 1.0 - tokens as f64 / computed.max(1) as f64,
        })
    })?
}
