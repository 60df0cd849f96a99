//! The controllers: which there are, and changes of their parts. The wish is written down, the leader's loop fulfils it
//! ([`crate::leader::membership`]), and the call waits for that.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant, UNIX_EPOCH},
};

use roster_proto::{id::PeerId, wire};
use tonic::{Request, Response, Status};

use super::{ClusterApi, Reply};
use crate::{
    api::change,
    forward::request_id,
    raft::RaftStatus,
    state::{
        ClusterState,
        command::Command,
        controllers::{ControllerInfo, Settings},
    },
    status::retry_same_id,
};

/// How long a call waits for the new configuration. What it asked for comes about also afterwards.
const IN_FORCE_WITHIN: Duration = Duration::from_secs(30);
/// How often to look, besides at every change of the state.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// A controller that was heard so recently is there: several heartbeats.
const HEARD_WITHIN: Duration = Duration::from_secs(1);

impl ClusterApi {
    /// What this controller knows; how the others fare only the leader does.
    pub(super) fn overview(&self) -> wire::ClusterStatus {
        let (state, raft) = (self.cluster.read(), self.cluster.raft_status());
        let authorities = &state.security.authorities;
        wire::ClusterStatus {
            cluster: state.security.cluster.as_ref().map(ToString::to_string).unwrap_or_default(),
            leader: raft.leader.map_or(0, |leader| leader.0),
            term: raft.term,
            commit: raft.commit,
            version: state.version.0,
            controllers: state.controllers.values().map(|known| self.controller(known, &raft)).collect(),
            settings: Some(settings_view(&state.settings)),
            brake: state.brake.as_ref().map(Into::into),
            authorities: authorities.iter().map(|known| hex(&roster_tls::fingerprint(&known.certificate))).collect(),
            answered_by: raft.id.0,
        }
    }

    fn controller(&self, known: &ControllerInfo, raft: &RaftStatus) -> wire::Controller {
        use wire::controller::Role;
        let role = match known.id {
            id if raft.voters.contains(&id) => Role::Voter,
            _ if known.spare => Role::Spare,
            _ => Role::Learner,
        };
        let own = known.id == raft.id;
        let heard = self.peers.as_ref().and_then(|peers| peers.heard(known.id));
        let progress = raft.progress.get(&known.id);
        let matched = if own { raft.commit } else { progress.map_or(0, |progress| progress.matched) };
        let now = self.cluster.now().0;
        let last_heard = heard.and_then(|(_, at)| at.duration_since(UNIX_EPOCH).ok());
        wire::Controller {
            id: known.id.0,
            name: known.name.to_string(),
            address: known.address.clone(),
            role: role.into(),
            release: known.release.clone(),
            reachable: match raft.leader {
                // Followers hear little of each other, and so has who led none of them until now.
                Some(leader) if leader != raft.id || raft.new_to_lead => known.silent_since.is_none(),
                _ => own || heard.is_some_and(|(at, _)| at.elapsed() <= HEARD_WITHIN),
            },
            matched,
            last_heard: if own { now } else { last_heard.map_or(0, |at| u64::try_from(at.as_micros()).unwrap_or(0)) },
            protocol: known.protocol,
        }
    }

    pub(super) async fn set_vote(
        &self,
        request: Request<wire::ControllerRequest>,
        vote: bool,
    ) -> Reply<wire::ClusterStatus> {
        let asked = request_id(&request)?;
        let target = self.find(&request.get_ref().controller)?;
        if !vote && !self.has_answered(asked.as_deref()) {
            self.refuse_losing(&target, "taking the vote of").await?;
        }
        change(&self.cluster, asked, Command::SetSpares { spares: [(target.id, !vote)].into() }).await?;
        let name = &target.name;
        let why = if vote {
            format!("controller {name} has not caught up yet: it gets its vote as soon as it has")
        } else {
            format!("controller {name} still has its vote: it loses it as soon as the others can decide that")
        };
        self.until(&why, |_, raft| raft.outgoing.is_empty() && raft.voters.contains(&target.id) == vote).await
    }

    pub(super) async fn remove(&self, request: Request<wire::ControllerRequest>) -> Reply<wire::ClusterStatus> {
        let asked = request_id(&request)?;
        // Perhaps by another leader.
        let again = self.has_answered(asked.as_deref());
        let target = match self.find(&request.get_ref().controller) {
            Err(_) if again => return Ok(Response::new(self.overview())),
            found => found?,
        };
        if !again {
            self.refuse_losing(&target, "removing").await?;
        }
        change(&self.cluster, asked, Command::DismissController { id: target.id }).await?;
        let why = format!("controller {} is still being removed", target.name);
        self.until(&why, |state, _| !state.controllers.contains_key(&target.id)).await
    }

    pub(super) async fn hand_over(&self, name: &str) -> Reply<wire::ClusterStatus> {
        let target = self.find(name)?;
        let raft = self.cluster.raft_status();
        if raft.leader != Some(target.id) {
            if !raft.voters.contains(&target.id) {
                let words = format!("controller {} has no vote and cannot lead: promote it first", target.name);
                return Err(Status::failed_precondition(words));
            }
            self.cluster.transfer_leadership(target.id).await?;
        }
        Ok(Response::new(self.overview()))
    }

    pub(super) async fn set(&self, request: Request<wire::ClusterSettings>) -> Reply<wire::ClusterSettings> {
        let id = request_id(&request)?;
        let asked = request.into_inner();
        let settings = Settings {
            replace_controller_after: asked.replace_controller_after,
            brake_for: asked.brake_for,
            certificate_lifetime: asked.certificate_lifetime,
        };
        change(&self.cluster, id, Command::Configure { settings }).await?;
        Ok(Response::new(settings_view(&self.cluster.read().settings)))
    }

    pub(super) async fn release(&self, request: Request<wire::ReleaseBrakeRequest>) -> Reply<wire::ClusterStatus> {
        change(&self.cluster, request_id(&request)?, Command::ReleaseBrake).await?;
        Ok(Response::new(self.overview()))
    }

    /// By its name or id.
    fn find(&self, name: &str) -> Result<ControllerInfo, Status> {
        let state = self.cluster.read();
        let found =
            state.controllers.values().find(|known| known.name.as_str() == name || known.id.to_string() == name);
        found.map(|known| ControllerInfo::clone(known)).ok_or_else(|| {
            Status::not_found(format!("there is no controller {name:?}: `rctl cluster status` lists what there is"))
        })
    }

    fn has_answered(&self, request: Option<&str>) -> bool {
        request.is_some_and(|id| self.cluster.read().has_answered(id))
    }

    /// A leader that has only just begun to lead may yet have to hear the others.
    async fn refuse_losing(&self, target: &ControllerInfo, verb: &str) -> Result<(), Status> {
        let give_up = Instant::now() + HEARD_WITHIN;
        loop {
            match could_go_on(target, &self.cluster.raft_status(), verb) {
                Err(_) if Instant::now() < give_up => tokio::time::sleep(LOOK_EVERY).await,
                said => return said,
            }
        }
    }

    /// Waits until it is so, and tells how things are then.
    async fn until(
        &self,
        why: &str,
        mut so: impl FnMut(&ClusterState, &RaftStatus) -> bool,
    ) -> Reply<wire::ClusterStatus> {
        let mut states = self.cluster.watch();
        let wait = async {
            loop {
                let state = states.borrow_and_update().clone();
                let raft = self.cluster.raft_status();
                if so(&state, &raft) {
                    return Ok(Response::new(self.overview()));
                }
                if raft.leader != Some(raft.id) {
                    return Err(retry_same_id(format!("{why}; the leadership moved meanwhile")));
                }
                tokio::select! {
                    changed = states.changed() => {
                        changed.map_err(|_| Status::unavailable("the controller's store stopped: try again"))?;
                    }
                    () = tokio::time::sleep(LOOK_EVERY) => {}
                    () = self.shutdown.cancelled() => {
                        return Err(retry_same_id(format!("{why}; the controller is stopping")));
                    }
                }
            }
        };
        match tokio::time::timeout(IN_FORCE_WITHIN, wait).await {
            Ok(done) => done,
            Err(_) => Err(Status::deadline_exceeded(format!("{why} (`rctl cluster status` shows when)"))),
        }
    }
}

/// Whether the voters that would be left could go on. The leader's own vote counts as one that answers.
fn could_go_on(target: &ControllerInfo, raft: &RaftStatus, verb: &str) -> Result<(), Status> {
    if !raft.voters.contains(&target.id) {
        return Ok(());
    }
    let refuse = |words: String| Err(Status::failed_precondition(words));
    let left: BTreeSet<PeerId> = raft.voters.iter().copied().filter(|voter| *voter != target.id).collect();
    if left.is_empty() {
        return refuse(format!("{} is the only controller with a vote: promote another one first", target.name));
    }
    let answers =
        |voter: &&PeerId| **voter == raft.id || raft.progress.get(*voter).is_some_and(|progress| progress.active);
    let alive = left.iter().filter(answers).count();
    if 2 * alive <= left.len() {
        return refuse(format!(
            "{verb} {} would leave {} voters of which {alive} answer, too few to decide anything: bring another one \
             back or add one first",
            target.name,
            left.len(),
        ));
    }
    let all = raft.voters.iter().filter(answers).count();
    if 2 * all <= raft.voters.len() {
        return refuse(format!(
            "{all} of {} voters answer, too few to decide anything: bring one back; when they are lost for good, \
             `rctl cluster recover` on one that is left",
            raft.voters.len(),
        ));
    }
    Ok(())
}

fn settings_view(settings: &Settings) -> wire::ClusterSettings {
    wire::ClusterSettings {
        replace_controller_after: settings.replace_controller_after,
        brake_for: settings.brake_for,
        certificate_lifetime: settings.certificate_lifetime,
    }
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        write!(text, "{byte:02x}").expect("a String takes whatever is written");
        text
    })
}
