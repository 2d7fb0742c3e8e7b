//! A loaded model of texts: its lane, and how texts become its items and its outputs numbers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use onelane::Engine;
use tracing::Instrument;

use crate::call::Call;
use crate::failure::{Failure, Kind};
use crate::inputs::{Input, Inputs, name};
use crate::lane::Lane;
use crate::model_counters::ModelCounters;
use crate::text::{TextError, Tokenised};
use crate::work::Answers;

/// More than this, in bytes, is tokenised on a thread beside the runtime's.
const INLINE_BYTES: usize = 16 << 10;

/// The most tokens of a call that is answered with a vector of each: an answer has some thousand bytes
/// for each, and is made as a whole.
pub(crate) const MOST_VECTORS: usize = 16 << 10;

/// Makes the engine's item of an input.
pub(crate) type Encode<I> = Arc<dyn Fn(&Input) -> Result<Tokenised<I>, TextError> + Send + Sync>;

/// A loaded model of texts.
pub(crate) struct TextLane<E: Engine> {
    pub(crate) lane: Lane<E>,
    pub(crate) encode: Encode<E::Item>,
    pub(crate) vector: fn(E::Output) -> Vec<f32>,
    /// What the self-check tries it on.
    pub(crate) probe: fn(String) -> Input,
    pub(crate) counters: Arc<ModelCounters>,
}

impl<E: Engine> TextLane<E> {
    pub(crate) async fn run_call(
        &self,
        inputs: Inputs,
        call: Call,
        truncate: bool,
    ) -> Result<Answers, Failure> {
        let start = Instant::now();
        let field = inputs.field;
        let each_token = inputs.items.iter().any(|item| matches!(item, Input::EachToken(_)));
        let span = tracing::debug_span!("tokenise", onelane.texts = inputs.items.len() as i64);
        let tokenised = self.tokenise(inputs).instrument(span).await?;
        let tokenise = start.elapsed();
        self.counters.tokenise.observe(tokenise.as_secs_f64());

        let truncated = tokenised.iter().filter(|text| text.truncated).count();
        if truncated > 0 && !truncate {
            let index = tokenised.iter().position(|text| text.truncated).unwrap_or(0);
            let message = "the text is longer than the model takes; cut it, or ask for truncation";
            return Err(Failure::new(Kind::TextTooLong, message).at(name(field, index)));
        }
        let tokens: Vec<usize> = tokenised.iter().map(|text| text.tokens).collect();
        let vectors = tokens.iter().sum::<usize>();
        if each_token && vectors > MOST_VECTORS {
            let message = format!(
                "{vectors} tokens are more than the {MOST_VECTORS} that are answered with a vector \
                 of each at a time; send fewer texts"
            );
            return Err(Failure::new(Kind::TooLarge, message).at(field));
        }
        self.counters.truncated.inc_by(truncated as u64);

        let items = tokenised.into_iter().map(|text| text.item).collect();
        let outputs = self.lane.answer(items, call, |index| name(field, index)).await?;

        let vectors: Vec<Vec<f32>> = outputs.into_iter().map(self.vector).collect();
        let unusable = vectors.iter().position(|v| !v.iter().all(|number| number.is_finite()));
        if let Some(index) = unusable {
            let message = "the engine's answer is not finite";
            return Err(Failure::new(Kind::Engine, message).at(name(field, index)));
        }
        Ok(Answers { vectors, tokens, truncated, tokenise })
    }

    async fn tokenise(&self, inputs: Inputs) -> Result<Vec<Tokenised<E::Item>>, Failure> {
        let field = inputs.field;
        let failed = move |(index, error): (usize, TextError)| {
            Failure::malformed(error.to_string()).at(name(field, index))
        };
        let size: usize = inputs.items.iter().map(Input::size).sum();
        let encode = Arc::clone(&self.encode);
        if size <= INLINE_BYTES {
            return encode_all(&inputs.items, &encode, || false).map_err(failed);
        }
        // Set when the caller goes: what it sent need not be tokenised to its end.
        let left = Left(Arc::new(AtomicBool::new(false)));
        let gone = Arc::clone(&left.0);
        let work = move || {
            let gone = || gone.load(Ordering::Relaxed);
            encode_all(&inputs.items, &encode, gone)
        };
        let encoded = tokio::task::spawn_blocking(work).await;
        let encoded = encoded.map_err(|_| {
            Failure::new(Kind::Internal, "the tokeniser panicked on a text of this call")
        })?;
        encoded.map_err(failed)
    }
}

/// Tells the tokenising thread that its caller has gone.
struct Left(Arc<AtomicBool>);

impl Drop for Left {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn encode_all<I>(
    inputs: &[Input],
    encode: &Encode<I>,
    gone: impl Fn() -> bool,
) -> Result<Vec<Tokenised<I>>, (usize, TextError)> {
    let one = |(index, input): (usize, &Input)| {
        if gone() {
            return Err((index, TextError("the caller has gone".to_owned())));
        }
        encode(input).map_err(|error| (index, error))
    };
    inputs.iter().enumerate().map(one).collect()
}
