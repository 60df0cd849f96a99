//! The statuses on their way to the controller.
//!
//! The board holds for each task the latest status that the controller has not confirmed: an older one it replaces
//! has no worth any more, for states only move forward. So it is bounded by the number of tasks, however long no
//! controller answers.
//!
//! Batches form by themselves: while the stream is taken, or as many batches as are allowed await their
//! acknowledgement, statuses gather and leave together. No timer delays one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Mutex,
};

use roster_proto::{
    id::TaskId,
    task::{TaskReport, TaskStatus},
};
use tokio::sync::Notify;

/// Batches sent and not yet acknowledged. More than one, so that a status need not wait for the controller's disk.
const UNACKNOWLEDGED_BATCHES: usize = 8;
/// Keeps a message well below the size either side accepts.
const BATCH_REPORTS: usize = 1000;

#[derive(Debug, Default)]
pub struct Board {
    inner: Mutex<Inner>,
    ready: Notify,
    acknowledged: Notify,
}

#[derive(Debug, Default)]
struct Inner {
    entries: BTreeMap<TaskId, Entry>,
    unsent: BTreeSet<TaskId>,
    /// Of each batch under way: which status of which task it carried.
    batches: BTreeMap<u64, Vec<(TaskId, u64)>>,
    last_batch: u64,
    last_entry: u64,
    confirmed: BTreeSet<TaskId>,
}

#[derive(Debug)]
struct Entry {
    status: TaskStatus,
    number: u64,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    pub number: u64,
    pub reports: Vec<TaskReport>,
}

impl Board {
    pub fn report(&self, task: &TaskId, status: TaskStatus) {
        let mut inner = self.lock();
        inner.last_entry += 1;
        let number = inner.last_entry;
        inner.entries.insert(task.clone(), Entry { status, number });
        inner.unsent.insert(task.clone());
        inner.confirmed.remove(task);
        drop(inner);
        self.ready.notify_one();
    }

    /// The task has left the set: nobody waits for its status any more.
    pub fn forget(&self, task: &TaskId) {
        let mut inner = self.lock();
        inner.entries.remove(task);
        inner.unsent.remove(task);
        inner.confirmed.remove(task);
    }

    /// A new session: what was not acknowledged is sent again.
    pub fn rewind(&self) {
        let mut inner = self.lock();
        inner.batches.clear();
        let all: Vec<TaskId> = inner.entries.keys().cloned().collect();
        inner.unsent.extend(all);
        drop(inner);
        self.ready.notify_one();
    }

    /// Resolves when [`Board::take`] has something to give. For one waiter; may be dropped at any time.
    pub async fn ready(&self) {
        while !self.lock().can_send() {
            self.ready.notified().await;
        }
    }

    pub fn take(&self) -> Option<Batch> {
        let mut inner = self.lock();
        if !inner.can_send() {
            return None;
        }
        let mut reports = Vec::new();
        let mut carried = Vec::new();
        while reports.len() < BATCH_REPORTS {
            let Some(task) = inner.unsent.pop_first() else { break };
            let Some(entry) = inner.entries.get(&task) else { continue };
            reports.push(TaskReport { task: task.clone(), status: entry.status.clone() });
            carried.push((task, entry.number));
        }
        inner.last_batch += 1;
        let number = inner.last_batch;
        inner.batches.insert(number, carried);
        Some(Batch { number, reports })
    }

    /// The controller has the batch on disk.
    pub fn acknowledge(&self, number: u64) {
        let mut inner = self.lock();
        for (task, number) in inner.batches.remove(&number).unwrap_or_default() {
            if inner.entries.get(&task).is_some_and(|entry| entry.number == number) {
                let entry = inner.entries.remove(&task);
                if entry.is_some_and(|entry| entry.status.state.is_terminal()) {
                    inner.confirmed.insert(task);
                }
            }
        }
        drop(inner);
        self.ready.notify_one();
        self.acknowledged.notify_one();
    }

    /// The tasks whose last status is on the controller's disk since this was asked before. Waits until there are any;
    /// for one waiter; may be dropped at any time.
    pub async fn confirmed(&self) -> BTreeSet<TaskId> {
        loop {
            let confirmed = std::mem::take(&mut self.lock().confirmed);
            if !confirmed.is_empty() {
                return confirmed;
            }
            self.acknowledged.notified().await;
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().expect("nothing panics while it holds the lock")
    }
}

impl Inner {
    fn can_send(&self) -> bool {
        !self.unsent.is_empty() && self.batches.len() < UNACKNOWLEDGED_BATCHES
    }
}

#[cfg(test)]
mod tests {
    use roster_proto::{task::TaskState, time::Timestamp};

    use super::*;

    fn id(name: &str) -> TaskId {
        TaskId::new(name).unwrap()
    }

    fn status(state: TaskState) -> TaskStatus {
        TaskStatus::new(state, Timestamp(1))
    }

    fn states(batch: &Batch) -> Vec<(String, TaskState)> {
        batch.reports.iter().map(|report| (report.task.to_string(), report.status.state)).collect()
    }

    #[test]
    fn the_latest_status_of_a_task_wins() {
        let board = Board::default();
        board.report(&id("a"), status(TaskState::Starting));
        board.report(&id("b"), status(TaskState::Running));
        board.report(&id("a"), status(TaskState::Running));
        let batch = board.take().unwrap();
        assert_eq!(states(&batch), [("a".into(), TaskState::Running), ("b".into(), TaskState::Running)]);
        assert_eq!(board.take(), None);
    }

    #[test]
    fn what_is_not_acknowledged_is_sent_again_after_a_reconnect() {
        let board = Board::default();
        board.report(&id("a"), status(TaskState::Running));
        let first = board.take().unwrap();
        board.report(&id("b"), status(TaskState::Running));
        let second = board.take().unwrap();
        board.acknowledge(first.number);
        board.rewind();
        let again = board.take().unwrap();
        assert_eq!(states(&again), [("b".into(), TaskState::Running)]);
        assert!(again.number > second.number);
        // An acknowledgement of the broken session means nothing any more.
        board.acknowledge(second.number);
        board.rewind();
        assert_eq!(states(&board.take().unwrap()), [("b".into(), TaskState::Running)]);
    }

    #[test]
    fn acknowledging_an_older_status_does_not_confirm_the_newer() {
        let board = Board::default();
        board.report(&id("a"), status(TaskState::Running));
        let first = board.take().unwrap();
        board.report(&id("a"), status(TaskState::Failed));
        board.acknowledge(first.number);
        let second = board.take().unwrap();
        assert_eq!(states(&second), [("a".into(), TaskState::Failed)]);
        assert!(board.lock().confirmed.is_empty());
        board.acknowledge(second.number);
        assert_eq!(board.lock().confirmed, BTreeSet::from([id("a")]));
    }

    #[test]
    fn too_many_batches_under_way_hold_the_next_back() {
        let board = Board::default();
        let mut last = 0;
        for round in 0..UNACKNOWLEDGED_BATCHES {
            board.report(&id(&format!("t{round}")), status(TaskState::Running));
            last = board.take().unwrap().number;
        }
        board.report(&id("late-1"), status(TaskState::Running));
        board.report(&id("late-2"), status(TaskState::Running));
        assert_eq!(board.take(), None);
        board.acknowledge(last);
        assert_eq!(board.take().unwrap().reports.len(), 2);
    }
}
