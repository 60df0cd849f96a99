//! Why a call to `Local` was refused or failed.

use std::sync::Arc;

use roster_proto::id::{ClusterId, InvalidId};

use super::{backup::BackupError, found::FoundError};
use crate::{
    cluster::ChangeError,
    home::HomeError,
    raft::{Fault, OpenError},
};

#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("this controller is busy with another such call: try again")]
    Busy,
    #[error(transparent)]
    Name(#[from] InvalidId),
    #[error("cannot call this controller after its host ({0}): give it a name with --name")]
    HostName(String),
    #[error(
        "nobody could reach this controller: start it with --listen ADDR:PORT (and --advertise HOST:PORT when others \
         reach it by another address), or give the address with the command"
    )]
    NoAddress,
    #[error("{0:?} is no address at which others reach this controller: write HOST:PORT")]
    BadAddress(String),
    #[error(
        "this controller would say after each start that it is at {configured}, not at {asked}: start it with --advertise \
         {asked}"
    )]
    OtherAddress { asked: String, configured: String },
    #[error(
        "this controller is of cluster {} already and cannot {verb} another: `rctl cluster leave` empties it",
        .cluster.as_ref().map_or("?", ClusterId::as_str)
    )]
    Member { verb: &'static str, cluster: Option<ClusterId> },
    #[error(
        "this controller holds {services} services and {tasks} tasks, which would be lost: remove its stacks first \
         (`rctl rm`), or {verb} with a controller that is empty"
    )]
    NotBlank { verb: &'static str, services: usize, tasks: usize },
    #[error("this controller is of no cluster")]
    NoMember,
    #[error(transparent)]
    Token(#[from] roster_tls::InvalidToken),
    #[error("this token admits agents, not controllers: `rctl token create --controller` makes one that does")]
    AgentToken,
    #[error("cannot join")]
    Enroll(#[source] roster_tls::EnrollError),
    #[error("the cluster gave this controller no id: its controllers are of an older release, upgrade them")]
    NoPeer,
    #[error(
        "this is the only controller that votes: leaving ends the cluster. Add another one first, or say --force to give \
         up everything the cluster holds"
    )]
    LastVoter,
    #[error(
        "the cluster could not be told ({0}): try again when its majority is back, or say --force and remove this \
         controller on another one, with `rctl cluster remove`"
    )]
    NotTold(String),
    #[error(
        "the cluster has a leader, {0}: nothing is to be recovered. `rctl cluster remove` removes a dead controller"
    )]
    HasLeader(String),
    #[error("the others that are given up must be named, all of them and nobody else: {0}")]
    OtherLost(String),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("the backup is larger than {0} bytes")]
    TooLarge(usize),
    #[error("the backup did not arrive")]
    Stream(#[source] Box<tonic::Status>),
    #[error(transparent)]
    Found(#[from] FoundError),
    #[error(transparent)]
    Change(#[from] ChangeError),
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error("the store failed")]
    Store(#[source] Arc<Fault>),
    #[error("the work broke")]
    Broke(#[from] tokio::task::JoinError),
}
