//! Rotary positions: a query and a key are turned by angles that grow with their places in the text,
//! so that their product tells how far apart they are.

use candle_core::{Device, Result, Tensor};

/// The cosines and sines of each position's angles. The first half of a head's vector is turned
/// with the second.
pub(crate) struct Rotary {
    /// Half the width of a head.
    half: usize,
    /// (positions, half), on the host.
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same on the device.
    tables: (Tensor, Tensor),
}

impl Rotary {
    /// For this many positions and heads of this width, which is even; `theta` is the base of the
    /// wavelengths.
    pub(crate) fn new(positions: usize, size: usize, theta: f64, device: &Device) -> Result<Self> {
        let half = size / 2;
        // In the reference's precision and order: at position 8,000 the rest of an angle differs else.
        let frequency = |i: usize| 1.0 / (theta as f32).powf(2.0 * i as f32 / size as f32);
        let frequencies: Vec<f32> = (0..half).map(frequency).collect();
        let angles = |f: fn(f32) -> f32| -> Vec<f32> {
            let of = |at: usize| frequencies.iter().map(move |frequency| f(at as f32 * frequency));
            (0..positions).flat_map(of).collect()
        };
        let (cos, sin) = (angles(f32::cos), angles(f32::sin));
        let up = |numbers: &[f32]| Tensor::from_slice(numbers, (positions, half), device);
        let tables = (up(&cos)?, up(&sin)?);
        Ok(Self { half, cos, sin, tables })
    }

    /// The cosines and sines of one position, which there must be.
    pub(crate) fn at(&self, position: usize) -> (&[f32], &[f32]) {
        let at = position * self.half..(position + 1) * self.half;
        (&self.cos[at.clone()], &self.sin[at])
    }

    /// Turns x, (rows, heads, length, size), whose rows begin at position 0.
    pub(crate) fn turn(&self, x: &Tensor) -> Result<Tensor> {
        let length = x.dim(2)?;
        let table = |table: &Tensor| table.narrow(0, 0, length);
        candle_nn::rotary_emb::rope(x, &table(&self.tables.0)?, &table(&self.tables.1)?)
    }
}
