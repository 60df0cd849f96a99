//! A signal to containers' first processes.

use roster_proto::{
    id::TaskId,
    wire::{self, container_answer::Answer},
};
use roster_runtime::signal;
use tokio::sync::mpsc;

use crate::{runtime::linux::LinuxRuntime, session::Failure};

pub(super) async fn send(
    runtime: &LinuxRuntime,
    asked: wire::SignalContainers,
    answers: mpsc::Sender<wire::ContainerAnswer>,
) -> Result<(), Failure> {
    let signal = signal::parse(&asked.signal).ok_or_else(|| {
        let name = asked.signal.escape_debug();
        Failure::Invalid(format!("there is no signal \"{name}\": write a name or a number, as SIGTERM, TERM or 15"))
    })?;
    for task in asked.tasks {
        let id = TaskId::new(task.as_str()).map_err(|error| Failure::Invalid(error.to_string()))?;
        let answer = match runtime.signal(&id, signal).await {
            Ok(true) => Answer::Done(wire::container_answer::Done {}),
            Ok(false) => Answer::Refused("it runs no more".to_owned()),
            Err(error) => Answer::Refused(error.to_string()),
        };
        if answers.send(wire::ContainerAnswer { task, answer: Some(answer) }).await.is_err() {
            break;
        }
    }
    Ok(())
}
