//! Our own routes: whether the server lives and is ready, the page, and the figures that it shows.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, header};
use axum::response::{Html, IntoResponse, Response};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::app::App;
use crate::failure::Failure;
use crate::family::{Plain, Rejected};
use crate::health;
use crate::page::{self, Figures};

pub(super) fn routes() -> OpenApiRouter<Arc<App>> {
    OpenApiRouter::new()
        .routes(routes!(live))
        .routes(routes!(ready))
        .routes(routes!(figures))
        .route("/", axum::routing::get(front))
}

/// Whether the server lives: if not, only a restart helps
#[utoipa::path(
    get, path = "/live", tag = "onelane", responses((status = 200), Rejected<Plain>)
)]
async fn live(State(app): State<Arc<App>>) -> Result<(), Rejected<Plain>> {
    Ok(health::live(&app).map_err(Failure::unavailable)?)
}

/// Whether calls should be sent here
#[utoipa::path(
    get, path = "/ready", tag = "onelane", responses((status = 200), Rejected<Plain>)
)]
async fn ready(State(app): State<Arc<App>>) -> Result<(), Rejected<Plain>> {
    Ok(health::ready(&app).map_err(Failure::unavailable)?)
}

/// What the page shows
#[utoipa::path(
    get, path = "/stats", tag = "onelane",
    responses((status = 200, body = Figures), Rejected<Plain>)
)]
async fn figures(State(app): State<Arc<App>>) -> Json<Figures> {
    Json(page::figures(&app))
}

/// The page for a browser; a line for everything else, by which some clients look whether somebody
/// is there.
async fn front(headers: HeaderMap) -> Response {
    let accepts = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok());
    if accepts.is_some_and(|kinds| kinds.contains("text/html")) {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; \
                      connect-src 'self'; img-src data:";
        return ([(header::CONTENT_SECURITY_POLICY, policy)], Html(page::HTML)).into_response();
    }
    "onelane is running".into_response()
}
