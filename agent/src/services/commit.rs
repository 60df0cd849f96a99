//! A container made into an image: what it wrote, as an archive for the nodes that are to have it.
//!
//! Guarantees: a container that is paused for it goes on afterwards, also when whoever asked has gone away.

use std::{io, sync::Arc};

use roster_proto::{id::TaskId, wire};
use tokio::sync::mpsc;

use super::files::{Outlet, PART, WALKS};
use crate::{
    image::{Image, ImageError, ImageStore, Staged, Wanted},
    layers::Layers,
    runtime::{Runtime, RuntimeError, linux::LinuxRuntime, linux::record},
    session::Failure,
    telemetry::Chain,
};

pub(super) async fn commit(
    runtime: &Arc<LinuxRuntime>,
    images: &Arc<ImageStore>,
    asked: wire::CommitContainer,
    answers: mpsc::Sender<wire::ContainerAnswer>,
) -> Result<(), Failure> {
    let task = TaskId::new(asked.task.as_str()).map_err(|error| Failure::Invalid(error.to_string()))?;
    images.may_be_called(&asked.image)?;
    let unusable = |error: RuntimeError| Failure::Unavailable(error.to_string());
    if let Some(other) = runtime.foreign(&task).map_err(unusable)? {
        let text = format!("another runtime made the container ({other}), and only that one knows what it wrote");
        return Err(Failure::Precondition(text));
    }
    let layers = runtime.layers(&task).map_err(|error| Failure::NotFound(error.to_string()))?;
    // The container's own is the first, and the last is that of Roster's mount points.
    let below = layers.get(1..layers.len().saturating_sub(1)).unwrap_or_default();
    let base = images.under(&asked.base, below).await?;
    let wanted = Wanted {
        name: asked.image,
        message: asked.message,
        author: asked.author,
        created: record::now().to_string(),
        changes: asked.changes,
    };
    let (runtime, images, name) = (runtime.clone(), images.clone(), asked.task);
    let running = asked.running;
    // Goes on to its end without whoever waits for it.
    let staged = tokio::spawn(async move {
        let _permit = WALKS.acquire().await.map_err(|error| Failure::Unavailable(error.to_string()))?;
        let paused = !running && !runtime.is_frozen(&task);
        if paused {
            runtime.freeze(&task).await.map_err(unusable)?;
        }
        let staged = stage(images, base, wanted, layers).await;
        if paused {
            runtime.thaw(&task).await.map_err(unusable)?;
        }
        staged
    });
    let staged = staged.await.map_err(|error| Failure::Unavailable(format!("reading its files broke: {error}")))??;
    let outlet = io::BufWriter::with_capacity(PART, Outlet { task: name, answers });
    let sent = tokio::task::spawn_blocking(move || staged.send(outlet)).await;
    match sent.unwrap_or_else(|error| Err(io::Error::other(error))) {
        // Whoever asked has gone.
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Unavailable(format!("cannot send the image: {error}")))
        }
        _ => Ok(()),
    }
}

async fn stage(
    images: Arc<ImageStore>,
    base: Image,
    wanted: Wanted,
    layers: Vec<std::path::PathBuf>,
) -> Result<Staged, Failure> {
    let staging = tokio::task::spawn_blocking(move || {
        let layers = Layers::open(&layers)
            .map_err(|error| Failure::Unavailable(format!("cannot open the container's files: {}", Chain(&error))))?;
        let staged: Result<Staged, ImageError> = images.stage(&base, &wanted, |out| layers.upper(out));
        staged.map_err(Failure::from)
    });
    staging.await.map_err(|error| Failure::Unavailable(format!("reading its files broke: {error}")))?
}
