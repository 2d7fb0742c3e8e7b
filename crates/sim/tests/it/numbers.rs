//! The operations' numbers against plain sums in f64, on dense tensors and on views.

use crate::random::random;
use crate::within_time::within_time;
use onelane_sim::models::{MultiheadAttention, Packing};
use onelane_sim::{HostTensor, Profile, SimConfig, SimDevice, SimError, Tensor};

fn device() -> SimDevice {
    SimDevice::new(SimConfig::new(Profile::fork_2_9_1()))
}

fn assert_close(result: &Tensor, expected: impl Fn(usize) -> f64) {
    let host = result.download().unwrap();
    for (at, value) in host.data().iter().enumerate() {
        let expected = expected(at);
        let tolerance = 1e-5 + 1e-5 * expected.abs();
        assert!(
            (f64::from(*value) - expected).abs() <= tolerance,
            "element {at}: {value}, should be {expected}"
        );
    }
}

/// The sum of products over an inner dimension.
fn dot(inner: usize, a: impl Fn(usize) -> f32, b: impl Fn(usize) -> f32) -> f64 {
    (0..inner).map(|i| f64::from(a(i)) * f64::from(b(i))).sum()
}

#[test]
fn products_are_sums_of_products() {
    within_time(|| {
        let device = device();
        let (a, b, c) = (random(&[5, 7], 1), random(&[7, 3], 2), random(&[3], 3));
        let upload = |host: &HostTensor| device.upload(host).unwrap();
        let product = |at: usize| {
            let (row, column) = (at / 3, at % 3);
            dot(7, |i| a.data()[row * 7 + i], |i| b.data()[i * 3 + column])
        };
        let (x, y) = (upload(&a), upload(&b));
        assert_close(&x.matmul(&y).unwrap(), product);
        // The weight of a linear layer is transposed; a view of `b` is.
        let linear = x.linear(&y.transpose(0, 1).unwrap(), &upload(&c)).unwrap();
        assert_close(&linear, |at| product(at) + f64::from(c.data()[at % 3]));
        let (p, q) = (random(&[2, 4, 3], 4), random(&[2, 3, 5], 5));
        let bmm = upload(&p).bmm(&upload(&q)).unwrap();
        assert_close(&bmm, |at| {
            let (batch, row, column) = (at / 20, at / 5 % 4, at % 5);
            let left = |i| p.data()[batch * 12 + row * 3 + i];
            dot(3, left, |i| q.data()[batch * 15 + i * 5 + column])
        });
    });
}

#[test]
fn norms_softmax_and_activations_follow_their_definitions() {
    within_time(|| {
        let device = device();
        let upload = |host: &HostTensor| device.upload(host).unwrap();
        let (host, weight, bias) = (random(&[3, 8], 1), random(&[8], 2), random(&[8], 3));
        let x = upload(&host);
        let row = |at: usize| host.data()[at / 8 * 8..][..8].iter().map(|x| f64::from(*x));
        let normed = x.layer_norm(&upload(&weight), &upload(&bias)).unwrap();
        assert_close(&normed, |at| {
            let mean = row(at).sum::<f64>() / 8.0;
            let variance = row(at).map(|x| (x - mean).powi(2)).sum::<f64>() / 8.0;
            let scaled = (f64::from(host.data()[at]) - mean) / (variance + 1e-5).sqrt();
            scaled * f64::from(weight.data()[at % 8]) + f64::from(bias.data()[at % 8])
        });
        assert_close(&x.softmax().unwrap(), |at| {
            f64::from(host.data()[at]).exp() / row(at).map(f64::exp).sum::<f64>()
        });
        assert_close(&x.relu().unwrap(), |at| f64::from(host.data()[at].max(0.0)));
        assert_close(&x.gelu().unwrap(), |at| {
            let x = f64::from(host.data()[at]);
            0.5 * x * (1.0 + libm_erf(x / 2f64.sqrt()))
        });
        assert_close(&x.add(&x).unwrap(), |at| 2.0 * f64::from(host.data()[at]));
        assert_close(&x.scale(-3.0).unwrap(), |at| -3.0 * f64::from(host.data()[at]));
        assert_close(&device.arange(5).unwrap(), |at| at as f64);
    });
}

/// The error function by its series, which converges fast for the small arguments of these tests.
fn libm_erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..60 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn convolution_sums_over_the_window_with_zeros_around() {
    within_time(|| {
        let device = device();
        let (x, w, b) = (random(&[2, 3, 6, 5], 1), random(&[4, 3, 3, 3], 2), random(&[4], 3));
        let upload = |host: &HostTensor| device.upload(host).unwrap();
        for padding in [0, 1] {
            let (height, width) = (4 + 2 * padding, 3 + 2 * padding);
            let result = upload(&x).conv2d(&upload(&w), &upload(&b), padding).unwrap();
            assert_eq!(result.shape(), [2, 4, height, width]);
            assert_close(&result, |at| {
                let (column, row) = (at % width, at / width % height);
                let (filter, image) = (at / (width * height) % 4, at / (width * height * 4));
                let mut sum = f64::from(b.data()[filter]);
                for place in 0..27 {
                    let (dx, dy, channel) = (place % 3, place / 3 % 3, place / 9);
                    let at_row = (row + dy).checked_sub(padding).filter(|r| *r < 6);
                    let at_column = (column + dx).checked_sub(padding).filter(|c| *c < 5);
                    if let (Some(r), Some(c)) = (at_row, at_column) {
                        let input = x.data()[((image * 3 + channel) * 6 + r) * 5 + c];
                        sum += f64::from(input) * f64::from(w.data()[filter * 27 + place]);
                    }
                }
                sum
            });
        }
    });
}

#[test]
fn views_share_memory_and_give_the_numbers_of_a_copy() {
    within_time(|| {
        let device = device();
        let host = random(&[4, 6], 1);
        let x = device.upload(&host).unwrap();
        let columns = x.transpose(0, 1).unwrap().narrow(0, 2, 3).unwrap();
        assert_eq!(columns.block(), x.block());
        assert!(!columns.is_contiguous());
        let expected = |at: usize| f64::from(host.data()[at % 4 * 6 + at / 4 + 2]);
        assert_close(&columns, expected);
        let copy = columns.contiguous().unwrap();
        assert_ne!(copy.block(), x.block());
        assert_close(&copy, expected);
        // A reshape that strides do not allow is a copy; a view of it is an error that says so.
        assert_close(&columns.reshape(&[12]).unwrap(), expected);
        let error = columns.view(&[12]).unwrap_err();
        assert!(matches!(error, SimError::Shape { operation: "view", .. }), "{error}");
        assert!(error.to_string().contains("[3, 4]"), "{error}");
        assert!(x.add(&columns).is_err() && x.matmul(&x).is_err());
        assert!(x.narrow(1, 4, 3).is_err() && x.transpose(0, 2).is_err());
    });
}

/// Attention head by head in f64: both packings must give it.
#[test]
fn attention_is_the_same_with_and_without_patch_035() {
    within_time(|| {
        const SIZES: [usize; 4] = [2, 5, 8, 2];
        let [batch, length, width, heads] = SIZES;
        let device = device();
        let upload = |host: &HostTensor| device.upload(host).unwrap();
        let host = random(&[batch, length, width], 1);
        let (w, b) = (random(&[3 * width, width], 2), random(&[3 * width], 3));
        let (ow, ob) = (random(&[width, width], 4), random(&[width], 5));
        let projected = |at: usize, token: usize, feature: usize| {
            let x = |i| host.data()[(at * length + token) * width + i];
            dot(width, x, |i| w.data()[feature * width + i]) + f64::from(b.data()[feature])
        };
        let head_width = width / heads;
        let attended = |at: usize, token: usize, feature: usize| {
            let head = feature / head_width;
            let score = |other: usize| -> f64 {
                let product = |i| {
                    let place = head * head_width + i;
                    projected(at, token, place) * projected(at, other, width + place)
                };
                (0..head_width).map(product).sum::<f64>() / (head_width as f64).sqrt()
            };
            let weights: Vec<f64> = (0..length).map(|other| score(other).exp()).collect();
            let weighted = (0..length).map(|o| weights[o] * projected(at, o, 2 * width + feature));
            weighted.sum::<f64>() / weights.iter().sum::<f64>()
        };
        for packing in [Packing::Packed, Packing::Chunked] {
            let attention = MultiheadAttention {
                projection: [upload(&w), upload(&b)],
                output: [upload(&ow), upload(&ob)],
                heads,
                packing,
            };
            let result = attention.forward(&upload(&host)).unwrap();
            assert_eq!(result.shape(), [batch, length, width]);
            assert_close(&result, |at| {
                let (feature, token) = (at % width, at / width % length);
                let row = at / (width * length);
                let product =
                    |i| attended(row, token, i) * f64::from(ow.data()[feature * width + i]);
                (0..width).map(product).sum::<f64>() + f64::from(ob.data()[feature])
            });
        }
    });
}
