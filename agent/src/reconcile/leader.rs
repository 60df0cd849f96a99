//! What passes between the loop and the leader beside sets and statuses: leases in, Settled out.

use std::sync::Arc;

use tracing::warn;

use super::{Reconciler, Settled, plan};
use crate::{runtime::Runtime, telemetry::Chain};

impl<R: Runtime> Reconciler<R> {
    /// Hands the lease on to what enforces it, where there is something to enforce it on.
    pub(super) fn adopt_lease(&mut self) {
        let until = *self.parts.lease.borrow_and_update();
        let Some(set) = self.current.set.clone() else { return };
        let singletons = || set.tasks.values().filter(|assignment| assignment.spec.singleton);
        if until <= self.leased || singletons().next().is_none() {
            return;
        }
        let Some(until) = until else { return };
        match self.parts.runtime.extend_lease(until) {
            Ok(()) => {
                self.leased = Some(until);
                // One may have waited for it.
                self.dirty.extend(singletons().map(|assignment| assignment.task.clone()));
            }
            Err(error) => warn!("{}; the singletons of this node end with the lease they have", Chain(&error)),
        }
    }

    /// Once for each set of the controller's.
    pub(super) fn tell_settled(&self) {
        let Some(set) = self.current.set.as_ref().filter(|_| self.current.authoritative) else { return };
        let told = self.parts.settled.borrow().0.as_ref().is_some_and(|told| Arc::ptr_eq(told, set));
        if !told && plan::is_settled(set, &self.tasks) {
            self.parts.settled.send_replace(Settled(Some(set.clone())));
        }
    }
}
