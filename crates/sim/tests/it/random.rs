//! Host tensors of numbers from -1 to 1; equal shapes and seeds give equal tensors.

use onelane_sim::HostTensor;

pub fn random(shape: &[usize], seed: u32) -> HostTensor {
    let mut state = seed.wrapping_mul(2_654_435_761).wrapping_add(12_345);
    let elements = shape.iter().product();
    let next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 8) as f32 / (1 << 23) as f32 - 1.0
    };
    HostTensor::new(shape, std::iter::repeat_with(next).take(elements).collect())
}
