//! The description of all HTTP routes, fitted to the models that are served, and a page to try them.

use axum::Router;
use serde_json::{Value, json};
use utoipa::openapi::{InfoBuilder, OpenApi, OpenApiBuilder};
use utoipa_swagger_ui::SwaggerUi;

use crate::app::App;
use crate::schema::VERBATIM;

/// The document without its routes.
pub(super) fn document() -> OpenApi {
    let info =
        InfoBuilder::new().title("onelane").version(env!("CARGO_PKG_VERSION")).description(Some(
            "Embeddings, reranking and classification. `x-priority: interactive | normal | bulk` \
             says how urgent a call is, `x-request-timeout-ms` until when it is wanted. A 429 has \
             `retry-after-ms`.",
        ));
    OpenApiBuilder::new().info(info.build()).build()
}

/// The document with the bounds of this server and its models.
pub(super) fn fit(document: OpenApi, app: &App) -> Value {
    let mut document = serde_json::to_value(document).expect("the document is JSON");
    unwrap_verbatim(&mut document);
    let widths = app.models.all().iter().filter_map(|model| {
        let full = model.info.dimensions?;
        Some((full, app.config.matryoshka || model.info.matryoshka))
    });
    if let Some((most, all_cut)) = widths.reduce(|(a, cut), (b, also)| (a.min(b), cut && also)) {
        let least = if all_cut { 1 } else { most };
        for schema in ["EmbeddingsRequest", "EmbedRequest", "OllamaEmbedRequest"] {
            let path = format!("/components/schemas/{schema}/properties/dimensions");
            if let Some(Value::Object(dimensions)) = document.pointer_mut(&path) {
                dimensions.insert("minimum".to_owned(), json!(least));
                dimensions.insert("maximum".to_owned(), json!(most));
            }
        }
    }
    bound(&mut document, app.config.max_texts);
    document
}

/// Puts the schemas that are written as JSON in their places.
fn unwrap_verbatim(value: &mut Value) {
    if let Some(schema) = value.get_mut(VERBATIM).map(Value::take) {
        *value = schema;
    }
    match value {
        Value::Object(fields) => fields.values_mut().for_each(unwrap_verbatim),
        Value::Array(values) => values.iter_mut().for_each(unwrap_verbatim),
        _ => {}
    }
}

/// No list of texts is longer than a call may be.
fn bound(value: &mut Value, most: usize) {
    match value {
        Value::Object(fields) => {
            if let Some(bound) = fields.get_mut("maxItems")
                && bound.as_u64().is_some_and(|bound| bound > most as u64)
            {
                *bound = json!(most);
            }
            fields.values_mut().for_each(|value| bound(value, most));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| bound(value, most)),
        _ => {}
    }
}

/// `/openapi.json`, and `/docs` for a browser.
pub(super) fn pages(document: Value) -> Router {
    SwaggerUi::new("/docs").external_url_unchecked("/openapi.json", document).into()
}
