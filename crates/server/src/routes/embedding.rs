//! What the embedding routes of all protocols share: `dimensions`, and texts as a schema.

use serde_json::json;
use utoipa::openapi::{RefOr, Schema};
use utoipa::{PartialSchema, ToSchema};

use crate::app::App;
use crate::failure::Failure;
use crate::model::Model;
use crate::schema::schema;

/// The width that a call asks for, checked.
///
/// # Errors
/// It is none that the model can have.
pub(crate) fn dimensions(
    app: &App,
    model: &Model,
    asked: Option<u64>,
) -> Result<Option<usize>, Failure> {
    let Some(asked) = asked else { return Ok(None) };
    let full = model.info.dimensions.unwrap_or(0);
    let wrong = |message: String| Err(Failure::malformed(message).at("dimensions"));
    match usize::try_from(asked) {
        Ok(asked) if asked == full => Ok(None),
        Ok(asked) if (1..full).contains(&asked) => {
            if model.info.matryoshka || app.config.matryoshka {
                return Ok(Some(asked));
            }
            wrong(format!(
                "the model {} is not made to be cut to {asked} of its {full} dimensions; \
                 --matryoshka does so anyway",
                model.name
            ))
        }
        _ => wrong(format!("must be from 1 to {full}")),
    }
}

/// Cuts vectors to `width` and scales them to length 1.
pub(crate) fn cut(vectors: &mut [Vec<f32>], width: Option<usize>) {
    let Some(width) = width else { return };
    for vector in vectors {
        vector.truncate(width);
        let norm = vector.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        if norm > 0.0 {
            vector.iter_mut().for_each(|v| *v = (f64::from(*v) / norm) as f32);
        }
    }
}

macro_rules! schemas {
    ($($(#[$doc:meta])* $name:ident = $value:tt),* $(,)?) => {$(
        $(#[$doc])*
        pub(crate) struct $name;

        impl PartialSchema for $name {
            fn schema() -> RefOr<Schema> {
                schema(json!($value))
            }
        }

        impl ToSchema for $name {}
    )*};
}

schemas! {
    /// A text, or a list of texts.
    Texts = {"oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": 2048,
         "items": {"type": "string", "minLength": 1}},
    ]},
    /// One class of three, or vLLM's number: lower is sooner, 0 is normal.
    PriorityField = {"oneOf": [
        {"type": "string", "enum": ["interactive", "normal", "bulk"]},
        {"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX},
        {"type": "null"},
    ]},
    /// A list of texts, or of objects with a text.
    Documents = {"type": "array", "minItems": 1, "maxItems": 2048, "items": {"oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "object", "required": ["text"],
         "properties": {"text": {"type": "string", "minLength": 1}}},
    ]}},
    /// A text, a pair of texts, or a list of either, each in a list of its own.
    PredictInputs = {"oneOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "minItems": 1, "maxItems": 2,
         "items": {"type": "string", "minLength": 1}},
        {"type": "array", "minItems": 1, "maxItems": 2048, "items":
            {"type": "array", "minItems": 1, "maxItems": 2,
             "items": {"type": "string", "minLength": 1}}},
    ]},
    /// Token ids of a text, or of several.
    TokenIds = {"oneOf": [
        {"type": "array", "minItems": 1,
         "items": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}},
        {"type": "array", "minItems": 1, "maxItems": 2048, "items":
            {"type": "array", "minItems": 1,
             "items": {"type": "integer", "minimum": 0, "maximum": 4_294_967_295_u32}}},
    ]},
    /// Anything that is JSON.
    AnyValue = {},
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_vector_has_length_one() {
        let mut vectors = vec![vec![0.6, 0.0, 0.8], vec![0.0, 0.0, 1.0]];
        cut(&mut vectors, Some(2));
        assert_eq!(vectors, [[1.0, 0.0], [0.0, 0.0]]);
        cut(&mut vectors, None);
        assert_eq!(vectors[0].len(), 2);
    }
}
