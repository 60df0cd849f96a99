//! Logs, images and containers of this host, also from inside, for users. What they ask for comes by way of the session.

mod commit;
mod files;
mod kept;
mod processes;
mod signal;
mod stats;
mod top;

use std::{
    collections::{BTreeSet, HashSet},
    sync::Arc,
};

use futures::StreamExt;
use roster_proto::{
    id::{NodeId, TaskId},
    report::{ImageInfo, LogLine},
    time::Timestamp,
    wire::{self, container_answer::Answer, container_request, live_work::Work},
};
use roster_runtime::error::StartError;
use roster_tree::TreeError;
use tokio::sync::mpsc;
use tokio_util::{io::StreamReader, sync::CancellationToken};

use crate::{
    clock,
    image::{ErrorKind, Image, ImageError, ImageStore, is_same_reference},
    runtime::{
        Runtime,
        linux::{
            LinuxRuntime, Seen,
            live::{LiveError, LiveInput, LiveOutput},
            logs::{LogError, LogQuery, read_logs},
        },
    },
    session::{Archive, Failure, Services},
    telemetry::Chain,
};

#[derive(Debug)]
pub struct HostServices {
    pub node: NodeId,
    pub runtime: Arc<LinuxRuntime>,
    pub images: Arc<ImageStore>,
}

impl Services for HostServices {
    async fn logs(
        &self,
        task: &TaskId,
        name: String,
        query: wire::LogQuery,
        lines: mpsc::Sender<Vec<LogLine>>,
    ) -> Result<(), Failure> {
        let source = self.runtime.log_source(task, name);
        let query = LogQuery {
            since: query.since.map(Timestamp),
            until: query.until.map(Timestamp),
            tail: query.tail,
            follow: query.follow,
        };
        let stop = CancellationToken::new();
        let mut batches = std::pin::pin!(read_logs(source, query, stop.clone()));
        let forward = async {
            while let Some(batch) = batches.next().await {
                if lines.send(batch?).await.is_err() {
                    break;
                }
            }
            Ok(())
        };
        let end = async {
            tokio::select! {
                // A container the runtime no longer knows has ended too.
                _ = self.runtime.ended(task) => {}
                () = clock::sleep_until(query.until) => {}
            }
            stop.cancel();
            std::future::pending::<()>().await;
        };
        tokio::select! {
            result = forward => result,
            () = end, if query.follow => Ok(()),
        }
    }

    async fn containers(
        &self,
        request: container_request::Request,
        answers: mpsc::Sender<wire::ContainerAnswer>,
    ) -> Result<(), Failure> {
        match request {
            container_request::Request::Signal(signal) => signal::send(&self.runtime, signal, answers).await,
            container_request::Request::Processes(asked) => top::list(&self.runtime, asked.tasks, answers).await,
            container_request::Request::Diff(task) => files::diff(&self.runtime, task, answers).await,
            container_request::Request::Export(task) => files::export(&self.runtime, task, answers).await,
            container_request::Request::Commit(asked) => {
                commit::commit(&self.runtime, &self.images, asked, answers).await
            }
            container_request::Request::Kept(task) => kept::tell(&self.runtime, task, answers).await,
            container_request::Request::Measure(asked) => stats::measure(&self.runtime, asked.tasks, answers).await,
        }
    }

    async fn live(&self, task: &TaskId, work: Work, input: LiveInput, output: LiveOutput) -> Result<(), Failure> {
        Ok(self.runtime.live(task, work, input, output).await?)
    }

    async fn load(&self, archive: Archive) -> Result<Vec<ImageInfo>, Failure> {
        let images = self.images.load(StreamReader::new(archive)).await?;
        Ok(self.told(&images))
    }

    async fn pull(&self, reference: &str) -> Result<Vec<ImageInfo>, Failure> {
        let image = self.images.pull(reference).await?;
        Ok(self.told(&[image]))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, Failure> {
        let images = self.images.list().await?;
        Ok(self.told(&images))
    }

    async fn remove(&self, reference: &str, in_use: BTreeSet<String>) -> Result<Vec<ImageInfo>, Failure> {
        // Under another name the image may stay, but a replacement of the task would look for this one.
        if in_use.iter().any(|used| is_same_reference(used, reference)) {
            return Err(ImageError::InUse { reference: reference.to_owned() }.into());
        }
        let mut ids = HashSet::new();
        for used in in_use {
            // A reference that does not resolve holds no image back.
            ids.extend(self.images.resolve(&used).await.ok().flatten().map(|image| image.id));
        }
        let image = self.images.resolve(reference).await?;
        let removed = self.images.remove(reference, &ids).await?;
        let told = image.map(|image| ImageInfo { names: removed.untagged, ..image.info(&self.node) });
        Ok(told.into_iter().collect())
    }
}

/// Answers of each task in turn; `look` blocks on the kernel for a moment.
async fn of_each(
    runtime: &LinuxRuntime,
    tasks: Vec<String>,
    answers: mpsc::Sender<wire::ContainerAnswer>,
    look: fn(&Seen) -> std::io::Result<Answer>,
) -> Result<(), Failure> {
    for task in tasks {
        let id = TaskId::new(task.as_str()).map_err(|error| Failure::Invalid(error.to_string()))?;
        let seen = runtime.see(&id);
        let looked = tokio::task::spawn_blocking(move || match seen {
            Ok(Some(seen)) => look(&seen).map_err(|error| error.to_string()),
            Ok(None) => Err("it runs no more".to_owned()),
            Err(error) => Err(error.to_string()),
        });
        let answer = match looked.await {
            Ok(answer) => answer.unwrap_or_else(Answer::Refused),
            Err(error) => return Err(Failure::Unavailable(format!("looking at {task} broke: {error}"))),
        };
        if answers.send(wire::ContainerAnswer { task, answer: Some(answer) }).await.is_err() {
            break;
        }
    }
    Ok(())
}

impl HostServices {
    fn told(&self, images: &[Image]) -> Vec<ImageInfo> {
        images.iter().map(|image| image.info(&self.node)).collect()
    }
}

impl From<ImageError> for Failure {
    fn from(error: ImageError) -> Self {
        let message = error.describe();
        match error.kind() {
            ErrorKind::NotFound => Failure::NotFound(message),
            ErrorKind::Invalid => Failure::Invalid(message),
            ErrorKind::Precondition => Failure::Precondition(message),
            ErrorKind::Unavailable => Failure::Unavailable(message),
        }
    }
}

impl From<LiveError> for Failure {
    fn from(error: LiveError) -> Self {
        let message = Chain(&error).to_string();
        match error {
            LiveError::NotRunning(_) | LiveError::NotKept(_) => Failure::NotFound(message),
            LiveError::Tree(TreeError::NotFound(_)) => Failure::NotFound(message),
            LiveError::Tree(TreeError::BrokenOff(_)) => Failure::Unavailable(message),
            LiveError::Start(StartError::Impossible { .. }) | LiveError::Wrong(_) => Failure::Invalid(message),
            LiveError::Tree(_) => Failure::Precondition(message),
            LiveError::CannotAttach | LiveError::TooSlow => Failure::Precondition(message),
            LiveError::OnlyKept(_)
            | LiveError::Inspected
            | LiveError::Paused
            | LiveError::Foreign(_)
            | LiveError::Start(_)
            | LiveError::Runtime(_) => Failure::Precondition(message),
            LiveError::BrokenOff(_) | LiveError::Io { .. } | LiveError::ShimDied => Failure::Unavailable(message),
        }
    }
}

impl From<LogError> for Failure {
    fn from(error: LogError) -> Self {
        let message = Chain(&error).to_string();
        match error {
            LogError::NotFound { .. } => Failure::NotFound(message),
            LogError::Read { .. } => Failure::Unavailable(message),
        }
    }
}
