//! What people do with containers that run. What must last is proposed; what is of the moment is asked of the agents.

mod commit;
mod files;
mod kill;
mod pause;
mod restart;
mod run;
mod stats;
mod targets;
mod top;

use std::collections::BTreeSet;

use roster_proto::{
    id::TaskId,
    wire::{self, containers_server::Containers},
};
use tonic::{Request, Response, Status};

use super::{Api, Reply, ReplyStream, change, kept, read};
use crate::{
    forward::request_id,
    state::{ClusterState, command::Command},
};

/// The controllers' protocol of which these commands of the log are.
const PROTOCOL: u32 = 2;

#[tonic::async_trait]
impl Containers for Api {
    type DiffStream = ReplyStream<wire::Changes>;
    type ExportStream = ReplyStream<wire::ExportResponse>;
    type TopStream = ReplyStream<wire::TopResponse>;

    async fn kill(&self, request: Request<wire::KillRequest>) -> Reply<wire::KillResponse> {
        let wire::KillRequest { targets, signal } = request.into_inner();
        let tasks = targets::running(&self.cluster.read(), &targets)?;
        Ok(Response::new(kill::kill(&self.broker, &tasks, signal).await?))
    }

    async fn set_paused(&self, request: Request<wire::SetPausedRequest>) -> Reply<wire::SetPausedResponse> {
        let id = request_id(&request)?;
        let wire::SetPausedRequest { targets, paused } = request.into_inner();
        let state = self.cluster.read();
        all_know(&state)?;
        let tasks = targets::running(&state, &targets)?;
        let tasks: BTreeSet<TaskId> = tasks.iter().map(|task| task.id.clone()).collect();
        let changed = change(&self.cluster, id, Command::SetPaused { tasks: tasks.clone(), paused }).await?;
        let response = pause::until(&self.cluster, &tasks, paused, changed.version).await?;
        Ok(Response::new(response))
    }

    async fn diff(&self, request: Request<wire::DiffRequest>) -> Reply<Self::DiffStream> {
        let wire::DiffRequest { target, failed } = request.into_inner();
        let task = targets::one_or_kept(&self.cluster.read(), &target, failed)?;
        let broker = self.broker.clone();
        Ok(self.stream(|replies| files::diff(broker, task, replies)))
    }

    async fn export(&self, request: Request<wire::ExportRequest>) -> Reply<Self::ExportStream> {
        let wire::ExportRequest { target, failed } = request.into_inner();
        let task = targets::one_or_kept(&self.cluster.read(), &target, failed)?;
        let broker = self.broker.clone();
        Ok(self.stream(|replies| files::export(broker, task, replies)))
    }

    async fn commit(&self, request: Request<wire::CommitRequest>) -> Reply<wire::CommitResponse> {
        let images = commit::commit(&self.cluster.read(), &self.broker, request.into_inner()).await?;
        Ok(Response::new(wire::CommitResponse { images }))
    }

    async fn top(&self, request: Request<wire::TopRequest>) -> Reply<Self::TopStream> {
        let tasks = targets::running(&self.cluster.read(), &request.into_inner().targets)?;
        let broker = self.broker.clone();
        Ok(self.stream(|replies| top::send(broker, tasks, replies)))
    }

    async fn stats(&self, request: Request<wire::StatsRequest>) -> Reply<wire::StatsResponse> {
        let tasks = stats::tasks(&self.cluster.read(), &request.into_inner().targets)?;
        Ok(Response::new(stats::measure(&self.broker, &tasks).await))
    }

    async fn run(&self, request: Request<wire::RunRequest>) -> Reply<wire::RunResponse> {
        let id = request_id(&request)?;
        let state = read(&self.cluster, &request).await?;
        all_know(&state)?;
        let (service, command) = run::command(&state, request.into_inner(), id.as_deref())?;
        let changed = change(&self.cluster, id, command).await?;
        Ok(Response::new(wire::RunResponse { version: changed.version.0, service: service.into() }))
    }

    async fn kept(&self, request: Request<wire::KeptRequest>) -> Reply<wire::KeptResponse> {
        let task = kept::find(&self.cluster.read(), &request.into_inner().target)?;
        Ok(Response::new(kept::tell(&self.broker, &task).await?))
    }

    async fn restart(&self, request: Request<wire::RestartRequest>) -> Reply<wire::RestartResponse> {
        let id = request_id(&request)?;
        let state = self.cluster.read();
        all_know(&state)?;
        let (command, services) = restart::command(&state, &request.into_inner().targets)?;
        let changed = change(&self.cluster, id, command).await?;
        Ok(Response::new(wire::RestartResponse { version: changed.version.0, services }))
    }
}

/// A controller that does not know a command could not go on when it finds it in the log.
fn all_know(state: &ClusterState) -> Result<(), Status> {
    match state.controllers.values().find(|controller| controller.protocol < PROTOCOL) {
        None => Ok(()),
        Some(old) => Err(Status::failed_precondition(format!(
            "controller {} runs release {}, which cannot do this yet: upgrade it, and all others like it, first",
            old.name, old.release
        ))),
    }
}
