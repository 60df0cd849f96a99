//! Images made of containers.

use std::process::Command;

use roster_tests::{
    cluster::{Cluster, repository},
    drive::Drive,
    lab::trial::Trial,
};

fn started(extra: &str) -> Cluster {
    let cluster = Cluster::start();
    cluster.apply(&spec("web", "roster-hello", "sleep inf", extra));
    cluster.until_running(1);
    cluster
}

fn spec(name: &str, image: &str, command: &str, extra: &str) -> String {
    format!(
        "name: made\nservices:\n  {name}:\n    image: {image}\n    command: {command}\n    init: true\n    \
         network_mode: none\n    stop_grace_period: 1s\n{extra}"
    )
}

#[test]
fn what_a_container_wrote_is_in_its_image() {
    let cluster = started("");
    let before = cluster.ok(&["exec", "web", "sh", "-c", "ls / /bin | sort; cat /etc/passwd"]);
    assert!(before.contains("www"), "{before}");
    let script = "set -e
        mkdir -p /srv/deep && echo added > '/srv/deep/a file' && ln /srv/deep/a\\ file /srv/hard && ln -s deep /srv/soft
        echo www:x:33:33::/www:/bin/sh > /etc/passwd
        chown 33:33 /srv/deep && chmod 2750 /srv/deep
        rm -rf /www && mkdir /www && echo new > /www/only
        rm /bin/md5sum
        dd if=/dev/zero of=/srv/holes bs=1 count=1 seek=3000000 2>/dev/null";
    cluster.ok(&["exec", "web", "sh", "-c", script]);
    let changes = ["-c", "CMD [\"sleep\", \"inf\"]", "-c", "ENV MODE=demo SAID='two words'", "-c", "WORKDIR /srv"];
    let more = ["-c", "USER www", "-c", "LABEL made.by=us", "-c", "EXPOSE 80", "-m", "a message", "-a", "ann"];
    let said = cluster.ok(&[&["commit"][..], &changes, &more, &["web.1", "web:fixed"]].concat());
    assert!(said.starts_with("sha256:") && said.contains(" on vm"), "{said}");
    // It goes on as before.
    assert_eq!(cluster.until_running(1)[0]["restarts"].as_u64(), Some(0));
    assert_eq!(cluster.ok(&["exec", "web", "cat", "/www/only"]), "new\n");

    let images = cluster.json(&["image", "ls", "-o", "json"]);
    let image = images.iter().find(|image| image.to_string().contains("web:fixed")).expect("it is listed");
    assert_eq!(image["labels"]["made.by"], "us", "{image:#}");
    cluster.ok(&[
        "apply",
        &cluster
            .spec(
                "name: other\nservices:\n  o:\n    image: web:fixed\n    network_mode: none\n    \
         init: true\n    stop_grace_period: 1s\n",
            )
            .to_string_lossy(),
    ]);
    let look = |command: &str| cluster.ok(&["exec", "o", "sh", "-c", command]);
    assert_eq!(look("echo $MODE, $SAID; pwd; id -u"), "demo, two words\n/srv\n33\n");
    let root = |command: &str| cluster.ok(&["exec", "-u", "0", "o", "sh", "-c", command]);
    assert_eq!(
        root("cat '/srv/deep/a file' /srv/hard /srv/soft/a*; stat -c '%u:%g %a' /srv/deep"),
        "added\nadded\nadded\n33:33 2750\n"
    );
    assert_eq!(root("stat -c %h /srv/hard; stat -c %s /srv/holes"), "2\n3000001\n");
    assert_eq!(root("ls -A /www; cat /www/only"), "only\nnew\n");
    assert_eq!(root("cat /etc/passwd"), "www:x:33:33::/www:/bin/sh\n");
    assert!(cluster.rctl(&["exec", "-u", "0", "o", "test", "-e", "/bin/md5sum"]).code != 0);

    // One made on it, though the name means another image by now.
    cluster.ok(&["exec", "-u", "0", "o", "sh", "-c", "echo second > /second; rm /srv/hard"]);
    cluster.ok(&["commit", "--no-pause", "o", "web:fixed"]);
    cluster.ok(&["exec", "-u", "0", "o", "sh", "-c", "echo third > /third"]);
    cluster.ok(&["commit", "o", "third"]);
    let said = cluster.ok(&[
        "apply",
        &cluster
            .spec(
                "name: last\nservices:\n  l:\n    image: third\n    network_mode: none\n    \
         init: true\n    stop_grace_period: 1s\n",
            )
            .to_string_lossy(),
    ]);
    assert!(said.contains("1 up"), "{said}");
    assert_eq!(
        cluster.ok(&["exec", "l", "sh", "-c", "cat /second /third; ls /srv"]),
        "second\nthird\ndeep\nholes\nsoft\n"
    );
    cluster.down();
}

#[test]
fn what_cannot_be_is_refused_and_leaves_nothing() {
    let cluster = started("    deploy: {replicas: 1}\n");
    let before = cluster.json(&["image", "ls", "-o", "json"]).len();
    for (arguments, words) in [
        (&["commit", "web.1", "No Name"][..], "is not an image name"),
        (&["commit", "web.1", "UPPER"], "UPPER"),
        (
            &["commit", "web.1", "web@sha256:0000000000000000000000000000000000000000000000000000000000000000"],
            "NAME:TAG",
        ),
        (&["commit", "wep.1", "web:x"], "there is no"),
        (&["commit", "-c", "RUN make", "web.1", "web:x"], "RUN is not one of CMD"),
        (&["commit", "-c", "CMD [x", "web.1", "web:x"], "no JSON"),
    ] {
        let said = cluster.rctl(arguments);
        assert!(said.code == 1 && said.stderr.contains(words), "{arguments:?}: {said:?}");
    }
    // A name that would mean in a layer that something is gone.
    cluster.ok(&["exec", "web", "touch", "/.wh.bin"]);
    let said = cluster.rctl(&["commit", "web", "web:x"]);
    assert!(said.code == 1 && said.stderr.contains("cannot be in an image"), "{said:?}");
    assert_eq!(cluster.json(&["image", "ls", "-o", "json"]).len(), before);
    let left = std::fs::read_dir(cluster.path("agent").join("images/staging")).expect("the store's").count();
    assert_eq!(left, 0);
    // One that was paused stays so, and can be committed.
    cluster.ok(&["exec", "web", "rm", "/.wh.bin"]);
    cluster.ok(&["pause", "web"]);
    cluster.ok(&["commit", "web", "web:paused"]);
    assert_eq!(cluster.tasks()[0]["paused"], true);
    cluster.ok(&["unpause", "web"]);
    assert_eq!(cluster.ok(&["exec", "web", "echo", "on"]), "on\n");
    cluster.down();
}

#[test]
fn every_host_has_it_or_says_what_it_lacks() {
    let trial = Trial::up(2, 1);
    let folder = tempfile::tempdir().expect("a folder");
    let hello = folder.path().join("hello.tar");
    let built = Command::new(repository().join("deploy/hello/build")).arg(&hello).status().expect("a shell");
    assert!(built.success(), "deploy/hello/build failed: {built}");
    trial.ok(&["node", "drain", "h2"]);
    trial.apply(&spec("web", "roster-hello", "sleep inf", ""));
    trial.until_running(1);
    trial.ok(&["exec", "web", "sh", "-c", "echo here > /here"]);
    trial.ok(&["image", "rm", "roster-hello", "--node", "h2"]);
    let said = trial.rctl(&["commit", "web", "made"]);
    assert!(
        said.code == 1 && said.stderr.contains("h2: it lacks roster-hello, which the image is made on"),
        "{said:?}"
    );
    // With what it lacked, it runs there as well.
    trial.ok(&["image", "load", &hello.to_string_lossy(), "--node", "h2"]);
    let said = trial.ok(&["commit", "web", "made"]);
    assert!(said.contains(" on h1, h2"), "{said}");
    trial.ok(&["node", "activate", "h2"]);
    trial.ok(&["node", "drain", "h1"]);
    trial.apply(&spec("web", "made", "sleep inf", ""));
    assert_eq!(trial.until_running(1)[0]["node"], "h2");
    assert_eq!(trial.ok(&["exec", "web", "cat", "/here"]), "here\n");
    trial.down();
}
