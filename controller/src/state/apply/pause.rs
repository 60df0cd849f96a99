//! What people want to stand still.

use std::collections::BTreeSet;

use roster_proto::{id::TaskId, task::Task};

use super::Edit;
use crate::state::command::Refusal;

impl Edit<'_> {
    pub(super) fn set_paused(&mut self, tasks: &BTreeSet<TaskId>, paused: bool) -> Result<(), Refusal> {
        tasks.iter().try_for_each(|id| self.set_task_paused(id, paused))
    }

    fn set_task_paused(&mut self, id: &TaskId, paused: bool) -> Result<(), Refusal> {
        let task = self.state.tasks.get(id).cloned().ok_or_else(|| Refusal::NoSuchTask(id.clone()))?;
        if task.paused == paused || task.status.state.is_terminal() {
            return Ok(());
        }
        if paused && self.state.task_spec(&task).is_some_and(|spec| spec.singleton) {
            return Err(Refusal::PausedSingleton(task.name()));
        }
        let next = Task { paused, ..Task::clone(&task) };
        self.tell_task(&next, || match paused {
            true => format!("{} is to stand still", next.name()),
            false => format!("{} is to go on", next.name()),
        });
        self.put_task(next);
        Ok(())
    }
}
