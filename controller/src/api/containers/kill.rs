//! A signal to many containers.

use std::{collections::BTreeMap, sync::Arc};

use roster_proto::{
    task::Task,
    wire::{self, container_answer::Answer, container_request::Request},
};
use tonic::Status;

use super::targets::ask_all;
use crate::{dispatch::broker::Broker, status::of_nodes};

const KILL: &str = "SIGKILL";
/// Longer than the name of any.
const MAX_SIGNAL: usize = 32;

/// Those that can be sent it are, whatever becomes of the others. An error is that of all.
pub(super) async fn kill(
    broker: &Arc<Broker>,
    tasks: &[Arc<Task>],
    signal: String,
) -> Result<wire::KillResponse, Status> {
    if signal.len() > MAX_SIGNAL {
        return Err(Status::invalid_argument("field signal: there is none with such a long name"));
    }
    let signal = if signal.is_empty() { KILL.to_owned() } else { signal };
    let names: BTreeMap<String, String> = tasks.iter().map(|task| (task.id.to_string(), task.name())).collect();
    let request = |tasks| Request::Signal(wire::SignalContainers { tasks, signal: signal.clone() });
    let mut response = wire::KillResponse::default();
    let mut errors = Vec::new();
    for (_, answers) in ask_all(broker, tasks, request).await {
        match answers {
            Err(error) => errors.push(error),
            Ok(answers) => answers.into_iter().for_each(|answer| note(&names, answer, &mut response)),
        }
    }
    if response.tasks.is_empty() && response.failures.is_empty() && !errors.is_empty() {
        return Err(of_nodes(&errors));
    }
    response.failures.extend(errors.iter().map(ToString::to_string));
    Ok(response)
}

fn note(names: &BTreeMap<String, String>, answer: wire::ContainerAnswer, response: &mut wire::KillResponse) {
    // An agent speaks of the tasks it was asked about, and of no others.
    let Some(name) = names.get(&answer.task) else { return };
    match answer.answer {
        Some(Answer::Refused(reason)) => response.failures.push(format!("{name} ({}): {reason}", answer.task)),
        Some(_) => response.tasks.push(wire::TaskName { task: answer.task, name: name.clone() }),
        None => {}
    }
}
