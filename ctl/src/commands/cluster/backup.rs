//! `cluster backup` and `cluster restore`: bytes between a file and the cluster.

use std::{fmt::Write, path::Path};

use futures::StreamExt;
use roster_proto::{
    time::Timestamp,
    wire::{self, cluster_client::ClusterClient},
};
use tokio::io::{AsyncRead, AsyncWriteExt};
use tokio_util::io::ReaderStream;

use super::super::{file, write_out};
use crate::{
    cli::Restore,
    client::{self, Transport, Wishes},
    error::{Ending, Error},
    render::list::bytes,
};

/// Well below gRPC's 4 MiB message limit, large enough not to matter.
const CHUNK: usize = 256 << 10;

pub(super) async fn backup(file: &Path, client: &mut ClusterClient<Transport>) -> Result<Ending, Error> {
    if file == Path::new("-") {
        let mut out = tokio::io::stdout();
        copy(client, &mut out).await?;
        return Ok(Ending::Done);
    }
    let file = &file::meant(file, "write - for standard output")?;
    // Beside the file, so that an earlier backup stays until this one is whole.
    let unfinished = unfinished(file)?;
    let written = async {
        let mut out = tokio::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&unfinished)
            .await
            .map_err(|error| Error::io(format!("cannot write {}", unfinished.display()), error))?;
        let size = copy(client, &mut out).await?;
        let finish = async {
            out.sync_all().await?;
            tokio::fs::rename(&unfinished, file).await
        };
        finish.await.map_err(|error| Error::io(format!("cannot write {}", file.display()), error))?;
        Ok(size)
    };
    match written.await {
        Ok(size) => {
            write_out(&format!(
                "Wrote {} to {}. The authority's key is inside: keep it as you keep a password.\n",
                bytes(size),
                file.display()
            ))?;
            Ok(Ending::Done)
        }
        Err(error) => {
            // What it failed with says more than that this fails as well.
            let _ = tokio::fs::remove_file(&unfinished).await;
            Err(error)
        }
    }
}

fn unfinished(file: &Path) -> Result<std::path::PathBuf, Error> {
    let name = file.file_name().ok_or_else(|| Error::Usage(format!("{} is not a file to write", file.display())))?;
    Ok(file.with_file_name(format!(".{}.{}", name.to_string_lossy(), std::process::id())))
}

async fn copy(
    client: &mut ClusterClient<Transport>,
    out: &mut (impl tokio::io::AsyncWrite + Unpin),
) -> Result<u64, Error> {
    let mut pieces = client.backup(wire::BackupRequest {}).await?.into_inner();
    let mut size = 0;
    while let Some(piece) = pieces.message().await? {
        size += piece.data.len() as u64;
        out.write_all(&piece.data).await.map_err(|error| Error::io("cannot write the backup", error))?;
    }
    out.flush().await.map_err(|error| Error::io("cannot write the backup", error))?;
    if size == 0 { Err(Error::Refused("the controller sent an empty backup".to_owned())) } else { Ok(size) }
}

pub(super) async fn restore(args: Restore, wishes: &Wishes) -> Result<Ending, Error> {
    let Restore { file, force, advertise, name } = args;
    let file = file.as_path();
    let archive: Box<dyn AsyncRead + Send + Unpin> = match file == Path::new("-") {
        true => Box::new(tokio::io::stdin()),
        false => {
            let open = tokio::fs::File::open(file).await;
            Box::new(open.map_err(|error| Error::io(format!("cannot open the backup {}", file.display()), error))?)
        }
    };
    let (tell, failure) = tokio::sync::oneshot::channel();
    let mut tell = Some(tell);
    let pieces = ReaderStream::with_capacity(archive, CHUNK)
        .map(move |chunk| match chunk {
            Ok(data) => Some(wire::RestoreRequest { data, ..Default::default() }),
            Err(error) => {
                if let Some(tell) = tell.take() {
                    // Nobody listens any more only when the call has failed already.
                    let _ = tell.send(error);
                }
                None
            }
        })
        .take_while(|piece| std::future::ready(piece.is_some()))
        .filter_map(std::future::ready);
    let first = wire::RestoreRequest {
        force,
        name: name.unwrap_or_default(),
        address: advertise.unwrap_or_default(),
        ..Default::default()
    };
    let parts = futures::stream::once(std::future::ready(first)).chain(pieces);
    let answer = client::local(wishes).await?.restore(parts).await;
    // Why the file could not be read matters more than what the controller made of its end.
    if let Ok(error) = failure.await {
        return Err(Error::io(format!("cannot read {}", file.display()), error));
    }
    let told = answer?.into_inner();
    let mut out = format!(
        "Cluster {} goes on from the backup of {} (by release {}): {} and {}. This host's controller is its only one, at \
         version {}.\n",
        told.cluster,
        Timestamp(told.backed_up_at),
        told.release,
        counted(told.services, "service"),
        counted(told.nodes, "node"),
        told.version,
    );
    if !told.forgotten.is_empty() {
        let _ = writeln!(
            out,
            "The controllers of then ({}) are forgotten. Empty them before they join anew (`rctl cluster leave --force` \
             there): none may go on with its old data. `rctl token create --role controller` lets them join.",
            told.forgotten.join(", ")
        );
    }
    write_out(&out)?;
    Ok(Ending::Done)
}

fn counted(count: u32, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}
