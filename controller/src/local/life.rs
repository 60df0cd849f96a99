//! The life of the controller that a call to `Local` may end.

use tokio_util::sync::CancellationToken;

/// Clones share it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Life {
    /// What this controller is has changed: it is to begin anew.
    again: CancellationToken,
    close_store: CancellationToken,
    store_closed: CancellationToken,
}

impl Life {
    /// Ends this life once the calls under way are answered.
    pub(crate) fn begin_anew(&self) {
        self.again.cancel();
    }

    pub(crate) async fn ends(&self) {
        self.again.cancelled().await;
    }

    /// For the store: when it is to close.
    pub(crate) fn store_shutdown(&self) -> CancellationToken {
        self.close_store.clone()
    }

    pub(crate) fn is_closing_store(&self) -> bool {
        self.close_store.is_cancelled()
    }

    pub(crate) fn store_closed(&self) {
        self.store_closed.cancel();
    }

    /// Returns once the data directory is free. What is called meanwhile is told that the controller is shutting down.
    pub(crate) async fn close_store(&self) {
        self.close_store.cancel();
        self.store_closed.cancelled().await;
    }
}
