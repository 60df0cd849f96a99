//! What the log holds. Moments, ids and randomness are part of a command: minted before it is proposed.

use std::collections::{BTreeMap, BTreeSet};

use roster_proto::{
    cause::Cause,
    id::{ClusterId, ControllerName, NodeId, PeerId, ServiceId, Slot, StackName, TaskId, Version},
    node::{Availability, NodeDescription},
    spec::{ServiceSpec, StackSpec},
    task::{StopReason, TaskReport},
    time::Timestamp,
};
use serde::{Deserialize, Serialize};

use super::{AuthorityRecord, Grant, Holder, OneOff, Secret, TokenRole, UserRole, controllers::Settings};

/// A command with the moment it was proposed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub at: Timestamp,
    /// The id that the client gave its request: the same one again does nothing and is answered as before.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request: Option<String>,
    pub command: Command,
}

impl Entry {
    pub fn new(at: Timestamp, command: Command) -> Self {
        Self { at, request: None, command }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    PutStack {
        stack: StackSpec,
        /// Also take down the stack's services that are not in it.
        prune: bool,
        /// Refuse when specs or nodes changed since this version.
        base: Option<Version>,
    },
    RemoveStack {
        stack: StackName,
    },
    RemoveService {
        service: ServiceId,
    },
    /// All or none.
    Scale {
        replicas: BTreeMap<ServiceId, u32>,
    },
    /// Replaces every task of the services, as an update does, and these single tasks at once. All or none.
    Restart {
        services: BTreeSet<ServiceId>,
        tasks: BTreeSet<TaskId>,
    },
    /// A task that runs once, in the record of a service of its own.
    RunOnce {
        service: ServiceId,
        one_off: OneOff,
        spec: Box<ServiceSpec>,
    },
    /// Tasks that run stand still from now on, or go on. All or none; those that have ended are passed over.
    SetPaused {
        tasks: BTreeSet<TaskId>,
        paused: bool,
    },
    /// A node that is Down, or new, is not Ready by that: it must settle first.
    RegisterNode {
        node: NodeId,
        description: Box<NodeDescription>,
    },
    /// All at once: together they may engage the brake before anything is moved off one of them. Those that are
    /// unknown or Down already are passed over.
    SetNodesDown {
        nodes: Vec<NodeId>,
    },
    /// What the node must no longer run by its set of this generation has ended: it is Ready, unless the set has
    /// changed since.
    SettleNode {
        node: NodeId,
        generation: Version,
    },
    Report {
        node: NodeId,
        reports: Vec<TaskReport>,
    },
    SetAvailability {
        node: NodeId,
        availability: Availability,
    },
    /// Merges: first `remove`, then `put`.
    SetNodeLabels {
        node: NodeId,
        put: BTreeMap<String, String>,
        remove: Vec<String>,
    },
    /// Forgets the node, gives up its tasks, and refuses its certificates.
    RemoveNode {
        node: NodeId,
        /// Although tasks may still run there.
        force: bool,
    },
    /// Nothing happens to a node that is Ready again.
    SetNodeFenced {
        node: NodeId,
    },
    /// By hand. Nothing happens when it is not engaged.
    ReleaseBrake,

    /// Once in a cluster's life.
    InitCluster {
        cluster: ClusterId,
        authority: AuthorityRecord,
    },
    /// A controller joins, or is somewhere else or runs another release than before.
    PutController {
        id: PeerId,
        name: ControllerName,
        address: String,
        release: String,
        #[serde(default)]
        protocol: u32,
        /// Of one that joins.
        spare: bool,
    },
    /// A controller does not answer the leader, or answers again.
    SetControllerSilent {
        id: PeerId,
        silent: bool,
    },
    /// Who is to be a spare from now on, and who no longer. All or none.
    SetSpares {
        spares: BTreeMap<PeerId, bool>,
    },
    /// The controller is to be taken out of raft's configuration.
    DismissController {
        id: PeerId,
    },
    /// It is out of it, or never was in it.
    RemoveController {
        id: PeerId,
    },
    Configure {
        settings: Settings,
    },
    /// All that are to be trusted; the first signs.
    SetAuthorities {
        authorities: Vec<AuthorityRecord>,
    },
    PutToken {
        id: String,
        role: TokenRole,
        digest: Secret,
        expires: Timestamp,
        uses: u32,
    },
    RevokeToken {
        id: String,
    },
    /// Admits one member. Refused when the token is unknown, expired, used up, or its secret has another digest.
    UseToken {
        id: String,
        digest: Secret,
        /// Of whoever is admitted.
        name: String,
        grant: Grant,
    },
    /// A member has a newer certificate. Refused for one who was removed meanwhile.
    PutGrant {
        holder: Holder,
        grant: Grant,
    },
    PutUser {
        name: String,
        role: UserRole,
        grant: Grant,
    },
    RemoveUser {
        name: String,
    },

    /// Refused as a whole when `base` is not the state's `plan_base`.
    ApplyPlan {
        base: Version,
        changes: Vec<Change>,
    },
}

/// One edit inside a plan.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    CreateTask {
        task: TaskId,
        service: ServiceId,
        slot: Slot,
        spec_version: Version,
        not_before: Option<Timestamp>,
        attempt: u32,
        replaces: Option<TaskId>,
        /// What it waits for, when it is not assigned by the same plan.
        cause: Option<Cause>,
    },
    AssignTask {
        task: TaskId,
        node: NodeId,
        /// Whose namespaces it is to share there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        shares_with: Option<TaskId>,
    },
    /// Say what a pending task waits for.
    Explain {
        task: TaskId,
        cause: Cause,
    },
    StopTask {
        task: TaskId,
        reason: StopReason,
    },
    /// Its node is lost for it: it will not be heard of again.
    OrphanTask {
        task: TaskId,
        cause: Cause,
    },
    /// A slot's restart policy is used up: say so on its last task.
    GiveUp {
        task: TaskId,
        cause: Cause,
    },
    /// Forget a finished task that nothing needs any more.
    RemoveTask {
        task: TaskId,
    },
    /// Forget a service whose removal is complete.
    ForgetService {
        service: ServiceId,
    },
    /// The brake's time has run out.
    EndBrake,
    /// Take down what ran once and was to be forgotten then.
    Retire {
        service: ServiceId,
    },
}

/// What applying a command returned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// Something changed.
    Applied,
    /// The state was so already.
    Unchanged,
    Refused(Refusal),
}

/// Why a command was not applied. Nothing of it took effect.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Refusal {
    #[error("the cluster changed since this was planned (planned at version {base}, now {now}): plan again")]
    Stale { base: Version, now: Version },
    #[error("there is no stack {0}: `rctl services` lists what there is")]
    NoSuchStack(StackName),
    #[error("there is no service {0}: `rctl services` lists what there is")]
    NoSuchService(ServiceId),
    #[error("there is no task {0}: `rctl ps` lists what there is")]
    NoSuchTask(TaskId),
    #[error("task {task} has ended and another one has its place: name the replica, {name}, to restart that one")]
    Replaced { task: TaskId, name: String },
    #[error("{0} is a singleton (x-singleton): it must be able to end when its lease runs out, so it cannot be paused")]
    PausedSingleton(String),
    #[error(
        "{0} runs only once (`rctl run`): it cannot be changed, scaled, restarted or run again; `rctl rm {0}` removes it"
    )]
    OneOff(ServiceId),
    #[error(
        "there is a service or one-off task {0} already: choose another name, or remove that one with `rctl rm {0}`"
    )]
    ServiceExists(ServiceId),
    #[error("there is no node {0}: `rctl node ls` lists what there is")]
    NoSuchNode(NodeId),
    #[error("there is no controller {0}: `rctl cluster status` lists what there is")]
    NoSuchController(PeerId),
    #[error(
        "there is a controller {name} already ({id}): choose another name, or remove that one with `rctl cluster remove {name}`"
    )]
    ControllerExists { name: ControllerName, id: PeerId },
    #[error("no controller would have a vote: add or promote another one first")]
    LastVoter,
    #[error("service {0} is in global mode, one task on every node: it cannot be scaled")]
    GlobalService(ServiceId),
    #[error("service {0} is a singleton (x-singleton): never two of it at once, so it cannot have {1} replicas")]
    Singleton(ServiceId, u32),
    #[error("service {0} is being removed: apply its stack again to bring it back")]
    BeingRemoved(ServiceId),
    #[error("service {service} cannot publish port {port}: service {holder} already does; choose another port")]
    PortTaken { service: ServiceId, port: String, holder: ServiceId },
    #[error("service {service} needs a free host port and {first} to {last} are all taken")]
    NoFreePort { service: ServiceId, first: u16, last: u16 },
    #[error(
        "node {node} is Ready{}: `rctl node drain {node}` first; --force removes it all the same, and what it runs goes on until its agent is stopped", busy(.tasks)
    )]
    NodeBusy { node: NodeId, tasks: usize },
    #[error(
        "the singleton {task} may still run on node {node} until its lease there has run out: wait until it is replaced, or use --force when you know that the node is off"
    )]
    NotFenced { node: NodeId, task: String },
    #[error("node {node} was given no label {label}{}", agents(.own))]
    NoSuchLabel { node: NodeId, label: String, own: bool },
    #[error("{what} {value:?} is not allowed: {rule}")]
    InvalidLabel { what: String, value: String, rule: String },
    #[error("this cluster is initialised already, as {0}")]
    AlreadyInitialised(ClusterId),
    #[error("this cluster was never initialised: run `rctl cluster init` on its controller first")]
    NotInitialised,
    #[error("{what} is out of range: {rule}")]
    OutOfRange { what: String, rule: String },
    #[error("an authority that signs needs its certificate and its key")]
    NoAuthority,
    #[error("there is a join token {0} already")]
    TokenExists(String),
    #[error("there is no join token {0}: `rctl token ls` lists what there is")]
    NoSuchToken(String),
    #[error(
        "the join token is not known here: it was revoked, or is another cluster's, or is mistyped; `rctl token create` makes a new one"
    )]
    UnknownToken,
    #[error("join token {id} expired at {at}: `rctl token create` makes a new one")]
    TokenExpired { id: String, at: Timestamp },
    #[error("join token {0} is used up: `rctl token create` makes a new one")]
    TokenUsedUp(String),
    #[error("the {0} was removed from the cluster")]
    Removed(Holder),
    #[error("the cluster has a {0} already: choose another name, or remove that one first")]
    NameTaken(Holder),
    #[error("there is no user {0}: `rctl user ls` lists who there is")]
    NoSuchUser(String),
    #[error("{0}")]
    Limit(String),
}

fn busy(tasks: &usize) -> String {
    match tasks {
        0 => String::new(),
        1 => " and has a task".to_owned(),
        more => format!(" and has {more} tasks"),
    }
}

fn agents(own: &bool) -> &'static str {
    if *own { ": its agent was started with it (--label); set another value to hide that one" } else { "" }
}
