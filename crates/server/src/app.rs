//! What all handlers of a server share.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::watch;

use crate::config::ServerConfig;
use crate::inputs::InputLimits;
use crate::life::Phase;
use crate::metrics::Metrics;
use crate::rate::Busy;
use crate::registry::Registry;

/// Everything that the handlers share.
pub(crate) struct App {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) models: Registry,
    pub(crate) metrics: Metrics,
    pub(crate) started: Instant,
    pub(crate) phase: watch::Sender<Phase>,
    pub(crate) busy: Busy,
}

impl App {
    pub(crate) fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    /// What texts a call may bring.
    pub(crate) fn limits(&self) -> InputLimits {
        InputLimits { max_texts: self.config.max_texts, token_ids: self.config.token_ids }
    }
}
