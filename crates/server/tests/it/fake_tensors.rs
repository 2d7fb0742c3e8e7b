//! Engines of tensors that are told what to do by the texts beside the numbers.

use std::sync::{Arc, Mutex};

use onelane::testing::Gate;
use onelane::{Engine, EngineError};
use onelane_server::{Datatype, Predictor, Row, Signature, Tensor, TensorError, TensorSpec};

/// The elements of a BYTES tensor.
pub fn bytes<T: AsRef<[u8]>>(elements: &[T]) -> Vec<u8> {
    let one = |element: &T| {
        let element = element.as_ref();
        [&(element.len() as u32).to_le_bytes()[..], element].concat()
    };
    elements.iter().flat_map(one).collect()
}

pub fn floats(numbers: &[f32]) -> Vec<u8> {
    numbers.iter().flat_map(|number| number.to_le_bytes()).collect()
}

/// Takes pairs of numbers and a word with each; gives their sums and the words in capitals.
///
/// `poison` fails its batch, `gate` waits at the test's gate, `wide` has the engine give too much.
/// What ran is noted, batch by batch. The word `rude` is refused beforehand.
#[derive(Clone, Default)]
pub struct Sums {
    pub gate: Gate,
    pub ran: Arc<Mutex<Vec<Vec<String>>>>,
}

impl Sums {
    pub fn batches(&self) -> Vec<Vec<String>> {
        self.ran.lock().unwrap().clone()
    }
}

pub struct SumsEngine(Sums);

impl Engine for SumsEngine {
    type Item = Row;
    type Output = Row;

    fn infer(&mut self, batch: &[Row]) -> Result<Vec<Row>, EngineError> {
        let inputs = Row::gather(batch);
        let [x, word] = inputs.as_slice() else { panic!("{inputs:?}") };
        assert_eq!((x.name(), word.name()), ("x", "word"), "they come as they are declared");
        let words: Vec<String> =
            word.elements().map(|word| String::from_utf8(word.to_vec()).unwrap()).collect();
        self.0.ran.lock().unwrap().push(words.clone());
        if words.iter().any(|word| word == "gate") {
            self.0.gate.pass();
        }
        if words.iter().any(|word| word == "poison") {
            return Err(EngineError::failed("it is poisoned"));
        }
        let number = |four: &[u8]| f32::from_le_bytes(four.try_into().unwrap());
        let sums: Vec<f32> =
            x.data().chunks_exact(8).map(|pair| number(&pair[..4]) + number(&pair[4..])).collect();
        let loud: Vec<String> = words.iter().map(|word| word.to_uppercase()).collect();
        let (rows, one) = (batch.len(), words[0] != "wide");
        let shape = if one { vec![rows] } else { vec![rows, 1] };
        let outputs = vec![
            Tensor::new("sum", Datatype::Fp32, shape, floats(&sums)).unwrap(),
            Tensor::new("loud", Datatype::Bytes, [rows], bytes(&loud)).unwrap(),
        ];
        Row::scatter(batch, outputs)
    }
}

impl Predictor for Sums {
    type Engine = SumsEngine;

    fn load(&self) -> Result<SumsEngine, EngineError> {
        Ok(SumsEngine(self.clone()))
    }

    fn signature(&self) -> Signature {
        let inputs = vec![
            TensorSpec::new("x", Datatype::Fp32, [-1, 2]),
            TensorSpec::new("word", Datatype::Bytes, [-1]),
        ];
        let outputs = vec![
            TensorSpec::new("sum", Datatype::Fp32, [-1]),
            TensorSpec::new("loud", Datatype::Bytes, [-1]),
        ];
        Signature::rows(inputs, outputs).unwrap()
    }

    fn check(&self, input: &Tensor) -> Result<(), TensorError> {
        match input.elements().position(|word| word == b"rude") {
            Some(at) => Err(TensorError(format!("element {at} is rude"))),
            None => Ok(()),
        }
    }
}

/// Gives what it gets, declares nothing, and notes how many rows ran together: 0 for a whole call.
#[derive(Clone, Default)]
pub struct Echo(pub Arc<Mutex<Vec<usize>>>);

impl Engine for Echo {
    type Item = Row;
    type Output = Row;

    fn infer(&mut self, batch: &[Row]) -> Result<Vec<Row>, EngineError> {
        self.0.lock().unwrap().push(if batch[0].is_whole() { 0 } else { batch.len() });
        Row::scatter(batch, Row::gather(batch))
    }
}

impl Predictor for Echo {
    type Engine = Self;

    fn load(&self) -> Result<Self, EngineError> {
        Ok(self.clone())
    }

    fn signature(&self) -> Signature {
        Signature::rows(Vec::new(), Vec::new()).unwrap()
    }
}
