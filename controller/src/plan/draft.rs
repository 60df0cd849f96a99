//! A plan in the making: the changes so far, and the state and the nodes' free room as they will be after them.

use std::sync::Arc;

use roster_proto::{
    cause::Cause,
    id::{NodeId, ServiceId, Slot, TaskId, Version},
    task::Task,
    time::Timestamp,
};

use super::{
    MAX_CHANGES, Plan,
    lost::{Whereabouts, whereabouts},
    schedule::{Ask, Hosts},
    sharing::{self, Partner},
};
use crate::state::{ClusterState, Service, command::Change};

/// Letters of a cause that weigh as much as a change.
const CAUSE_UNIT: usize = 64;

pub(super) struct Draft {
    /// After the changes so far.
    pub(super) state: ClusterState,
    /// What the nodes have left after the assignments so far. Only shrinks during a pass.
    pub(super) hosts: Hosts,
    pub(super) now: Timestamp,
    base: Version,
    changes: Vec<Change>,
    weight: usize,
    wake: Option<Timestamp>,
    ids: Ids,
    unplaced: Vec<Unplaced>,
    /// No node could take a task like this one; room only shrinks, so none will.
    refused: Option<(ServiceId, Version)>,
}

/// A task to be made for a slot.
pub(super) struct Creation {
    pub(super) service: Arc<Service>,
    pub(super) slot: Slot,
    pub(super) attempt: u32,
    pub(super) replaces: Option<TaskId>,
}

/// Waits for a node. Why is said at the end of the pass, when the room that is left is known.
enum Unplaced {
    New(Creation),
    Existing(Arc<Task>),
}

impl Draft {
    pub(super) fn new(state: &ClusterState, now: Timestamp, seed: u64) -> Self {
        Self {
            state: state.clone(),
            hosts: Hosts::of(state),
            now,
            base: state.plan_base,
            changes: Vec::new(),
            weight: 0,
            wake: None,
            ids: Ids(seed),
            unplaced: Vec::new(),
            refused: None,
        }
    }

    pub(super) fn push(&mut self, change: Change) {
        self.weight += weight(&change);
        self.state.rehearse(self.now, &change);
        self.changes.push(change);
    }

    /// The plan is as large as it may be: the rest is for the next one.
    pub(super) fn full(&mut self) -> bool {
        let full = self.weight >= MAX_CHANGES;
        if full {
            self.wake_at(self.now);
        }
        full
    }

    pub(super) fn wake_at(&mut self, moment: Timestamp) {
        self.wake = Some(self.wake.map_or(moment, |wake| wake.min(moment)));
    }

    /// Makes a task and binds it at once where a node can take it.
    pub(super) fn create(&mut self, creation: Creation) {
        match self.find_node(&creation.service, &creation.slot, creation.service.spec_version) {
            Some(node) => self.create_on(creation, node),
            None => self.unplaced.push(Unplaced::New(creation)),
        }
    }

    pub(super) fn create_on(&mut self, creation: Creation, node: NodeId) {
        let (service, slot) = (Arc::clone(&creation.service), creation.slot.clone());
        let task = self.create_pending(creation, None, None);
        self.assign(task, &service, &slot, service.spec_version, node);
    }

    pub(super) fn create_pending(
        &mut self,
        creation: Creation,
        not_before: Option<Timestamp>,
        cause: Option<Cause>,
    ) -> TaskId {
        let task = self.ids.next(&self.state);
        self.push(Change::CreateTask {
            task: task.clone(),
            service: creation.service.id.clone(),
            slot: creation.slot,
            spec_version: creation.service.spec_version,
            not_before,
            attempt: creation.attempt,
            replaces: creation.replaces,
            cause,
        });
        task
    }

    /// Binds a task that waited.
    pub(super) fn place(&mut self, service: &Arc<Service>, task: &Arc<Task>) {
        match self.find_node(service, &task.slot, task.spec_version) {
            Some(node) => self.assign(task.id.clone(), service, &task.slot, task.spec_version, node),
            None => self.unplaced.push(Unplaced::Existing(Arc::clone(task))),
        }
    }

    fn assign(&mut self, task: TaskId, service: &Service, slot: &Slot, version: Version, node: NodeId) {
        let shares_with = match Partner::of(&self.state, service, slot, version) {
            Partner::Runs { task, .. } => Some(task.id.clone()),
            Partner::None | Partner::Missing(_) => None,
        };
        self.push(Change::AssignTask { task, node, shares_with });
    }

    /// Its node does, if it is bound to one.
    pub(super) fn answers(&self, task: &Task) -> bool {
        matches!(whereabouts(&self.state, self.now, task), Whereabouts::Known)
    }

    /// The best node for a task of the service, its room taken; `None` where no node can take it.
    pub(super) fn find_node(&mut self, service: &Arc<Service>, slot: &Slot, version: Version) -> Option<NodeId> {
        let kind = (service.id.clone(), version);
        let beside = match Partner::of(&self.state, service, slot, version) {
            Partner::None => None,
            Partner::Runs { node, .. } => Some(node),
            Partner::Missing(_) => return None,
        };
        let pinned = matches!(slot, Slot::Node(_)) || beside.is_some();
        if !pinned && self.refused.as_ref() == Some(&kind) {
            return None;
        }
        let ask = Ask::of(service, slot, version).map(|ask| ask.beside(beside.as_ref()));
        let node = ask.and_then(|ask| self.hosts.take(&ask));
        if node.is_none() && !pinned {
            self.refused = Some(kind);
        }
        node
    }

    /// Says of everything that found no node why, now that nothing more will be placed.
    pub(super) fn create_unplaced(&mut self) {
        let mut explained: Option<((ServiceId, Version), Cause)> = None;
        for unplaced in std::mem::take(&mut self.unplaced) {
            if self.full() {
                return;
            }
            let (service, slot, version) = match &unplaced {
                Unplaced::New(creation) => {
                    (creation.service.clone(), creation.slot.clone(), creation.service.spec_version)
                }
                Unplaced::Existing(task) => {
                    let Some(service) = self.state.services.get(&task.service).cloned() else { continue };
                    (service, task.slot.clone(), task.spec_version)
                }
            };
            let kind = (service.id.clone(), version);
            let cause = match &explained {
                // Others are bound to a node of their own.
                Some((known, cause))
                    if *known == kind && matches!(slot, Slot::Replica(_)) && !sharing::shares(&service) =>
                {
                    cause.clone()
                }
                _ => self.explain(&service, &slot, version),
            };
            explained = Some((kind, cause.clone()));
            match unplaced {
                Unplaced::New(creation) => {
                    self.create_pending(creation, None, Some(cause));
                }
                Unplaced::Existing(task) if task.status.cause.as_ref() != Some(&cause) => {
                    self.push(Change::Explain { task: task.id.clone(), cause });
                }
                Unplaced::Existing(_) => {}
            }
        }
    }

    fn explain(&self, service: &Service, slot: &Slot, version: Version) -> Cause {
        let beside = match Partner::of(&self.state, service, slot, version) {
            Partner::None => None,
            Partner::Runs { node, .. } => Some(node),
            Partner::Missing(cause) => return cause,
        };
        let ask = Ask::of(service, slot, version).map(|ask| ask.beside(beside.as_ref()));
        let rejections = ask.map(|ask| self.hosts.explain(&ask)).unwrap_or_default();
        Cause::NoNode { rejections }
    }

    pub(super) fn finish(self) -> Plan {
        Plan { base: self.base, changes: self.changes, next_wake: self.wake }
    }
}

/// A plan is one entry of the log, whose size is bounded: long causes count for more.
fn weight(change: &Change) -> usize {
    let cause = match change {
        Change::CreateTask { cause, .. } => cause.as_ref(),
        Change::Explain { cause, .. } | Change::OrphanTask { cause, .. } | Change::GiveUp { cause, .. } => Some(cause),
        Change::AssignTask { .. }
        | Change::StopTask { .. }
        | Change::RemoveTask { .. }
        | Change::ForgetService { .. }
        | Change::EndBrake
        | Change::Retire { .. } => None,
    };
    1 + cause.map_or(0, |cause| cause.to_string().len() / CAUSE_UNIT)
}

/// Ten letters and digits from a seed, by SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number
/// generators, 2014).
struct Ids(u64);

impl Ids {
    fn next(&mut self, state: &ClusterState) -> TaskId {
        loop {
            let mut rest = self.random();
            let mut text = String::with_capacity(10);
            for _ in 0..10 {
                let digit = u32::try_from(rest % 36).unwrap_or(0);
                text.push(char::from_digit(digit, 36).unwrap_or('0'));
                rest /= 36;
            }
            let id = TaskId::new(text).expect("letters and digits are a name");
            if !state.tasks.contains_key(&id) {
                return id;
            }
        }
    }

    fn random(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }
}
