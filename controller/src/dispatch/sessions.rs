//! Which agents are connected now.
//!
//! Guarantees: at most one session per node; a newer one ends the older. Absent: anything about a node's health, which
//! is [`crate::leader::liveness`]'s: a session that ends says nothing about the node before its deadline.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use roster_proto::{id::NodeId, wire};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::Status;

pub(crate) type Outbound = mpsc::Sender<Result<wire::ControllerMessage, Status>>;

/// The open sessions by node.
#[derive(Debug)]
pub struct Sessions {
    open: Mutex<BTreeMap<NodeId, Arc<Session>>>,
    next_number: AtomicU64,
    opened: watch::Sender<u64>,
}

/// One agent's connection, as others see it.
#[derive(Debug)]
pub(crate) struct Session {
    pub(crate) node: NodeId,
    /// It came by this controller's own socket: the agent is of this host, and root's.
    pub(crate) by_root_here: bool,
    number: u64,
    outbound: Outbound,
    closed: CancellationToken,
}

impl Default for Sessions {
    fn default() -> Self {
        Self { open: Mutex::default(), next_number: AtomicU64::new(1), opened: watch::Sender::new(0) }
    }
}

impl Sessions {
    pub(crate) fn open(&self, node: NodeId, by_root_here: bool, outbound: Outbound) -> Arc<Session> {
        let number = self.next_number.fetch_add(1, Ordering::Relaxed);
        let closed = CancellationToken::new();
        let session = Arc::new(Session { node: node.clone(), by_root_here, number, outbound, closed });
        if let Some(older) = self.lock().insert(node, session.clone()) {
            older.closed.cancel();
        }
        self.opened.send_replace(number);
        session
    }

    /// Leaves a newer session of the same node alone.
    pub(crate) fn close(&self, session: &Session) {
        session.closed.cancel();
        let mut open = self.lock();
        if open.get(&session.node).is_some_and(|found| found.number == session.number) {
            open.remove(&session.node);
        }
    }

    pub(crate) fn get(&self, node: &NodeId) -> Option<Arc<Session>> {
        self.lock().get(node).cloned()
    }

    pub fn count(&self) -> usize {
        self.lock().len()
    }

    /// Changes whenever a session opens.
    pub(crate) fn opened(&self) -> watch::Receiver<u64> {
        self.opened.subscribe()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Arc<Session>>> {
        // No code that holds the lock can panic half-way through a change.
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Session {
    pub(crate) fn outbound(&self) -> &Outbound {
        &self.outbound
    }

    pub(crate) fn closed(&self) -> &CancellationToken {
        &self.closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_session_ends_the_older() {
        let sessions = Sessions::default();
        let node: NodeId = "vm1".parse().expect("a name");
        let first = sessions.open(node.clone(), true, mpsc::channel(1).0);
        let second = sessions.open(node.clone(), false, mpsc::channel(1).0);
        assert!(first.closed().is_cancelled());
        assert!(!second.closed().is_cancelled());

        sessions.close(&first);
        assert_eq!(sessions.get(&node).map(|s| s.number), Some(second.number));
        sessions.close(&second);
        assert_eq!(sessions.count(), 0);
    }
}
