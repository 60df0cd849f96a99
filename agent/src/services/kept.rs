//! What is known of a failed container that is kept.

use roster_proto::{
    id::TaskId,
    wire::{self, container_answer::Answer, usage::Traffic},
};
use tokio::sync::mpsc;

use crate::{runtime::linux::LinuxRuntime, session::Failure};

pub(super) async fn tell(
    runtime: &LinuxRuntime,
    task: String,
    answers: mpsc::Sender<wire::ContainerAnswer>,
) -> Result<(), Failure> {
    let id = TaskId::new(task.as_str()).map_err(|error| Failure::Invalid(error.to_string()))?;
    let found =
        runtime.kept(&id).map_err(|error| Failure::Unavailable(format!("cannot read what is kept: {error}")))?;
    let kept = found.ok_or_else(|| {
        Failure::NotFound(format!(
            "nothing is kept of task {id} on this node: it had to make room, or its disk was limited (`storage_opt`)"
        ))
    })?;
    let figures = kept.figures;
    let block = figures.read.zip(figures.written).map(|(r#in, out)| Traffic { r#in, out });
    let told = wire::KeptFigures {
        started: kept.started.0,
        ended: kept.ended.at.0,
        cpu: figures.cpu,
        memory_peak: figures.memory_peak,
        memory_limit: figures.memory_limit,
        oom_kills: figures.oom_kills,
        pids_peak: figures.pids_peak,
        block,
    };
    // Nobody is left to tell when this fails.
    _ = answers.send(wire::ContainerAnswer { task, answer: Some(Answer::Kept(told)) }).await;
    Ok(())
}
