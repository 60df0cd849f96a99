//! Looking into containers with the node's own programs: those that run, and those that have failed and are kept.

use std::{
    fs,
    io::Write,
    path::Path,
    process::{Command, Stdio},
};

use roster_tests::{cluster::Cluster, drive::Drive, wait};
use serde_json::Value;

/// One replica that runs the script without network, at once anew after it has failed.
fn failing(script: &str, more: &str) -> String {
    let script = script.replace('\'', "''").replace('$', "$$");
    format!(
        "name: d\nservices:\n  web:\n    image: roster-hello\n    network_mode: none\n    stop_grace_period: 1s\n    \
         environment: {{KEPT: yes}}\n    command: ['sh', '-c', '{script}']\n    \
         deploy: {{restart_policy: {{delay: 0s}}}}\n    {more}\n"
    )
}

/// Fails each time the file says so, having left word of it.
const SCRIPT: &str = "n=$(cat /shared/number); echo $n > /left; echo it was $n; mkdir /etc/made; \
                      if [ -e /shared/fail-$n ]; then exit 3; fi; exec sleep inf";

#[track_caller]
fn until_kept(cluster: &Cluster, file: &str, content: &str) -> String {
    wait::until("the failed container to be kept", || {
        let said = cluster.rctl(&["debug", "--failed", "web.1", "cat", file]);
        if said.stdout == content { Ok(said.stderr) } else { Err(said) }
    })
}

/// The directories of kept containers, of which there must be none half made.
fn kept(cluster: &Cluster) -> Vec<String> {
    let entries = fs::read_dir(cluster.path("agent").join("kept")).expect("the agent made it");
    entries.map(|entry| entry.expect("readable").file_name().to_string_lossy().into_owned()).collect()
}

fn number(shared: &Path, number: u32) {
    fs::write(shared.join("number"), format!("{number}\n")).expect("ours");
}

#[test]
fn what_failed_last_is_kept_until_the_next_failure_and_goes_with_its_service() {
    let mut cluster = Cluster::start();
    let shared = cluster.path("shared");
    fs::create_dir(&shared).expect("ours");
    number(&shared, 1);
    fs::write(shared.join("fail-1"), "").expect("ours");
    let spec = failing(SCRIPT, &format!("volumes: ['{}:/shared']", shared.display()));
    cluster.ok(&["apply", "--detach", &cluster.spec(&spec).to_string_lossy()]);
    wait::until("a failure", || {
        let tasks = cluster.rctl(&["ps", "-a"]);
        if tasks.stdout.contains("exited with code 3") { Ok(()) } else { Err(tasks) }
    });
    number(&shared, 2);
    let task = cluster.until_running(1).remove(0);
    let failed = until_kept(&cluster, "/left", "1\n");
    assert!(failed.contains("in web.1 (") && failed.contains("since it failed: exited with code 3"), "{failed}");

    // A name is that of the one that runs; the flag makes it the other one.
    let running = task["id"].as_str().expect("an id");
    assert_eq!(cluster.ok(&["debug", "web.1", "cat", "/left"]), "2\n");
    assert_eq!(cluster.ok(&["exec", "web.1", "cat", "/left"]), "2\n");
    let directory = kept(&cluster);
    assert!(directory.len() == 1 && directory[0] != running, "{directory:?}");
    let id = directory[0].as_str();
    assert_eq!(cluster.ok(&["debug", id, "cat", "/left"]), "1\n");
    for command in [&["diff", "--failed", "web.1"][..], &["diff", id]] {
        let diff = cluster.ok(command);
        assert!(diff.lines().any(|line| line == "A /left") && diff.contains("A /etc/made"), "{diff}");
    }
    let archive = cluster.path("failed.tar");
    cluster.ok(&["export", "--failed", "web.1", "-o", &archive.to_string_lossy()]);
    let member = Command::new("tar").arg("-xOf").arg(&archive).arg("left").output().expect("tar");
    assert_eq!(String::from_utf8_lossy(&member.stdout), "1\n");
    let to = cluster.path("copied");
    cluster.ok(&["cp", "--failed", "web.1:/left", &to.to_string_lossy()]);
    assert_eq!(fs::read_to_string(&to).expect("copied"), "1\n");
    cluster.ok(&["cp", &format!("{id}:/bin/busybox"), &cluster.path("busybox").to_string_lossy()]);
    assert_eq!(cluster.ok(&["logs", "--failed", "web.1"]), "it was 1\n");
    assert!(
        cluster.ok(&["inspect", "web.1"]).contains(&format!("its files, as {id} left them: rctl debug --failed web.1"))
    );
    let told = cluster.ok(&["debug", "--info", "web.1"]);
    for words in [id, "exited with code 3", "at the most"] {
        assert!(told.contains(words), "{words} is missing in:\n{told}");
    }
    let told: Value = serde_json::from_str(&cluster.ok(&["debug", "--info", "-o", "json", "web.1"])).expect("json");
    assert!(told["memory_peak"].as_u64().is_some_and(|peak| peak > 0) && told["task"] == id, "{told}");

    // What is written there stays, what is bound is not changed, and nobody is called.
    let script = "echo more >> /left; echo x > /shared/from-debug; cat /left; ls -A /sys/class/net; echo $KEPT; id -u";
    let said = cluster.rctl(&["debug", "--failed", "web.1", "sh", "-c", script]);
    assert_eq!(said.stdout, "1\nmore\nlo\nyes\n0\n", "{said:?}");
    assert!(said.stderr.contains("Read-only file system") && !shared.join("from-debug").exists(), "{said:?}");
    assert_eq!(cluster.rctl(&["debug", "--failed", "web.1", "sh", "-c", "kill -TERM $$"]).code, 143);

    // It is there after a crash of the agent, too, and of the controller.
    cluster.kill_agent();
    cluster.kill_controller();
    cluster.start_controller();
    cluster.start_agent();
    until_kept(&cluster, "/left", "1\nmore\n");
    assert_eq!(cluster.until_running(1)[0]["id"], running, "nothing was restarted");

    // The next failure takes its place.
    fs::write(shared.join("fail-2"), "").expect("ours");
    number(&shared, 3);
    cluster.ok(&["kill", "web.1"]);
    until_kept(&cluster, "/left", "2\n");
    let id = running.to_owned();
    wait::until("the one before to go", || {
        let kept = kept(&cluster);
        if kept == [id.as_str()] { Ok(()) } else { Err(kept) }
    });
    // What is stopped or replaced in health is no failure.
    cluster.until_running(1);
    cluster.ok(&["restart", "web.1"]);
    assert_eq!(kept(&cluster), std::slice::from_ref(&id));

    // Its layers stay, though its image goes.
    cluster.ok(&["scale", "web=0"]);
    wait::until("what is kept to go with its slot", || {
        let kept = kept(&cluster);
        if kept.is_empty() { Ok(()) } else { Err(kept) }
    });
    cluster.down();
}

/// An image with nothing but one static program, and no shell by any name.
fn bare_image(cluster: &Cluster) {
    let script = r#"
        set -e
        mkdir -p "$1/root/app" "$1/image" && cd "$1"
        cp "$(command -v busybox)" root/app/only && ln -s /app root/link && echo hi > root/hello
        tar -C root -cf layer.tar . && layer=$(sha256sum layer.tar | cut -d' ' -f1)
        printf '{"architecture":"%s","os":"linux","config":{"Cmd":["/app/only","sleep","inf"],"WorkingDir":"/app"},"rootfs":{"type":"layers","diff_ids":["sha256:%s"]}}' \
            "$(dpkg --print-architecture)" "$layer" > config.json
        config=$(sha256sum config.json | cut -d' ' -f1)
        mv layer.tar "image/$layer.tar" && mv config.json "image/$config.json"
        printf '[{"Config":"%s.json","RepoTags":["bare"],"Layers":["%s.tar"]}]' "$config" "$layer" > image/manifest.json
        tar -C image -cf bare.tar .
    "#;
    let folder = cluster.path("bare");
    fs::create_dir(&folder).expect("ours");
    // A program called by another name than busybox does nothing; called so by its first argument it is what is asked.
    let script = script.replace("root/app/only &&", "root/app/busybox &&").replace("/app/only", "/app/busybox");
    let built = Command::new("sh").args(["-c", &script, "sh"]).arg(&folder).status().expect("a shell");
    assert!(built.success(), "{built}");
    cluster.ok(&["image", "load", &folder.join("bare.tar").to_string_lossy()]);
}

#[test]
fn a_container_without_a_shell_is_looked_into_with_the_nodes_programs() {
    let cluster = Cluster::start();
    bare_image(&cluster);
    let secret = cluster.path("secret");
    fs::write(&secret, "of the host\n").expect("ours");
    cluster.apply(
        "name: b\nservices:\n  hello:\n    image: bare\n    network_mode: none\n    read_only: true\n    \
         tmpfs: /scratch\n    stop_grace_period: 1s\n    environment: {PATH: /app, LD_PRELOAD: /no/such.so}\n",
    );
    cluster.until_running(1);
    assert_eq!(cluster.rctl(&["exec", "hello.1", "sh", "-c", "true"]).code, 127, "it has no shell");

    let debug = |arguments: &[&str]| cluster.rctl(&[&["debug"], arguments].concat());
    let said =
        debug(&["hello.1", "sh", "-c", "cat /hello; ls /app /link/ /container/app; hostname; pwd; id -u; exit 7"]);
    let listed = "/app:\nbusybox\n\n/container/app:\nbusybox\n\n/link/:\nbusybox\n";
    assert_eq!((said.code, said.stdout), (7, format!("hi\n{listed}hello-1\n/\n0\n")), "{}", said.stderr);
    let said = debug(&["hello", "ps", "-e", "-o", "pid=,comm="]);
    let processes: Vec<Vec<&str>> = said.stdout.lines().map(|line| line.split_whitespace().collect()).collect();
    assert!(processes.contains(&vec!["1", "busybox"]) && processes.len() == 2, "{said:?}");
    let said = debug(&["hello.1", "cat", "/proc/self/cgroup", "/proc/1/cmdline"]);
    assert!(said.stdout.contains("live-") && said.stdout.contains("/app/busybox\0sleep\0inf"), "{said:?}");
    // The container's own tmpfs, to be written to; nothing else is.
    assert_eq!(debug(&["hello.1", "sh", "-c", "echo x > /scratch/made; cat /container/scratch/made"]).stdout, "x\n");
    for path in ["/made", "/hello", "/usr/made", "/container/usr", "/container/made"] {
        let said = debug(&["hello.1", "sh", "-c", &format!("echo x > {path}")]);
        assert!(said.code != 0 && said.stderr.contains("Read-only"), "{path}: {said:?}");
    }
    // Without a terminal, a shell reads what it is to do.
    let mut command = cluster.rctl_command(&["debug", "hello.1"]);
    let mut shell = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("rctl starts");
    shell.stdin.take().expect("a pipe").write_all(b"echo $((6 * 7))\n").expect("it reads");
    assert_eq!(shell.wait_with_output().expect("it ends").stdout, b"42\n");
    assert_eq!(cluster.ok(&["diff", "hello.1"]), "A /scratch\n", "nothing of it is left in the container");

    // Of the host there is no more than programs, whatever rights one has; and they stay what they are.
    let mark = format!("/usr/roster-test-{}", std::process::id());
    let script = format!(
        "mount -o remount,rw /usr; mount -o remount,rw,bind /usr; echo x > {mark}; echo x >> /usr/bin/env; \
         for top in / /.. /usr/.. /usr/../.. /container/.. /proc/1/root /proc/self/root/..; do cat $top{secret}; done; \
         cut -d' ' -f5 /proc/self/mountinfo",
        secret = secret.display()
    );
    let before = fs::read("/usr/bin/env").expect("every host has it");
    let said = debug(&["--privileged", "-u", "0", "hello.1", "sh", "-c", &script]);
    assert!(!Path::new(&mark).exists() && fs::read("/usr/bin/env").expect("there") == before, "{said:?}");
    assert!(!said.stdout.contains("of the host") && said.stderr.contains("Read-only"), "{said:?}");
    let folder = cluster.path("").display().to_string();
    assert!(said.stdout.contains("/container") && !said.stdout.contains(folder.trim_end_matches('/')), "{said:?}");
    cluster.down();
}

/// Has every right but the host's, finds whoever looks into it, and goes for the host through him.
const HOSTILE: &str = r#"
    rm -rf /usr /lib; ln -s / /usr; ln -s /proc/1/root /lib; ln -s ../.. /up; mkdir -p /container; echo mine > /container/mine
    while :; do rm -rf /swap; ln -s / /swap; rm /swap; mkdir /swap; mount -t tmpfs none /swap; umount /swap; done 2> /dev/null &
    while :; do for p in /proc/[0-9]*; do
        [ -e $p/root/container/bin/busybox ] || continue
        echo saw it
        for way in $p/root $p/root/.. $p/root/usr $p/root/usr/.. $p/cwd/.. $p/exe; do
            cat $way$SECRET; echo x > $way$MARK; echo x > $way
        done
        for fd in $p/fd/*; do cat $fd/..$SECRET $fd$SECRET; echo x > $fd/roster; done
        nsenter -t ${p#/proc/} -m sh -c "echo entered; mount -o remount,rw /usr; echo x > $MARK; echo x >> /usr/bin/env; cat $SECRET /..$SECRET"
        chroot $p/root/usr/bin/.. /bin/sh -c "cat /..$SECRET"
        echo tried all
    done 2> /dev/null; done
"#;

#[test]
fn a_hostile_container_reaches_nothing_of_the_host_through_who_looks_into_it() {
    let cluster = Cluster::start();
    let secret = cluster.path("secret");
    fs::write(&secret, "of the host\n").expect("ours");
    let mark = format!("/usr/roster-test-{}", std::process::id());
    let script = HOSTILE.trim().replace('\'', "''").replace('$', "$$").replace('\n', "\n          ");
    cluster.apply(&format!(
        "name: h\nservices:\n  web:\n    image: roster-hello\n    network_mode: none\n    stop_grace_period: 1s\n    \
         cap_add: [ALL]\n    security_opt: [seccomp=unconfined, apparmor=unconfined]\n    \
         environment: {{SECRET: '{}', MARK: '{mark}'}}\n    command:\n      - sh\n      - -c\n      - |\n          {script}\n",
        secret.display()
    ));
    cluster.until_running(1);
    let before = fs::read("/usr/bin/env").expect("every host has it");
    // Again and again while the top of its root changes.
    for _ in 0..10 {
        let said = cluster.rctl(&["debug", "web.1", "sh", "-c", "cat /container/container/mine; echo $0"]);
        assert_eq!(said.stdout, "mine\nsh\n", "{said:?}");
    }
    let mut visitor = cluster.rctl_command(&["debug", "web.1", "sleep", "inf"]).spawn().expect("rctl starts");
    let log = wait::until("the attack", || {
        let text = cluster.rctl(&["logs", "web.1"]).stdout;
        // Those before it may have gone before anything could be done through them.
        if text.contains("entered") && text.matches("tried all").count() >= 3 { Ok(text) } else { Err(text) }
    });
    visitor.kill().expect("ours");
    visitor.wait().expect("ours");
    assert!(!log.contains("of the host"), "{log}");
    assert!(!Path::new(&mark).exists(), "it wrote to the host");
    assert_eq!(fs::read("/usr/bin/env").expect("there"), before, "it changed a program of the host");
    cluster.down();
}
