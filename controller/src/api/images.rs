//! Images: every call is carried out by each node named, by all that are Ready when none is.

use std::sync::Arc;

use bytes::Bytes;
use futures::future::join_all;
use roster_proto::{
    id::NodeId,
    node::NodeState,
    wire::{self, load_image_request::Part, request::Request},
};
use tonic::{Status, Streaming};

use super::{filter::resolve_node, validate::image_reference_allowed};
use crate::{
    dispatch::{
        broker::{Answer, AskError, Broker, Upload},
        not_cancelled,
    },
    state::ClusterState,
    status::of_nodes,
};

/// An archive travels on in pieces of at most this size.
const CHUNK: usize = 256 * 1024;

pub(super) type Images = Vec<wire::ImageInfo>;

/// The nodes that are meant.
pub(super) fn nodes(state: &ClusterState, names: &[String]) -> Result<Vec<NodeId>, Status> {
    if !names.is_empty() {
        let mut nodes = Vec::with_capacity(names.len());
        for name in names {
            let node = resolve_node(state, name)?;
            if !nodes.contains(&node) {
                nodes.push(node);
            }
        }
        return Ok(nodes);
    }
    let ready = state.nodes.values().filter(|node| node.state == NodeState::Ready);
    let nodes: Vec<NodeId> = ready.map(|node| node.id.clone()).collect();
    if nodes.is_empty() {
        return Err(Status::unavailable("no node is Ready: start an agent; `rctl node ls` lists the nodes"));
    }
    Ok(nodes)
}

pub(super) async fn pull(broker: &Arc<Broker>, nodes: &[NodeId], reference: String) -> Result<Images, Status> {
    checked(&reference)?;
    let request = Request::ImagePull(wire::ImagePull { reference });
    whole(join_all(nodes.iter().map(|node| ask(broker, node, request.clone()))).await)
}

pub(super) async fn list(broker: &Arc<Broker>, nodes: &[NodeId]) -> Result<Images, Status> {
    let request = Request::ImageList(wire::ImageList {});
    whole(join_all(nodes.iter().map(|node| ask(broker, node, request.clone()))).await)
}

/// The names of the nodes that had it. A node without it is an error only when all are.
pub(super) async fn remove(broker: &Arc<Broker>, nodes: &[NodeId], reference: String) -> Result<Vec<String>, Status> {
    checked(&reference)?;
    let request = Request::ImageRemove(wire::ImageRemove { reference });
    let answers = join_all(nodes.iter().map(|node| ask(broker, node, request.clone()))).await;
    let (mut removed, mut absent, mut errors) = (Vec::new(), Vec::new(), Vec::new());
    for (node, answer) in nodes.iter().zip(answers) {
        match answer {
            Ok(_) => removed.push(node.to_string()),
            Err(error @ AskError::Failed { kind: wire::failure::Kind::NotFound, .. }) => absent.push(error),
            Err(error) => errors.push(error),
        }
    }
    match (errors.is_empty(), removed.is_empty()) {
        (false, _) => Err(of_nodes(&errors)),
        (true, true) => Err(of_nodes(&absent)),
        (true, false) => Ok(removed),
    }
}

/// Hands the archive on to every node as it arrives, at the pace of the slowest; no more than a few pieces are held.
pub(super) async fn load(
    state: &ClusterState,
    broker: &Arc<Broker>,
    mut archive: Streaming<wire::LoadImageRequest>,
) -> Result<Images, Status> {
    let Some(Part::Header(header)) = archive.message().await?.and_then(|first| first.part) else {
        return Err(Status::invalid_argument("the first message must name the nodes"));
    };
    let nodes = nodes(state, &header.nodes)?;
    let mut answers = Vec::with_capacity(nodes.len());
    let mut uploads = Vec::with_capacity(nodes.len());
    for node in &nodes {
        let request = Request::ImageLoad(wire::ImageLoad::default());
        let (answer, upload) = broker.ask_with_upload(node, request).await?;
        answers.push(answer);
        uploads.push(upload);
    }
    let answered = async { Ok(join_all(answers.into_iter().map(Answer::images)).await) };
    // A caller that breaks off ends both: what is dropped tells the agents.
    let ((), answers) = futures::try_join!(hand_on(archive, uploads), answered)?;
    whole(answers)
}

/// A node that takes no more is left out: its answer says why.
async fn hand_on(mut archive: Streaming<wire::LoadImageRequest>, mut uploads: Vec<Upload>) -> Result<(), Status> {
    while let Some(message) = archive.message().await? {
        let Some(Part::Data(mut data)) = message.part else {
            return Err(Status::invalid_argument("after the first message only data may follow"));
        };
        while !data.is_empty() && !uploads.is_empty() {
            let piece: Bytes = data.split_to(data.len().min(CHUNK));
            let taken = join_all(uploads.iter().map(|upload| upload.send(piece.clone()))).await;
            let mut taken = taken.iter();
            uploads.retain(|_| taken.next().is_some_and(Result::is_ok));
        }
        if uploads.is_empty() {
            return Ok(());
        }
    }
    not_cancelled().await;
    // Refused here as above: the answer says why.
    let _refused = join_all(uploads.into_iter().map(Upload::finish)).await;
    Ok(())
}

async fn ask(broker: &Arc<Broker>, node: &NodeId, request: Request) -> Result<Images, AskError> {
    broker.ask(node, request).await?.images().await
}

/// All nodes' images, or all nodes' errors.
pub(super) fn whole(answers: Vec<Result<Images, AskError>>) -> Result<Images, Status> {
    let (mut images, mut errors) = (Vec::new(), Vec::new());
    for answer in answers {
        match answer {
            Ok(more) => images.extend(more),
            Err(error) => errors.push(error),
        }
    }
    if errors.is_empty() { Ok(images) } else { Err(of_nodes(&errors)) }
}

fn checked(reference: &str) -> Result<(), Status> {
    image_reference_allowed(reference)
        .map_err(|problem| Status::invalid_argument(format!("field reference: {problem}")))
}
