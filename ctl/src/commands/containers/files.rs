//! `diff`, `export`.

use std::{
    fs::{self, File},
    io::{self, IsTerminal, Write},
    path::Path,
};

use roster_proto::wire::{self, file_change::Kind};
use serde::Serialize;

use crate::{
    cli::{Diff, Export},
    client::{self, Wishes},
    commands::{file, write_out},
    error::{Ending, Error},
    render::usage::escaped,
};

#[derive(Debug, Serialize)]
struct ChangeView {
    kind: &'static str,
    path: String,
}

impl ChangeView {
    fn new(change: &wire::FileChange) -> Self {
        let kind = match change.kind() {
            Kind::Added => "added",
            Kind::Changed => "changed",
            Kind::Deleted => "deleted",
            Kind::Unspecified => "unknown",
        };
        Self { kind, path: format!("/{}", escaped(&change.path)) }
    }

    fn line(&self) -> String {
        let letter = match self.kind {
            "added" => 'A',
            "changed" => 'C',
            "deleted" => 'D',
            _ => '?',
        };
        format!("{letter} {}\n", self.path)
    }
}

/// As they come, except as a document, which is one.
pub(in crate::commands) async fn diff(args: Diff, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let mut stream =
        containers.diff(wire::DiffRequest { target: args.target, failed: args.failed }).await?.into_inner();
    let is_document = args.output.output.document(&()).is_some();
    let mut all = Vec::new();
    while let Some(part) = stream.message().await? {
        let views = part.changes.iter().map(ChangeView::new);
        if is_document {
            all.extend(views);
        } else {
            write_out(&views.map(|view| view.line()).collect::<String>())?;
        }
    }
    if let Some(document) = args.output.output.document(&all) {
        write_out(&document)?;
    }
    Ok(Ending::Done)
}

pub(in crate::commands) async fn export(args: Export, wishes: &Wishes) -> Result<Ending, Error> {
    if args.output.is_none() && io::stdout().is_terminal() {
        return Err(Error::Usage(
            "an archive is nothing for a terminal: name a file with -o, or pipe it on".to_owned(),
        ));
    }
    let instead = "leave -o out and redirect the output";
    let output = args.output.map(|path| file::meant(&path, instead)).transpose()?;
    let (mut containers, _) = client::containers(wishes).await?;
    let stream =
        containers.export(wire::ExportRequest { target: args.target, failed: args.failed }).await?.into_inner();
    match output {
        None => pour(stream, io::stdout().lock(), "standard output").await?,
        Some(path) => into_file(stream, &path).await?,
    }
    Ok(Ending::Done)
}

type Pieces = tonic::Streaming<wire::ExportResponse>;

/// Under another name until it is whole, so that a file of that name is always a whole archive.
async fn into_file(stream: Pieces, path: &Path) -> Result<(), Error> {
    let shown = path.display().to_string();
    let failed = |error| Error::io(format!("cannot write {shown}"), error);
    let mut name = path.file_name().ok_or_else(|| Error::Usage(format!("{shown} is no name of a file")))?.to_owned();
    name.push(format!(".{}.part", std::process::id()));
    let part = path.with_file_name(name);
    let file = File::create_new(&part).map_err(failed)?;
    let written = pour(stream, file, &shown).await;
    match written.and_then(|()| fs::rename(&part, path).map_err(failed)) {
        Ok(()) => Ok(()),
        Err(error) => {
            // What failed first is what matters.
            let _ = fs::remove_file(&part);
            Err(error)
        }
    }
}

async fn pour(mut stream: Pieces, mut out: impl Write, name: &str) -> Result<(), Error> {
    let failed = |error| Error::io(format!("cannot write {name}"), error);
    while let Some(piece) = stream.message().await? {
        out.write_all(&piece.data).map_err(failed)?;
    }
    out.flush().map_err(failed)
}
