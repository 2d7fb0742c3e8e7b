//! [`Target`] and [`Submit`]: anything that answers requests.

use std::future::Future;

/// Something that clients ask.
pub trait Target: Send + Sync + 'static {
    /// What one client asks through.
    type Client: Client;

    /// A client; it is made where it will be used, on its own thread or in its own task.
    ///
    /// # Errors
    /// Why there can be none.
    fn client(&self) -> Result<Self::Client, String>;
}

/// One client's end of a target.
pub trait Client: Send + 'static {
    /// An answer.
    type Reply: Send + 'static;

    /// Asks, and waits for the answer.
    ///
    /// # Blocking
    /// Until the answer is there.
    fn ask(&mut self, number: u64) -> Self::Reply;
}

/// A client that can also wait without blocking its thread.
pub trait AsyncClient: Client {
    /// Asks, and waits for the answer.
    fn infer(&mut self, number: u64) -> impl Future<Output = Self::Reply> + Send;
}

/// Something that takes a request now and answers it later.
pub trait Submit {
    /// An answer.
    type Reply: Send + 'static;
    /// What waits for it.
    type Pending: Future<Output = Self::Reply> + Send + 'static;

    /// Hands a request over.
    ///
    /// # Errors
    /// When it is gone.
    ///
    /// # Blocking
    /// While it is full.
    fn submit(&self, number: u64) -> Result<Self::Pending, Refused>;

    /// Hands a request over, or not, at once.
    ///
    /// # Errors
    /// When it is full or gone.
    fn try_submit(&self, number: u64) -> Result<Self::Pending, Refused>;

    /// Waits for an answer.
    ///
    /// # Blocking
    /// Until it is there.
    fn wait(&self, pending: Self::Pending) -> Self::Reply;
}

/// Why a request was not taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refused {
    /// As many wait as may.
    Full,
    /// There is nobody to answer, for this reason.
    Gone(String),
}
