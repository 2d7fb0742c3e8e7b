//! The cases compute what they say: on the reference and on candle, with and without the copies
//! that must not change a number.

use std::sync::Arc;
use std::time::Duration;

use onelane_suite::race::{
    ATTENTION_CHUNKED, ATTENTION_PACKED, BLOCK_CHUNKED, BLOCK_PACKED, RACE_CONTIGUOUS,
    RACE_TOLERANCE, RACE_VIEWS, RACES,
};
use onelane_suite::{
    Caller, CandleDevice, Case, Device, HostTensor, Ops, Plan, Program, Reference, SuiteConfig,
    SuiteError, TEN, Tolerance, compare, run_direct, test_named,
};

fn forward<D: Device>(device: &D, case: &Case) -> HostTensor {
    let ops = device.attach(Caller::Golden).unwrap();
    let upload = |tensors: Vec<HostTensor>| -> Vec<_> {
        tensors.iter().map(|t| ops.upload(t).unwrap()).collect()
    };
    let weights = upload(case.weights());
    let inputs = upload(case.inputs(case.draw(1, 2)));
    let result = case.program.forward(&ops, &weights, &inputs).unwrap();
    ops.download(&result).unwrap()
}

fn assert_close(a: &HostTensor, b: &HostTensor, tolerance: f32) {
    let found = compare(a, b, Tolerance::both(tolerance));
    assert_eq!(found.fault, None);
}

#[test]
fn race_cases_agree_with_the_reference() {
    for case in RACES {
        let (device, reference) =
            (forward(&CandleDevice::cpu(), &case), forward(&Reference, &case));
        // The race's weights are not scaled down, so its softmax is nearly a maximum and magnifies
        // fp32's rounding.
        let tolerance = match case.program {
            Program::PackedProjection { .. } => 1e-2,
            _ => 1e-5,
        };
        assert_close(&device, &reference, tolerance);
    }
}

#[test]
fn copies_do_not_change_a_number() {
    for (a, b) in [
        (RACE_CONTIGUOUS, RACE_VIEWS),
        (ATTENTION_PACKED, ATTENTION_CHUNKED),
        (BLOCK_PACKED, BLOCK_CHUNKED),
    ] {
        assert_close(&forward(&Reference, &a), &forward(&Reference, &b), 0.0);
        let device = CandleDevice::cpu();
        assert_close(&forward(&device, &a), &forward(&device, &b), 1e-6);
    }
}

/// The unpacked projection is the projection: part p, feature e of a token is feature p·width + e
/// of its row. Attention with equal keys gives the mean value, which only the value part decides.
#[test]
fn the_packed_projection_puts_query_key_and_value_in_their_places() {
    let Program::PackedProjection { attention, .. } = RACE_CONTIGUOUS.program else {
        panic!("the race is a packed projection");
    };
    let width = attention.width;
    let ops = Reference.attach(Caller::Golden).unwrap();
    // Queries and keys zero; value feature e is the token's feature e.
    let mut weight = vec![0.0; 3 * width * width];
    for feature in 0..width {
        weight[(2 * width + feature) * width + feature] = 1.0;
    }
    let weights = [
        ops.upload(&HostTensor::new([3 * width, width], weight)),
        ops.upload(&HostTensor::new([3 * width], vec![0.0; 3 * width])),
    ];
    let weights = weights.map(Result::unwrap);
    let [x] = &RACE_CONTIGUOUS.inputs(RACE_CONTIGUOUS.draw(0, 0))[..] else {
        panic!("the race has one input");
    };
    let inputs = [ops.upload(x).unwrap()];
    let result = RACE_CONTIGUOUS.program.forward(&ops, &weights, &inputs).unwrap();
    let result = ops.download(&result).unwrap();
    let (batch, length, heads) = (attention.batch, attention.length, attention.heads);
    assert_eq!(result.shape(), [batch, heads, length, width / heads]);
    for item in 0..batch {
        for feature in [0, 63, 64, width - 1] {
            let mean = (0..length)
                .map(|token| x.data()[(item * length + token) * width + feature])
                .sum::<f32>()
                / length as f32;
            let head = feature / (width / heads);
            let at = ((item * heads + head) * length) * (width / heads) + feature % (width / heads);
            assert!((result.data()[at] - mean).abs() < 1e-5);
        }
    }
}

#[test]
fn stacked_programs_give_the_stack_of_results() {
    let device = CandleDevice::cpu();
    let ops = device.attach(Caller::Worker).unwrap();
    // The quickest of the ten and the cases of the race module.
    for case in [TEN[0], TEN[4], TEN[9]].iter().chain(&RACES) {
        let weights: Vec<_> = case.weights().iter().map(|t| ops.upload(t).unwrap()).collect();
        let inputs: Vec<_> = (0..3).map(|t| case.inputs(case.draw(t, 0))).collect();
        let alone = inputs.iter().map(|inputs| {
            let inputs: Vec<_> = inputs.iter().map(|t| ops.upload(t).unwrap()).collect();
            let result = case.program.forward(&ops, &weights, &inputs).unwrap();
            ops.download(&result).unwrap()
        });
        let alone: Vec<_> = alone.collect();
        assert!(case.program.stacks());
        let stacks: Vec<_> = (0..inputs[0].len())
            .map(|at| {
                let parts: Vec<_> = inputs.iter().map(|inputs| &inputs[at]).collect();
                ops.upload(&HostTensor::stacked(&parts)).unwrap()
            })
            .collect();
        let program = case.program.stacked(3);
        let result = program.forward(&ops, &weights, &stacks).unwrap();
        let result = ops.download(&result).unwrap().split(3).unwrap();
        for (stacked, alone) in result.iter().zip(&alone) {
            assert_close(stacked, alone, 1e-5);
        }
        assert_ne!(alone[0], alone[1], "{}: threads share one input", case.name);
    }
}

#[test]
fn race_cases_pass_on_candle_in_parallel() {
    for case in [RACE_CONTIGUOUS, ATTENTION_CHUNKED] {
        let plan = Plan {
            case,
            threads: 4,
            iterations: 3,
            tolerance: RACE_TOLERANCE,
            stall_after: Duration::from_secs(60),
        };
        let outcome = run_direct(&Arc::new(CandleDevice::cpu()), &plan, &mut || ());
        assert!(outcome.passed(), "{outcome:#?}");
        assert_eq!(outcome.passed_iterations, 3);
    }
}

#[test]
fn the_ten_have_their_shapes() {
    let shapes: Vec<_> = TEN
        .iter()
        .map(|case| {
            let inputs = case.inputs(case.draw(0, 0));
            let shapes = inputs.iter().chain(&case.weights()).map(|t| t.shape().to_vec()).collect();
            (case.name, shapes)
        })
        .collect();
    let expected: Vec<(&str, Vec<Vec<usize>>)> = vec![
        ("Linear", vec![vec![16, 512], vec![256, 512], vec![256]]),
        ("LinearLarge", vec![vec![64, 2048], vec![2048, 2048], vec![2048]]),
        ("Matmul", vec![vec![256, 512], vec![512, 256]]),
        ("MatmulLarge", vec![vec![1024, 1024], vec![1024, 1024]]),
        ("BMM", vec![vec![8, 64, 64], vec![8, 64, 64]]),
        ("LayerNorm", vec![vec![16, 512, 768], vec![768], vec![768]]),
        ("Softmax", vec![vec![4, 128, 32000]]),
        ("Conv2d", vec![vec![4, 3, 224, 224], vec![64, 3, 3, 3], vec![64]]),
        ("GELU", vec![vec![16, 512, 768]]),
        (
            "TransformerBlock",
            vec![
                vec![4, 128, 256],
                vec![768, 256],
                vec![768],
                vec![256, 256],
                vec![256],
                vec![1024, 256],
                vec![1024],
                vec![256, 1024],
                vec![256],
                vec![256],
                vec![256],
                vec![256],
                vec![256],
            ],
        ),
    ];
    assert_eq!(shapes, expected);
}

#[test]
fn threads_take_their_own_inputs() {
    let case = TEN[0];
    assert_eq!(case.draw(0, 0), case.draw(4, 9), "four rotations");
    let [first, second] = [0, 1].map(|thread| case.inputs(case.draw(thread, 0)));
    assert_eq!(second[0], first[0].clone().rotated(1));
    let race = RACE_CONTIGUOUS;
    assert_ne!(race.draw(0, 0), race.draw(0, 1));
    assert_eq!(race.draw(0, 1), race.draw(1000, 0), "1000 · iteration + thread");
}

#[test]
fn names_are_found_in_any_case() {
    assert_eq!(test_named("layernorm"), Some(TEN[5]));
    assert_eq!(test_named("Layer"), None);
}

#[test]
fn settings_that_cannot_be_used_are_refused() {
    let refused = |config: SuiteConfig, name| {
        let SuiteError::Zero(found) = config.validate().unwrap_err() else {
            panic!("not a zero");
        };
        assert_eq!(found, name);
    };
    refused(SuiteConfig::default().threads([8, 0]), "threads");
    refused(SuiteConfig::default().threads([]), "threads");
    refused(SuiteConfig::default().workers(0), "workers");
    refused(SuiteConfig::default().iterations(0), "iterations");
    refused(SuiteConfig::default().tests([]), "tests");
    assert!(SuiteConfig::default().validate().is_ok());
}
