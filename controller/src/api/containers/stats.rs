//! What containers use: one look, with one request for each node.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{
    id::TaskId,
    task::Task,
    wire::{self, container_answer::Answer, container_request::Request},
};
use tonic::Status;

use super::targets::{ask_all, name_of, runs, selections};
use crate::{dispatch::broker::Broker, state::ClusterState};

/// In one answer, which is some two megabytes then.
const MAX_TASKS: usize = 10_000;

/// What runs of what was named, of everything when nothing was. None at all is no error: it may be restarting.
pub(super) fn tasks(state: &ClusterState, names: &[String]) -> Result<Vec<Arc<Task>>, Status> {
    let mut found: BTreeMap<TaskId, Arc<Task>> = BTreeMap::new();
    let mut add = |task: &Arc<Task>| {
        if runs(task) {
            found.insert(task.id.clone(), Arc::clone(task));
        }
        found.len() <= MAX_TASKS
    };
    let few = match names {
        [] => state.tasks.values().all(&mut add),
        names => {
            let selections = selections(state, names)?;
            selections.iter().all(|selection| super::targets::tasks(state, selection).all(&mut add))
        }
    };
    match few {
        true => Ok(found.into_values().collect()),
        false => Err(Status::resource_exhausted(format!(
            "more than {MAX_TASKS} containers match: name a stack or a service"
        ))),
    }
}

pub(super) async fn measure(broker: &Arc<Broker>, tasks: &[Arc<Task>]) -> wire::StatsResponse {
    let by_id: BTreeMap<&str, &Arc<Task>> = tasks.iter().map(|task| (task.id.as_str(), task)).collect();
    let mut response = wire::StatsResponse::default();
    for (node, answers) in ask_all(broker, tasks, |tasks| Request::Measure(wire::MeasureContainers { tasks })).await {
        match answers {
            Err(error) => response.failures.push(error.to_string()),
            Ok(answers) => {
                for answer in answers {
                    // Of a task that has ended meanwhile there is nothing to tell.
                    if let Some(task) = by_id.get(answer.task.as_str())
                        && let Some(Answer::Usage(usage)) = answer.answer
                    {
                        response.tasks.push(wire::TaskUsage {
                            task: Some(name_of(task)),
                            service: task.service.to_string(),
                            node: node.to_string(),
                            usage: Some(*usage),
                        });
                    }
                }
            }
        }
    }
    response
}
