//! Elementary functions without branches or tables, so that loops over them become vector code.

/// Width of the accumulators that the compiler turns into vector registers.
pub(super) const LANES: usize = 16;

/// The exact GELU, `v / 2 * (1 + erf(v / sqrt 2))`.
#[inline(always)]
pub(super) fn gelu_erf(v: f32) -> f32 {
    0.5 * v * (1.0 + erf(v * std::f32::consts::FRAC_1_SQRT_2))
}

/// The tanh approximation of GELU, which is another function (`gelu_new`).
#[inline(always)]
pub(super) fn gelu_tanh(v: f32) -> f32 {
    const SQRT_2_OVER_PI: f32 = 0.797_884_6;
    let y = SQRT_2_OVER_PI * v * (1.0 + 0.044_715 * v * v);
    // tanh |y| = (1 - e^(-2|y|)) / (1 + e^(-2|y|)): the exponential cannot overflow.
    let e = exp(-2.0 * y.abs());
    let tanh = ((1.0 - e) / (1.0 + e)).copysign(y);
    0.5 * v * (1.0 + tanh)
}

/// The error function, within 5e-7 everywhere.
///
/// A rational minimax approximation on [-4, 4], with the coefficients that Eigen and XLA use;
/// beyond that erf is 1 in f32.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let x = x.clamp(-4.0, 4.0);
    let s = x * x;
    let mut p = -2.726_142_3e-10_f32;
    p = p * s + 2.770_681_4e-8;
    p = p * s - 2.101_024e-6;
    p = p * s - 5.692_506_4e-5;
    p = p * s - 7.349_906_3e-4;
    p = p * s - 2.954_6e-3;
    p = p * s - 1.609_603_4e-2;
    let mut q = -1.456_607_2e-5_f32;
    q = q * s - 2.133_740_6e-4;
    q = q * s - 1.682_827e-3;
    q = q * s - 7.373_329e-3;
    q = q * s - 1.426_473_9e-2;
    x * p / q
}

/// `e^x` for `x <= 0`, within a few units in the last place; below -87 it stays at `e^-87`.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer, and leaves that integer in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let x = x.max(-87.0);
    let shifted = x * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    // ln 2 in two parts, so that the product with n is exact.
    let r = x - n * 0.693_359_4 + n * 2.121_944_4e-4;
    let mut p = 1.987_569_2e-4_f32;
    p = p * r + 1.398_2e-3;
    p = p * r + 8.333_452e-3;
    p = p * r + 4.166_579_6e-2;
    p = p * r + 1.666_666_5e-1;
    p = p * r + 0.5;
    p = p * r * r + r + 1.0;
    p * f32::from_bits((shifted.to_bits() << 23).wrapping_add(127 << 23))
}

/// The sum of `f` over a slice: independent lanes, then one fixed order.
#[inline(always)]
pub(super) fn sum(xs: &[f32], f: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0_f32; LANES];
    let chunks = xs.chunks_exact(LANES);
    let tail: f32 = chunks.remainder().iter().map(|&v| f(v)).sum();
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane += f(*v);
        }
    }
    lanes.iter().sum::<f32>() + tail
}

/// The greatest element; negative infinity for none.
#[inline(always)]
pub(super) fn max(xs: &[f32]) -> f32 {
    // Not f32::max: its treatment of NaN costs two more instructions for each lane.
    let greater = |a: f32, b: f32| if b > a { b } else { a };
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let chunks = xs.chunks_exact(LANES);
    let tail = chunks.remainder().iter().copied().fold(f32::NEG_INFINITY, greater);
    for chunk in chunks {
        for (lane, v) in lanes.iter_mut().zip(chunk) {
            *lane = greater(*lane, *v);
        }
    }
    lanes.into_iter().fold(tail, greater)
}

/// The softmax of a row, in place.
#[inline(always)]
pub(super) fn softmax(row: &mut [f32]) {
    let max = max(row);
    for v in row.iter_mut() {
        *v = exp(*v - max);
    }
    let scale = 1.0 / sum(row, |v| v);
    for v in row.iter_mut() {
        *v *= scale;
    }
}

/// Scales a vector to length 1; a zero vector stays zero.
#[inline(always)]
pub(super) fn normalise(row: &mut [f32]) {
    let scale = 1.0 / sum(row, |v| v * v).sqrt().max(1e-12);
    for v in row.iter_mut() {
        *v *= scale;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn grid(from: f32, to: f32) -> impl Iterator<Item = f32> {
        (0..=200_000).map(move |i| from + (to - from) * i as f32 / 200_000.0)
    }

    #[test]
    fn erf_is_within_its_bound() {
        for x in grid(-6.0, 6.0) {
            let exact = libm::erf(f64::from(x));
            assert!((f64::from(erf(x)) - exact).abs() < 5e-7, "erf({x}) = {}", erf(x));
        }
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn exp_is_within_its_bound() {
        for x in grid(-87.0, 0.0) {
            let exact = f64::from(x).exp();
            let relative = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(relative < 4e-7, "exp({x}) = {}, off by {relative}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert!(exp(f32::NEG_INFINITY) < 2e-38);
    }

    #[test]
    fn the_two_gelus_are_the_functions_that_they_name() {
        for x in grid(-10.0, 10.0) {
            let v = f64::from(x);
            let by_erf = 0.5 * v * (1.0 + libm::erf(v / 2_f64.sqrt()));
            assert!((f64::from(gelu_erf(x)) - by_erf).abs() < 2e-6, "gelu_erf({x})");
            let inner = (2.0 / std::f64::consts::PI).sqrt() * (v + 0.044_715 * v.powi(3));
            let by_tanh = 0.5 * v * (1.0 + inner.tanh());
            assert!((f64::from(gelu_tanh(x)) - by_tanh).abs() < 2e-6, "gelu_tanh({x})");
        }
    }

    #[test]
    fn reductions_cover_the_tail() {
        for n in [0, 1, 15, 16, 17, 31, 33] {
            let xs: Vec<f32> = (0..n).map(|i| i as f32 - 100.0).collect();
            assert_eq!(sum(&xs, |v| v), xs.iter().sum::<f32>());
            assert_eq!(max(&xs), xs.last().copied().unwrap_or(f32::NEG_INFINITY));
        }
        let mut row: Vec<f32> = (0..19).map(|i| i as f32 * 3.0).collect();
        softmax(&mut row);
        assert!((row.iter().sum::<f32>() - 1.0).abs() < 1e-6);
        assert!(row.is_sorted());
    }
}
