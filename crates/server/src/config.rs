//! Settings of a server.

use std::time::Duration;

/// Settings of a [`Server`](crate::Server).
///
/// ```
/// use onelane_server::ServerConfig;
///
/// let config = ServerConfig::default().max_texts(64).api_key(Some("secret".to_owned()));
/// assert_eq!(config.max_texts, 64);
/// ```
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct ServerConfig {
    /// The most texts, or rows of tensors, in a call; 2048 by default.
    pub max_texts: usize,
    /// The most bytes in a body; 2,000,000 by default, as TEI.
    pub payload_limit: usize,
    /// The most bytes in a request's headers together; 64 KiB by default. One header or a path may
    /// take no more.
    pub header_limit: usize,
    /// The most headers in a request; 100 by default.
    pub max_headers: usize,
    /// How long a client may take to send a request's headers, the time that a kept connection is
    /// idle included; 75 s by default, which is longer than most proxies keep one.
    pub header_timeout: Duration,
    /// How long a client may pause while it sends a body; 30 s by default.
    pub body_timeout: Duration,
    /// Whether a text longer than the model's limit is cut; else the call is refused. On by default.
    pub auto_truncate: bool,
    /// Whether `dimensions` may be asked of models that do not declare it; off by default.
    pub matryoshka: bool,
    /// Whether token ids are taken for texts; off by default.
    pub token_ids: bool,
    /// The deadline of a call that names none; none by default.
    pub request_timeout: Option<Duration>,
    /// What a client must show as `Authorization: Bearer`; none by default.
    pub api_key: Option<String>,
    /// Origins that a browser may call from; none by default, `*` is all.
    pub cors_origins: Vec<String>,
    /// Whether each model is checked at the start: texts alone and together must agree. On by
    /// default.
    pub self_check: bool,
    /// How long the server goes on accepting when it has been told to stop, while `/ready` fails;
    /// 5 s by default.
    pub drain_delay: Duration,
    /// How long what was accepted may take to finish after that; 30 s by default.
    pub drain_timeout: Duration,
    /// A stalled batch that has run this long makes `/live` fail and ends the server, so that
    /// whoever supervises it starts it again; 300 s by default. `None` never does.
    pub stall_exit: Option<Duration>,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            max_texts: 2048,
            payload_limit: 2_000_000,
            header_limit: 64 << 10,
            max_headers: 100,
            header_timeout: Duration::from_secs(75),
            body_timeout: Duration::from_secs(30),
            auto_truncate: true,
            matryoshka: false,
            token_ids: false,
            request_timeout: None,
            api_key: None,
            cors_origins: Vec::new(),
            self_check: true,
            drain_delay: Duration::from_secs(5),
            drain_timeout: Duration::from_secs(30),
            stall_exit: Some(Duration::from_secs(300)),
        }
    }
}

macro_rules! setters {
    ($($(#[$doc:meta])* $name:ident: $type:ty),* $(,)?) => {
        impl ServerConfig {
            $(
                $(#[$doc])*
                #[must_use]
                pub fn $name(mut self, $name: $type) -> Self {
                    self.$name = $name;
                    self
                }
            )*
        }
    };
}

setters! {
    /// Sets the most texts, or rows of tensors, in a call.
    max_texts: usize,
    /// Sets the most bytes in a body.
    payload_limit: usize,
    /// Sets the most bytes in a request's headers.
    header_limit: usize,
    /// Sets the most headers in a request.
    max_headers: usize,
    /// Sets how long headers may take.
    header_timeout: Duration,
    /// Sets how long a client may pause in a body.
    body_timeout: Duration,
    /// Sets whether long texts are cut.
    auto_truncate: bool,
    /// Sets whether `dimensions` may be asked of any model.
    matryoshka: bool,
    /// Sets whether token ids are taken for texts.
    token_ids: bool,
    /// Sets the deadline of a call that names none.
    request_timeout: Option<Duration>,
    /// Sets what a client must show.
    api_key: Option<String>,
    /// Sets the origins that a browser may call from.
    cors_origins: Vec<String>,
    /// Sets whether each model is checked at the start.
    self_check: bool,
    /// Sets how long the server goes on accepting when told to stop.
    drain_delay: Duration,
    /// Sets how long what was accepted may take to finish.
    drain_timeout: Duration,
    /// Sets when a hung device ends the server.
    stall_exit: Option<Duration>,
}
