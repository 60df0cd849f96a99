//! Files into running containers and out of them.

use std::{
    fs::{self, File},
    os::unix::fs::{MetadataExt, PermissionsExt, symlink},
    path::Path,
    process::{Command, Stdio},
};

use roster_tests::{cluster::Cluster, drive::Drive};

use crate::{Running, started};

const LARGE: usize = 64 << 20;

fn text(path: impl AsRef<Path>) -> String {
    path.as_ref().display().to_string()
}

#[track_caller]
fn cp(cluster: &Cluster, from: &str, to: &str) {
    cluster.ok(&["cp", from, to]);
}

#[track_caller]
fn refused(cluster: &Cluster, from: &str, to: &str, words: &str) {
    let said = cluster.rctl(&["cp", from, to]);
    assert_eq!(said.code, 1, "cp {from} {to}: {said:?}");
    assert!(said.stderr.contains(words), "cp {from} {to}: {said:?}");
}

#[test]
fn files_and_directories_go_both_ways_as_they_are() {
    let cluster = started(1);
    let here = tempfile::tempdir().expect("a folder");
    let tree = here.path().join("tree");
    fs::create_dir_all(tree.join("sub/deep")).expect("made");
    fs::write(tree.join("script"), "#!/bin/sh\necho ran\n").expect("made");
    fs::set_permissions(tree.join("script"), fs::Permissions::from_mode(0o750)).expect("ours");
    nix::unistd::chown(&tree.join("script"), Some(33.into()), Some(33.into())).expect("root may");
    fs::write(tree.join("sub/deep/n"), "n").expect("made");
    symlink("../script", tree.join("sub/link")).expect("made");
    let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
    for path in ["script", "sub"] {
        File::open(tree.join(path)).expect("it is there").set_modified(old).expect("ours");
    }

    cp(&cluster, &text(&tree), "web:/tmp");
    let listed = cluster.ok(&["exec", "web", "stat", "-c", "%a %u:%g %Y %n", "/tmp/tree/script", "/tmp/tree/sub"]);
    assert_eq!(listed, "750 33:33 1000000000 /tmp/tree/script\n755 0:0 1000000000 /tmp/tree/sub\n");
    assert_eq!(cluster.ok(&["exec", "web", "readlink", "/tmp/tree/sub/link"]), "../script\n");
    assert_eq!(cluster.ok(&["exec", "-u", "www", "web", "/tmp/tree/sub/link"]), "ran\n");
    // Under a new name, only what is in it, and one file over another.
    cp(&cluster, &text(&tree), "live/web.1:/tmp/new");
    cp(&cluster, &format!("{}/.", text(&tree)), "web.1:/www");
    cp(&cluster, &text(tree.join("script")), "web:/tmp/new/sub/deep/n");
    let found = cluster.ok(&["exec", "web", "cat", "/tmp/new/sub/deep/n", "/www/sub/deep/n"]);
    assert_eq!(found, "#!/bin/sh\necho ran\nn");

    let back = here.path().join("back");
    cp(&cluster, "web:/tmp/tree", &text(&back));
    for path in ["script", "sub", "sub/deep/n", "sub/link"] {
        let meta = |dir: &Path| dir.join(path).symlink_metadata().expect("it is there");
        let (went, came) = (meta(&tree), meta(&back));
        assert_eq!((went.mode(), went.uid(), went.gid()), (came.mode(), came.uid(), came.gid()), "{path}");
        assert_eq!((went.mtime(), went.len()), (came.mtime(), came.len()), "{path}");
    }
    assert_eq!(fs::read_link(back.join("sub/link")).expect("a link"), Path::new("../script"));
    cp(&cluster, "web:/tmp/tree/sub/link", &text(here.path()));
    assert!(here.path().join("link").is_symlink());
    cluster.ok(&["cp", "-L", "web:/tmp/tree/sub/link", &text(here.path().join("followed"))]);
    assert_eq!(fs::read(here.path().join("followed")).expect("made"), fs::read(tree.join("script")).expect("made"));

    // Archives by standard output and input.
    let mut command = cluster.rctl_command(&["cp", "web:/tmp/tree", "-"]);
    let mut from = Running::start(command.stdout(Stdio::piped()));
    let archive = from.0.stdout.take().expect("a pipe");
    let mut command = cluster.rctl_command(&["cp", "-", "web:/tmp/new"]);
    let mut to = Running::start(command.stdin(Stdio::from(archive)));
    assert_eq!((from.code(), to.code()), (Some(0), Some(0)));
    assert_eq!(cluster.ok(&["exec", "web", "cat", "/tmp/new/tree/sub/deep/n"]), "n");
    let listing = cluster.rctl_command(&["cp", "web:/tmp/tree", "-"]).output().expect("rctl starts").stdout;
    let mut tar = Command::new("tar").arg("t").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("tar");
    std::io::Write::write_all(&mut tar.stdin.take().expect("a pipe"), &listing).expect("it reads");
    let listed = tar.wait_with_output().expect("tar").stdout;
    let mut names: Vec<_> =
        std::str::from_utf8(&listed).expect("text").lines().map(|name| name.trim_end_matches('/')).collect();
    names.sort_unstable();
    assert_eq!(names, ["tree", "tree/script", "tree/sub", "tree/sub/deep", "tree/sub/deep/n", "tree/sub/link"]);

    // Large ones, there and back.
    let large: Vec<u8> = (0..LARGE).map(|at| (at >> 10) as u8).collect();
    fs::write(here.path().join("large"), &large).expect("made");
    cp(&cluster, &text(here.path().join("large")), "web:/tmp/large");
    cp(&cluster, "web:/tmp/large", &text(here.path().join("returned")));
    assert!(fs::read(here.path().join("returned")).expect("made") == large, "it is not what was sent");
    cluster.down();
}

#[test]
fn what_cannot_be_copied_is_told_and_nothing_is_half_there() {
    let cluster = started(1);
    let here = tempfile::tempdir().expect("a folder");
    fs::write(here.path().join("file"), "x").expect("made");
    let file = text(here.path().join("file"));
    refused(&cluster, "web:/no/such", &text(here.path()), "there is no /no/such");
    refused(&cluster, &file, "web:/no/such/place", "there is no directory /no/such");
    refused(&cluster, &file, "web:/tmp/new/", "there is no directory /tmp/new/");
    refused(&cluster, &text(here.path()), "web:/etc/passwd", "cannot be copied onto the file /etc/passwd");
    refused(&cluster, "/no/such/file", "web:/tmp", "/no/such/file");
    refused(&cluster, "web:/etc/passwd", "/no/such/folder/x", "/no/such/folder");
    refused(&cluster, "web:/dev/null", &text(here.path()), "no regular file");
    refused(&cluster, "web:/a", "web:/b", "one of the two must be here");
    refused(&cluster, &file, "elsewhere", "neither of the two is in a container");
    refused(&cluster, "wep:/a", ".", "did you mean \"web\"?");
    refused(&cluster, &file, "web:/proc/sys/kernel/x", "/proc/sys/kernel");
    assert_eq!(fs::read_dir(here.path()).expect("ours").count(), 1);

    // An archive that is none, that is cut off, and that leads out.
    let put = |bytes: &[u8]| {
        let mut command = cluster.rctl_command(&["cp", "-", "web:/tmp"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("rctl starts");
        // It may be refused before all is written.
        let _ = std::io::Write::write_all(&mut child.stdin.take().expect("a pipe"), bytes);
        let output = child.wait_with_output().expect("rctl ends");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (code, said) = put(&[b'x'; 4096]);
    assert!(code == Some(1) && said.contains("not a tar archive"), "{said}");
    let tar = |arguments: &[&str]| {
        Command::new("tar").arg("-C").arg(here.path()).args(arguments).output().expect("tar").stdout
    };
    let (code, said) = put(&tar(&["-c", "file"])[..700]);
    assert!(code == Some(1) && said.contains("ends too early"), "{said}");
    let (code, said) = put(&tar(&["-P", "-c", "--transform", "s,file,../../../escaped,", "file"]));
    assert!(code == Some(1) && said.contains("leads out"), "{said}");
    let (code, said) = put(&tar(&["-P", "-c", "--transform", "s,file,/escaped,", "file"]));
    assert!(code == Some(1) && said.contains("is absolute"), "{said}");
    assert_eq!(cluster.rctl(&["exec", "web", "ls", "/escaped"]).code, 1);
    cluster.down();
}

/// The container replaces directories by links to the host's, while files are copied through them.
#[test]
fn a_container_that_swaps_links_reaches_no_file_of_the_host() {
    let cluster = started(1);
    let here = tempfile::tempdir().expect("a folder");
    fs::write(here.path().join("secret"), "the host's").expect("made");
    fs::write(here.path().join("file"), "ours").expect("made");
    let away = text(here.path());
    // A link that is there is looked up from the container's root, where the host's folder is not.
    cluster.ok(&["exec", "web", "ln", "-s", &away, "/tmp/away"]);
    refused(&cluster, "web:/tmp/away/secret", &text(here.path().join("stolen")), "there is no /tmp/away/secret");
    refused(&cluster, &text(here.path().join("file")), "web:/tmp/away/planted", "there is no directory");
    cluster.ok(&["exec", "web", "ln", "-s", "/proc/1/root/etc", "/tmp/magic"]);
    assert_eq!(cluster.rctl(&["cp", "web:/tmp/magic/passwd", &text(here.path().join("stolen"))]).code, 1);

    let script = format!(
        "mkdir -p /tmp/d; ln -s {away} /tmp/l; \
         while :; do mv -T /tmp/d /tmp/x; mv -T /tmp/l /tmp/d; mv -T /tmp/d /tmp/l; mv -T /tmp/x /tmp/d; done"
    );
    let _swapping = Running::quiet(cluster.rctl_command(&["exec", "web", "sh", "-c", &script]));
    crate::until_inside(&cluster, "the swapping", |found| found.iter().any(|line| line.contains("mkdir")));
    for round in 0..40 {
        // They may find what they look for, or not; the host's they never do.
        cluster.rctl(&["cp", &text(here.path().join("file")), &format!("web:/tmp/d/planted-{round}")]);
        cluster.rctl(&["cp", "web:/tmp/d/secret", &text(here.path().join("stolen"))]);
    }
    let mut found: Vec<_> = fs::read_dir(here.path()).expect("ours").flatten().map(|entry| entry.file_name()).collect();
    found.sort();
    assert_eq!(found, ["file", "secret"]);
    cluster.down();
}

/// What a container hands out cannot write past where it was meant to go.
#[test]
fn a_copy_from_a_hostile_container_stays_in_its_place() {
    let cluster = started(1);
    let here = tempfile::tempdir().expect("a folder");
    let to = here.path().join("to");
    fs::create_dir(&to).expect("made");
    fs::create_dir(here.path().join("precious")).expect("made");
    // A link first, then, at the next copy, a directory under its name.
    cluster.ok(&["exec", "web", "sh", "-c", &format!("mkdir /tmp/t; ln -s {}/precious /tmp/t/d", text(here.path()))]);
    cp(&cluster, "web:/tmp/t/.", &text(&to));
    assert!(to.join("d").is_symlink());
    cluster.ok(&["exec", "web", "sh", "-c", "rm /tmp/t/d; mkdir /tmp/t/d; echo x > /tmp/t/d/planted"]);
    refused(&cluster, "web:/tmp/t/.", &text(&to), "is in the way");
    assert_eq!(fs::read_dir(here.path().join("precious")).expect("ours").count(), 0);
    cluster.down();
}
