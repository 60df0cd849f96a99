//! A container made into an image: its node says what is in it, and every node that is Ready loads that.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use roster_proto::wire::{self, container_answer::Answer as Said, container_request, request::Request};
use tonic::Status;

use super::targets::{self, ask};
use crate::{
    api::{images, validate::image_reference_allowed},
    dispatch::broker::{Answer, Broker, Upload},
    state::ClusterState,
};

/// Letters of a message or an author.
const MAX_WORDS: usize = 4096;
const MAX_CHANGES: usize = 1_000;

pub(super) async fn commit(
    state: &ClusterState,
    broker: &Arc<Broker>,
    request: wire::CommitRequest,
) -> Result<images::Images, Status> {
    let mut commit = checked(request.commit.unwrap_or_default())?;
    let task = targets::one(state, &request.target)?;
    let node = task.node.as_ref().ok_or_else(|| Status::failed_precondition("the task has no node"))?;
    let nodes = images::nodes(state, &[])?;
    commit.task = task.id.to_string();
    commit.base = state.task_spec(&task).map(|spec| spec.image.clone()).unwrap_or_default();
    let base = commit.base.clone();
    let mut archive = ask(broker, node, container_request::Request::Commit(commit)).await?;
    // What cannot be committed is refused before anybody is asked to load it.
    let Some(first) = piece(&mut archive).await? else {
        return Err(Status::unavailable(format!("node {node} sent no image: try again")));
    };
    let mut answers = Vec::with_capacity(nodes.len());
    let mut uploads = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let load = Request::ImageLoad(wire::ImageLoad { base: base.clone() });
        let (answer, upload) = broker.ask_with_upload(node, load).await?;
        answers.push(answer);
        uploads.push(upload);
    }
    let answered = async { Ok(join_all(answers.into_iter().map(Answer::images)).await) };
    // An archive that breaks off ends both: what is dropped tells the agents.
    let ((), answers) = futures::try_join!(hand_on(first, archive, uploads), answered)?;
    images::whole(answers)
}

/// A node that takes no more is left out: its answer says why.
async fn hand_on(first: Bytes, mut archive: Answer, mut uploads: Vec<Upload>) -> Result<(), Status> {
    let mut next = Some(first);
    while let Some(data) = next {
        let taken = join_all(uploads.iter().map(|upload| upload.send(data.clone()))).await;
        let mut taken = taken.iter();
        uploads.retain(|_| taken.next().is_some_and(Result::is_ok));
        if uploads.is_empty() {
            return Ok(());
        }
        next = piece(&mut archive).await?;
    }
    // Refused here as above: the answer says why.
    let _refused = join_all(uploads.into_iter().map(Upload::finish)).await;
    Ok(())
}

async fn piece(archive: &mut Answer) -> Result<Option<Bytes>, Status> {
    match archive.next_container().await {
        None => Ok(None),
        Some(part) => match part?.answer {
            Some(Said::Data(data)) => Ok(Some(data)),
            Some(Said::Refused(reason)) => Err(Status::failed_precondition(reason)),
            _ => Err(Status::internal("the node answered with something else than was asked")),
        },
    }
}

fn checked(commit: wire::CommitContainer) -> Result<wire::CommitContainer, Status> {
    let wrong = |field: &str, problem: String| Status::invalid_argument(format!("field {field}: {problem}"));
    image_reference_allowed(&commit.image).map_err(|problem| wrong("image", problem))?;
    for (field, words) in [("message", &commit.message), ("author", &commit.author)] {
        if words.len() > MAX_WORDS {
            return Err(wrong(field, format!("has {} bytes, {MAX_WORDS} are allowed", words.len())));
        }
    }
    if commit.changes.len() > MAX_CHANGES {
        return Err(wrong("changes", format!("{} are too many, {MAX_CHANGES} are allowed", commit.changes.len())));
    }
    Ok(commit)
}
