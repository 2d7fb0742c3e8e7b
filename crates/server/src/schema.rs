//! Schemas that are written as JSON in the document of the routes.

use utoipa::openapi::extensions::ExtensionsBuilder;
use utoipa::openapi::{ObjectBuilder, RefOr, Schema};

/// Where a schema written as JSON is kept until the document is JSON itself.
pub(crate) const VERBATIM: &str = "x-verbatim";

/// A schema written as JSON.
pub(crate) fn schema(value: serde_json::Value) -> RefOr<Schema> {
    let kept = ExtensionsBuilder::new().add(VERBATIM, value).build();
    ObjectBuilder::new().extensions(Some(kept)).into()
}
