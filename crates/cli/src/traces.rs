//! The spans of requests, sent to a collector while a command serves: in a build with the feature
//! `otlp`, and where the environment names a collector.

use onelane_terminal::Also;

/// What sends spans, until it is dropped: then what is left is sent.
pub struct Traces {
    #[cfg(feature = "otlp")]
    sent: Option<onelane_server::Traces>,
}

impl Traces {
    /// Of a command that serves, or of one that does not.
    ///
    /// # Errors
    /// An endpoint that is none.
    pub fn start(serves: bool) -> anyhow::Result<Self> {
        #[cfg(feature = "otlp")]
        return Ok(Self { sent: if serves { onelane_server::Traces::from_env()? } else { None } });
        #[cfg(not(feature = "otlp"))]
        {
            let _ = serves;
            Ok(Self {})
        }
    }

    /// What the subscriber needs beside the log.
    pub fn layers(&self) -> Vec<Also> {
        #[cfg(feature = "otlp")]
        return self.sent.iter().map(|traces| Box::new(traces.layer()) as Also).collect();
        #[cfg(not(feature = "otlp"))]
        Vec::new()
    }
}

impl Drop for Traces {
    fn drop(&mut self) {
        #[cfg(feature = "otlp")]
        self.sent.iter().for_each(onelane_server::Traces::shutdown);
    }
}
