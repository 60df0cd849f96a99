//! What a restart of these names is.

use std::collections::BTreeSet;

use roster_proto::id::{ServiceId, TaskId};
use tonic::Status;

use super::targets;
use crate::{
    plan::current_tasks,
    state::{ClusterState, command::Command},
};

/// The command, and the services whose tasks it replaces.
pub(super) fn command(state: &ClusterState, names: &[String]) -> Result<(Command, Vec<String>), Status> {
    let mut services: BTreeSet<ServiceId> = BTreeSet::new();
    let mut tasks: BTreeSet<TaskId> = BTreeSet::new();
    let mut touched: BTreeSet<ServiceId> = BTreeSet::new();
    for selection in targets::selections(state, names)? {
        let mut meant: Vec<&ServiceId> = state.services.keys().filter(|id| selection.has_service(id)).collect();
        if meant.len() > 1 {
            // Of a stack; what runs once in it is not begun anew.
            meant.retain(|id| state.services.get(*id).is_some_and(|service| service.one_off.is_none()));
        }
        touched.extend(meant.iter().copied().cloned());
        match (selection.single_task(), selection.narrows_tasks()) {
            (Some(task), _) => _ = tasks.insert(task.clone()),
            (None, true) => {
                let current = meant.iter().flat_map(|id| current_tasks(state, id));
                tasks.extend(current.filter(|task| selection.has_task(task)).map(|task| task.id.clone()));
            }
            (None, false) => services.extend(meant.into_iter().cloned()),
        }
    }
    // Of a service that is restarted as a whole, no replica need be named.
    tasks.retain(|task| state.tasks.get(task).is_none_or(|task| !services.contains(&task.service)));
    Ok((Command::Restart { services, tasks }, touched.iter().map(ToString::to_string).collect()))
}
