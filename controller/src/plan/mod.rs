//! What to do about the difference between what is wanted and what was reported.
//!
//! [`plan`] is pure and level-triggered: it looks at the whole state each time, remembers nothing, and planned again
//! right after its changes were applied it yields nothing (unless [`MAX_CHANGES`] cut it short; then it asks to be
//! called again at once). The moment and the randomness are arguments.
//!
//! A pass goes through every service: [`slot`] stops what is surplus, refills what is empty and finds nodes for what
//! waits ([`restart`] says when, [`schedule`] says where), [`rollout`] replaces what is outdated; then tasks leave
//! drained nodes ([`drain`]), whoever found no node is told why, and [`reap`] forgets what nobody needs.
//!
//! Guarantees, asserted on every plan in debug builds by [`check`]: a slot has at most one task that is meant to run,
//! two only while a start-first rollout hands it over; reservations and host ports are never given twice; nothing is
//! Pending or failed without a cause. Absent: preferences, rebalancing, and anything that acts.

mod check;
mod draft;
mod drain;
mod fields;
mod lost;
mod preview;
mod reap;
mod restart;
mod rollout;
mod schedule;
mod sharing;
mod slot;
#[cfg(test)]
pub(crate) mod tests;
mod view;
mod wanted;

use roster_proto::{id::Version, time::Timestamp};

use self::draft::Draft;
pub use self::{
    check::{Violation, check, check_plan},
    preview::preview,
    reap::{HISTORY, LINGER},
    restart::{DEFAULT_WINDOW, LONGEST_DEFAULT_DELAY, LONGEST_SET_DELAY},
    view::{current_tasks, service_view},
};
use crate::state::{ClusterState, command::Change};

/// A plan is cut short beyond this weight: a change weighs one, more when it carries a long cause. That many changes
/// are well under two mebibytes in the log.
pub const MAX_CHANGES: usize = 4_000;

/// The changes that bring the state closer to what is wanted, in the order to be applied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    /// For `Command::ApplyPlan`: the state's `plan_base` the plan was made for.
    pub base: Version,
    pub changes: Vec<Change>,
    /// Plan again at this moment even if nothing is reported until then.
    pub next_wake: Option<Timestamp>,
}

fn tend_brake(draft: &mut Draft) {
    let Some(brake) = draft.state.brake.as_ref() else { return };
    match brake.until {
        Some(until) if until <= draft.now => draft.push(Change::EndBrake),
        Some(until) => draft.wake_at(until),
        None => {}
    }
}

/// Decides everything that is to be done now. `seed` makes the new tasks' ids: take a fresh one for each plan.
pub fn plan(state: &ClusterState, now: Timestamp, seed: u64) -> Plan {
    let mut draft = Draft::new(state, now, seed);
    tend_brake(&mut draft);
    // Where what shares another service's namespaces goes depends on what becomes of that one.
    let (sharing, alone): (Vec<_>, Vec<_>) = state.services.values().partition(|service| sharing::shares(service));
    for service in alone.into_iter().chain(sharing) {
        slot::tend_service(&mut draft, service);
    }
    draft.create_unplaced();
    drain::tend(&mut draft);
    sharing::tend(&mut draft);
    reap::tend(&mut draft);
    let plan = draft.finish();
    #[cfg(debug_assertions)]
    {
        let violations = check_plan(state, &plan, now);
        debug_assert!(violations.is_empty(), "the planner broke its own rules: {violations:?}");
    }
    plan
}
