//! The bytes of snapshots and log entries: MessagePack with field names behind a small header.
//!
//! Equal values have equal bytes (every map is ordered), so peers may compare states by digest. A field may be added
//! with a serde default without a new format number; anything else needs one.

use std::sync::Arc;

use imbl::Vector;
use roster_proto::{
    id::{NodeId, Version},
    node::Node,
    report::Event,
    task::Task,
    time::Timestamp,
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::{
    Brake, ClusterState, Security, Service,
    brake::Departed,
    command::Entry,
    controllers::{ControllerInfo, Settings},
    index::Index,
    requests::Answered,
};

const SNAPSHOT_MAGIC: &[u8] = b"roster-state";
const SNAPSHOT_FORMAT: u8 = 1;
const ENTRY_FORMAT: u8 = 1;

/// Stored bytes that are not what they should be.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    #[error("these {length} bytes are not a snapshot of a cluster's state")]
    NotASnapshot { length: usize },
    #[error("{what} is of format {found}, this controller knows format {known}: run the version that wrote it")]
    UnknownFormat { what: &'static str, found: u8, known: u8 },
    #[error("{what} is damaged")]
    Damaged {
        what: &'static str,
        #[source]
        source: rmp_serde::decode::Error,
    },
    #[error("{what} is damaged: {extra} bytes follow its end")]
    TrailingBytes { what: &'static str, extra: usize },
    #[error("the snapshot contradicts itself: {0}")]
    Inconsistent(String),
}

#[derive(Serialize)]
struct SnapshotRef<'a> {
    version: Version,
    plan_base: Version,
    intent_base: Version,
    services: Vec<&'a Service>,
    tasks: Vec<&'a Task>,
    nodes: Vec<&'a Node>,
    controllers: Vec<&'a ControllerInfo>,
    settings: &'a Settings,
    events: Vec<&'a Event>,
    security: &'a Security,
    brake: Option<&'a Brake>,
    departed: Vec<(&'a NodeId, &'a Timestamp)>,
    requests: Vec<&'a Answered>,
}

#[derive(Deserialize)]
struct Snapshot {
    version: Version,
    plan_base: Version,
    intent_base: Version,
    services: Vec<Arc<Service>>,
    tasks: Vec<Arc<Task>>,
    nodes: Vec<Arc<Node>>,
    #[serde(default)]
    controllers: Vec<Arc<ControllerInfo>>,
    #[serde(default)]
    settings: Settings,
    events: Vec<Arc<Event>>,
    #[serde(default)]
    security: Arc<Security>,
    #[serde(default)]
    brake: Option<Brake>,
    #[serde(default)]
    departed: Vec<(NodeId, Timestamp)>,
    #[serde(default)]
    requests: Vec<Answered>,
}

impl ClusterState {
    pub fn encode(&self) -> Vec<u8> {
        let body = SnapshotRef {
            version: self.version,
            plan_base: self.plan_base,
            intent_base: self.intent_base,
            services: self.services.values().map(Arc::as_ref).collect(),
            tasks: self.tasks.values().map(Arc::as_ref).collect(),
            nodes: self.nodes.values().map(Arc::as_ref).collect(),
            controllers: self.controllers.values().map(Arc::as_ref).collect(),
            settings: &self.settings,
            events: self.events.iter().map(Arc::as_ref).collect(),
            security: &self.security,
            brake: self.brake.as_ref(),
            departed: self.departed.iter().collect(),
            requests: self.requests.iter().collect(),
        };
        let mut bytes = SNAPSHOT_MAGIC.to_vec();
        bytes.push(SNAPSHOT_FORMAT);
        write(&mut bytes, &body);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        let rest = bytes.strip_prefix(SNAPSHOT_MAGIC).ok_or(CodecError::NotASnapshot { length: bytes.len() })?;
        let snapshot: Snapshot = read("the snapshot", SNAPSHOT_FORMAT, rest)?;
        let state = Self {
            version: snapshot.version,
            plan_base: snapshot.plan_base,
            intent_base: snapshot.intent_base,
            index: Index::of(snapshot.tasks.iter()),
            services: snapshot.services.into_iter().map(|service| (service.id.clone(), service)).collect(),
            tasks: snapshot.tasks.into_iter().map(|task| (task.id.clone(), task)).collect(),
            nodes: snapshot.nodes.into_iter().map(|node| (node.id.clone(), node)).collect(),
            controllers: snapshot.controllers.into_iter().map(|controller| (controller.id, controller)).collect(),
            settings: snapshot.settings,
            events: snapshot.events.into_iter().collect::<Vector<_>>(),
            security: snapshot.security,
            brake: snapshot.brake,
            departed: snapshot.departed.into_iter().collect::<Departed>(),
            requests: snapshot.requests.into_iter().collect(),
        };
        state.refuse_contradictions()?;
        Ok(state)
    }

    fn refuse_contradictions(&self) -> Result<(), CodecError> {
        for task in self.tasks.values() {
            if self.task_spec(task).is_none() {
                let missing = format!("task {} runs a spec of service {} that is missing", task.id, task.service);
                return Err(CodecError::Inconsistent(missing));
            }
            // A node that was removed lives on in the history of its tasks.
            let ended = task.status.state.is_terminal();
            if let Some(node) = task.node.as_ref().filter(|node| !ended && !self.nodes.contains_key(*node)) {
                let missing = format!("task {} is bound to node {node}, which is missing", task.id);
                return Err(CodecError::Inconsistent(missing));
            }
        }
        Ok(())
    }
}

impl Entry {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![ENTRY_FORMAT];
        write(&mut bytes, self);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, CodecError> {
        read("the log entry", ENTRY_FORMAT, bytes)
    }
}

fn write(bytes: &mut Vec<u8>, value: &impl Serialize) {
    rmp_serde::encode::write_named(bytes, value)
        .expect("writing to memory cannot fail, and paths come from the wire as UTF-8");
}

fn read<T: DeserializeOwned>(what: &'static str, known: u8, bytes: &[u8]) -> Result<T, CodecError> {
    let (found, mut body) = bytes.split_first().map_or((0, bytes), |(format, body)| (*format, body));
    if found != known {
        return Err(CodecError::UnknownFormat { what, found, known });
    }
    let value = rmp_serde::from_read(&mut body).map_err(|source| CodecError::Damaged { what, source })?;
    match body.len() {
        0 => Ok(value),
        extra => Err(CodecError::TrailingBytes { what, extra }),
    }
}
