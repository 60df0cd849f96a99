//! The way to the other controllers.

use futures::future::BoxFuture;
use tonic::{Status, transport::Channel};

/// Connections to the other controllers.
pub trait Peers: std::fmt::Debug + Send + Sync + 'static {
    /// The present connection, or a new one.
    fn connect(&self, peer: u64) -> BoxFuture<'static, Result<Channel, Unreachable>>;

    /// A call on it failed: the next ones get a new connection.
    fn failed(&self, peer: u64);

    /// What another controller refused a call with: it may be that this one was removed.
    fn refused(&self, answer: &Status);

    /// This controller belongs to the cluster no longer.
    fn is_removed(&self) -> bool;
}

#[derive(Debug, thiserror::Error)]
pub enum Unreachable {
    #[error("nobody knows where controller {0:016x} is")]
    NoAddress(u64),
    #[error("controller {name} at {address} cannot be reached: {reason}")]
    Connect { name: String, address: String, reason: String },
}
