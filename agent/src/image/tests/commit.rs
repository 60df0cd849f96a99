//! Images made of containers, as the stores make and take them.

use std::{io, path::PathBuf};

use roster_proto::wire::{self, image_change::Change};

use super::{
    Fixture,
    build::{ImageSource, docker_archive},
};
use crate::image::{ErrorKind, Image, ImageError, Staged, Wanted, limits::Limits};

/// A layer of one file.
fn layer(text: &str) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_ustar();
    header.set_size(text.len() as u64);
    header.set_mode(0o644);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    archive.append_data(&mut header, "written", text.as_bytes()).unwrap();
    archive.into_inner().unwrap()
}

async fn hello(fixture: &Fixture) -> Image {
    let source = ImageSource::hello("hello:latest");
    fixture.store.load(&docker_archive(&[source])[..]).await.unwrap().remove(0)
}

fn wanted(name: &str, changes: Vec<Change>) -> Wanted {
    let changes = changes.into_iter().map(|change| wire::ImageChange { change: Some(change) }).collect();
    Wanted {
        name: name.into(),
        created: "2026-01-02T03:04:05Z".into(),
        author: "ann".into(),
        message: "why".into(),
        changes,
    }
}

fn stage(fixture: &Fixture, base: &Image, wanted: &Wanted, text: &str) -> Result<Staged, ImageError> {
    let layer = layer(text);
    fixture.store.stage(base, wanted, |out| io::copy(&mut &layer[..], out).map(drop))
}

fn archive(staged: &Staged) -> Vec<u8> {
    let mut bytes = Vec::new();
    staged.send(&mut bytes).unwrap();
    bytes
}

#[tokio::test]
async fn it_goes_without_the_layers_that_its_readers_have() {
    let (here, there) = (Fixture::new(), Fixture::new());
    let base = hello(&here).await;
    let words = |values: &[&str]| wire::StringList { values: values.iter().map(ToString::to_string).collect() };
    let pair = |name: &str, value: &str| wire::NamedValue { name: name.into(), value: value.into() };
    let changes = vec![
        Change::Env(pair("MODE", "a")),
        Change::Env(pair("MODE", "b=c")),
        Change::Entrypoint(words(&["/bin/hello"])),
        Change::Workdir("srv".into()),
        Change::User("app".into()),
        Change::Expose("80/tcp".into()),
        Change::Label(pair("kind", "made")),
    ];
    let staged = stage(&here, &base, &wanted("made:one", changes), "text").unwrap();
    let archive = archive(&staged);
    drop(staged);
    assert_eq!(std::fs::read_dir(here.root().join("staging")).unwrap().count(), 0);

    // Where the base is not, it is refused, and leaves nothing.
    let error = there.refuses(&archive).await;
    assert!(error.describe().contains("lacks of-the-base/"), "{}", error.describe());
    hello(&there).await;
    for fixture in [&here, &there] {
        let made = fixture.store.load(&archive[..]).await.unwrap().remove(0);
        assert_eq!((made.names.as_slice(), made.layers.len()), (&["made:one".to_owned()][..], base.layers.len() + 1));
        assert_eq!(std::fs::read(made.layers.last().unwrap().join("written")).unwrap(), b"text");
        let config = made.config.config().clone().unwrap();
        assert_eq!(config.entrypoint().as_deref(), Some(&["/bin/hello".to_owned()][..]));
        assert_eq!(config.cmd(), &None, "it was for another entrypoint");
        assert!(config.env().as_ref().unwrap().contains(&"MODE=b=c".to_owned()));
        assert!(!config.env().as_ref().unwrap().contains(&"MODE=a".to_owned()));
        assert_eq!((config.working_dir().as_deref(), config.user().as_deref()), (Some("/srv"), Some("app")));
        assert_eq!(config.exposed_ports().as_deref(), Some(&["80/tcp".to_owned()][..]));
        assert_eq!(config.labels().as_ref().unwrap()["kind"], "made");
        assert_eq!((made.config.author().as_deref(), made.healthcheck.is_some()), (Some("ann"), true));
        // A container of it is found by its layers, whatever its name means by then.
        let layers: Vec<PathBuf> = made.layers.iter().rev().cloned().collect();
        assert_eq!(fixture.store.under("hello", &layers).await.unwrap().id, made.id);
    }
}

#[tokio::test]
async fn what_cannot_be_made_leaves_nothing() {
    let fixture = Fixture::with_limits(Limits { commit_bytes: 4096, layers: 1, ..Limits::default() });
    let base = hello(&fixture).await;
    let before = fixture.contents();
    let refused = |wanted: &Wanted, text: &str| stage(&fixture, &base, wanted, text).expect_err("it cannot be");
    // As many layers as there may be.
    assert!(refused(&wanted("made", Vec::new()), "").describe().contains("layers"));
    for name in ["UPPER", "made@sha256:0000000000000000000000000000000000000000000000000000000000000000", ""] {
        assert_eq!(refused(&wanted(name, Vec::new()), "").kind(), ErrorKind::Invalid, "{name}");
    }
    assert_eq!(fixture.contents(), before);

    let fixture = Fixture::with_limits(Limits { commit_bytes: 4096, ..Limits::default() });
    let base = hello(&fixture).await;
    let before = fixture.contents();
    let error = stage(&fixture, &base, &wanted("made", Vec::new()), &"x".repeat(8192)).expect_err("it is too large");
    assert!(matches!(&error, ImageError::TooLarge { limit: 4096, .. }), "{}", error.describe());
    // One whose writing fails.
    let error = fixture.store.stage(&base, &wanted("made", Vec::new()), |_| Err(io::Error::other("torn")));
    assert!(error.expect_err("it failed").describe().contains("torn"));
    assert_eq!(fixture.contents(), before);
    assert!(fixture.store.under("hello", &[]).await.is_err());
}
