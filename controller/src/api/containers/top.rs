//! Processes of many containers, each node's as they come.

use std::{collections::BTreeMap, sync::Arc};

use futures::StreamExt;
use roster_proto::{
    id::NodeId,
    task::Task,
    wire::{self, container_answer::Answer, container_request::Request},
};
use tokio::sync::mpsc;
use tonic::Status;

use super::targets::{ask, by_node, name_of};
use crate::dispatch::broker::{AskError, Broker};

/// Nodes that are asked at a time: an answer may be a megabyte.
const AT_ONCE: usize = 8;

type Replies = mpsc::Sender<Result<wire::TopResponse, Status>>;

/// A node that cannot be asked is told of for each of its tasks.
pub(super) async fn send(broker: Arc<Broker>, tasks: Vec<Arc<Task>>, replies: Replies) -> Result<(), Status> {
    let nodes = by_node(&tasks).into_iter();
    let asking: Vec<_> = nodes.map(|(node, ids)| of_node(&broker, node, ids, &tasks, &replies)).collect();
    let mut asked = futures::stream::iter(asking).buffer_unordered(AT_ONCE);
    while asked.next().await.is_some() {}
    Ok(())
}

async fn of_node(broker: &Arc<Broker>, node: &NodeId, ids: Vec<String>, tasks: &[Arc<Task>], replies: &Replies) {
    let named = |task: &&Arc<Task>| ids.iter().any(|id| *id == task.id.as_str());
    let mut open: BTreeMap<String, wire::TaskName> =
        tasks.iter().filter(named).map(|task| (task.id.to_string(), name_of(task))).collect();
    let failed = match hear(broker, node, ids, &mut open, replies).await {
        Ok(()) => "the agent had nothing to say of it".to_owned(),
        Err(error) => error.to_string(),
    };
    for task in open.into_values() {
        let missing = wire::TopResponse { task: Some(task), processes: None, failure: Some(failed.clone()) };
        if replies.send(Ok(missing)).await.is_err() {
            return;
        }
    }
}

/// Takes out of `open` what was answered.
async fn hear(
    broker: &Arc<Broker>,
    node: &NodeId,
    tasks: Vec<String>,
    open: &mut BTreeMap<String, wire::TaskName>,
    replies: &Replies,
) -> Result<(), AskError> {
    let mut answer = ask(broker, node, Request::Processes(wire::ListProcesses { tasks })).await?;
    while !open.is_empty()
        && let Some(part) = answer.next_container().await
    {
        let part = part?;
        let Some(task) = open.remove(&part.task) else { continue };
        let (processes, failure) = match part.answer {
            Some(Answer::Processes(processes)) => (Some(processes), None),
            Some(Answer::Refused(reason)) => (None, Some(reason)),
            _ => (None, Some("the agent answered with something else than processes".to_owned())),
        };
        if replies.send(Ok(wire::TopResponse { task: Some(task), processes, failure })).await.is_err() {
            break;
        }
    }
    Ok(())
}
