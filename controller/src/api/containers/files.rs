//! The files of one container, as its agent tells of them.

use std::sync::Arc;

use roster_proto::{
    task::Task,
    wire::{self, container_answer::Answer, container_request::Request},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::targets::ask;
use crate::dispatch::broker::Broker;

type Replies<T> = mpsc::Sender<Result<T, Status>>;

pub(super) async fn diff(broker: Arc<Broker>, task: Arc<Task>, replies: Replies<wire::Changes>) -> Result<(), Status> {
    let request = Request::Diff(task.id.to_string());
    hand_on(&broker, &task, request, replies, |answer| match answer {
        Answer::Changes(changes) => Some(changes),
        _ => None,
    })
    .await
}

pub(super) async fn export(
    broker: Arc<Broker>,
    task: Arc<Task>,
    replies: Replies<wire::ExportResponse>,
) -> Result<(), Status> {
    let request = Request::Export(task.id.to_string());
    hand_on(&broker, &task, request, replies, |answer| match answer {
        Answer::Data(data) => Some(wire::ExportResponse { data }),
        _ => None,
    })
    .await
}

/// Part by part, at the caller's pace.
async fn hand_on<T>(
    broker: &Arc<Broker>,
    task: &Task,
    request: Request,
    replies: Replies<T>,
    expected: impl Fn(Answer) -> Option<T>,
) -> Result<(), Status> {
    let node = task.node.as_ref().ok_or_else(|| Status::failed_precondition("the task has no node"))?;
    let mut answers = ask(broker, node, request).await?;
    while let Some(part) = answers.next_container().await {
        match part?.answer {
            Some(Answer::Refused(reason)) => return Err(Status::failed_precondition(reason)),
            Some(answer) => {
                let unexpected =
                    || Status::internal(format!("node {node} answered with something else than was asked"));
                let part = expected(answer).ok_or_else(unexpected)?;
                if replies.send(Ok(part)).await.is_err() {
                    break;
                }
            }
            None => {}
        }
    }
    Ok(())
}
