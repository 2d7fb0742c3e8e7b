//! What the answers of TEI's routes say of the work that they were.

use axum::Json;
use axum::http::HeaderValue;
use axum::response::{IntoResponse, Response};
use serde::Serialize;

use super::with_truncated;
use crate::call::Call;
use crate::family::number;
use crate::inputs::{Input, Inputs};
use crate::model::Model;
use crate::work::Answers;

/// What the answers of TEI's routes say of the work that they were.
pub(super) struct Spent {
    call: Call,
    device: String,
    characters: usize,
}

impl Spent {
    pub(super) fn new(call: Call, model: &Model, inputs: &Inputs) -> Self {
        let characters = inputs.items.iter().map(Input::characters).sum();
        Self { call, device: model.device.clone(), characters }
    }

    pub(super) fn on(self, body: impl Serialize, answers: &Answers) -> Response {
        let mut response = with_truncated(Json(body).into_response(), answers.truncated);
        let headers = response.headers_mut();
        if let Ok(device) = self.device.parse::<HeaderValue>() {
            headers.insert("x-compute-type", device);
        }
        let total = self.call.arrived.elapsed().as_millis();
        headers.insert("x-total-time", number(total));
        headers.insert("x-tokenization-time", number(answers.tokenise.as_millis()));
        headers.insert("x-compute-characters", number(self.characters as u128));
        headers.insert("x-compute-tokens", number(answers.total_tokens() as u128));
        response
    }
}
