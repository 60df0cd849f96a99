//! `diff` and `export`.

use std::{fs, process::Command};

use roster_tests::{
    cluster::Cluster,
    drive::{Drive, pid},
    wait,
};
use serde_json::Value;

use super::{shell, until_logged};

const CHANGES: &str = "\
    echo new > /etc/made; echo more >> /etc/passwd; rm /bin/vi; rm -r /www; mkdir /www; echo hi > /www/index.html; \
    mkdir -p /deep/er; touch \"$(printf '/deep/er/a\\nb\\033[2J')\"; ln -s made /etc/link; truncate -s 1099511627776 /huge; \
    echo done; exec sleep inf";

#[test]
fn diff_and_export_show_what_a_container_made_of_its_files() {
    let cluster = Cluster::start();
    cluster.apply(&shell("s", "init: true\n    tmpfs: /scratch\n    deploy: {replicas: 2}", CHANGES));
    until_logged(&cluster, "s.1", "done");
    until_logged(&cluster, "s.2", "done");

    let diff = cluster.ok(&["diff", "s.1"]);
    let lines: Vec<&str> = diff.lines().collect();
    for line in [
        "C /bin",
        "D /bin/vi",
        "A /deep",
        "A /deep/er",
        "A /deep/er/a\\nb\\u{1b}[2J",
        "C /etc",
        "A /etc/link",
        "A /etc/made",
        "C /etc/passwd",
        "A /huge",
        "C /www",
        "D /www/cgi-bin",
        "A /www/index.html",
    ] {
        assert!(lines.contains(&line), "{line:?} is missing:\n{diff}");
    }
    assert!(!diff.contains("/scratch/") && !diff.contains("/proc") && !diff.contains('\u{1b}'), "{diff}");
    let documents = cluster.json(&["diff", "-o", "json", "s.2"]);
    let deleted = |change: &Value| change["kind"] == "deleted" && change["path"] == "/bin/vi";
    assert!(documents.iter().any(deleted), "{documents:#?}");

    let archive = cluster.path("s.tar");
    cluster.ok(&["export", "s.1", "-o", &archive.to_string_lossy()]);
    let size = fs::metadata(&archive).expect("it is there").len();
    assert!(size < 64 << 20, "{size} bytes, of which a terabyte is a hole");
    let to = cluster.path("exported");
    fs::create_dir(&to).expect("made");
    let status = Command::new("tar").arg("-xf").arg(&archive).arg("-C").arg(&to).status().expect("tar runs");
    assert!(status.success());
    let read = |path: &str| fs::read_to_string(to.join(path)).unwrap_or_else(|error| panic!("{path}: {error}"));
    assert_eq!(read("etc/made"), "new\n");
    assert!(read("etc/passwd").starts_with("root:") && read("etc/passwd").ends_with("more\n"));
    assert_eq!((read("etc/link"), read("www/index.html")), ("new\n".to_owned(), "hi\n".to_owned()));
    assert!(!to.join("bin/vi").exists() && !to.join("www/cgi-bin").exists());
    assert_eq!(fs::metadata(to.join("huge")).expect("it is there").len(), 1 << 40);
    assert_eq!(fs::read_dir(to.join("proc")).expect("a mount point").count(), 0);
    // What the container itself says of its root, file by file, without what is mounted there.
    let task = cluster.until_running(2).into_iter().find(|task| task["name"] == "s.1").expect("the slot");
    let root = format!("/proc/{}/root/", pid(&task));
    let find = |root: &str| {
        let prune = ["-xdev", "-mindepth", "1", "-printf", "%P %m %U %G %y\\n"];
        let output = Command::new("find").arg(root).args(prune).output().expect("find runs");
        let mut lines: Vec<String> = String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect();
        // What is mounted over a path is described there, not what is below it.
        let mounted = ["dev", "proc", "sys", "scratch", "etc/hosts", "etc/hostname", "etc/resolv.conf"];
        lines.retain(|line| !mounted.iter().any(|path| line.split(' ').next() == Some(path)));
        lines.sort();
        lines
    };
    let (inside, outside) = (find(&root), find(&to.to_string_lossy()));
    let differing: Vec<_> = inside.iter().filter(|line| !outside.contains(line)).collect();
    assert!(differing.is_empty() && inside.len() > 250, "{} files, differing: {differing:#?}", inside.len());

    // To a pipe, and to one that is not read to its end.
    let listed = Command::new("sh")
        .args(["-c", "\"$@\" | tar -t | grep -c .", "sh"])
        .args(arguments(&cluster, &["export", "s.2"]))
        .env("ROSTER_ENDPOINT", cluster.endpoint())
        .output()
        .expect("a shell");
    let count: u64 = String::from_utf8_lossy(&listed.stdout).trim().parse().expect("a number");
    assert!(count > 250, "{listed:?}");

    for (refused, words) in [
        (&["diff", "s"][..], "name one of them, as s.1, s.2"),
        (&["export", "s"], "name one of them"),
        (&["diff", "nothing"], "there is no service"),
        (&["export", "s.1", "-o", "/no/such/folder/file"], "cannot write /no/such/folder/file"),
    ] {
        let output = cluster.rctl(refused);
        assert!(output.code == 1 && output.stderr.contains(words), "{refused:?}: {output:?}");
    }
    cluster.down();
}

fn arguments(cluster: &Cluster, arguments: &[&str]) -> Vec<std::ffi::OsString> {
    let command = cluster.rctl_command(arguments);
    std::iter::once(command.get_program()).chain(command.get_args()).map(Into::into).collect()
}

#[test]
fn an_export_that_breaks_off_leaves_no_archive() {
    let mut cluster = Cluster::start();
    // Of random data, so that it takes a while.
    let script = "dd if=/dev/urandom of=/big bs=1M count=200 2>/dev/null; echo done; exec sleep inf";
    cluster.apply(&shell("s", "init: true", script));
    until_logged(&cluster, "s", "done");
    let archive = cluster.path("s.tar");
    let mut export = cluster.rctl_command(&["export", "s", "-o", &archive.to_string_lossy()]).spawn().expect("starts");
    let part = archive.with_file_name(format!("s.tar.{}.part", export.id()));
    wait::until("a part of it", || match fs::metadata(&part) {
        Ok(there) if there.len() > 0 => Ok(()),
        other => Err(format!("{other:?}")),
    });
    cluster.kill_agent();
    let ended = export.wait().expect("it ends");
    assert!(!part.exists(), "nothing half is left");
    // It may just have been fast enough.
    assert_eq!(ended.success(), archive.exists());
    cluster.start_agent();
    wait::until("another try", || {
        let export = cluster.rctl(&["export", "s", "-o", &archive.to_string_lossy()]);
        if export.code == 0 { Ok(()) } else { Err(export) }
    });
    assert!(fs::metadata(&archive).expect("whole").len() > 200 << 20);
    cluster.down();
}
