//! What a program finds in its container, also one that comes later.

use std::{fs, os::fd::AsRawFd, process::Stdio};

use serde_json::json;

use crate::harness::{Bundle, said};

#[test]
fn a_program_is_who_the_config_says() {
    let mut bundle = Bundle::new(&[]);
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1001, "additionalGids": [5, 7], "umask": 63 }));
    let status = "while read -r line; do case $line in Cap*|NoNew*) echo $line;; esac; done < /proc/self/status";
    bundle.shell(&format!("id -u; id -g; id -G; umask; {status}"));
    let caps = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    let sets = json!({ "bounding": caps, "effective": caps, "permitted": caps, "inheritable": caps, "ambient": caps });
    bundle.set("/process/capabilities", sets);
    let out = bundle.ok(&["run", "one"]);
    assert!(out.starts_with("1000\n1001\n1001 5 7\n0077\n"), "{out}");
    for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
        assert!(out.contains(&format!("{set}: 0000000000000420")), "{set}: {out}");
    }
    assert!(out.contains("NoNewPrivs: 1"), "{out}");
}

#[test]
fn a_seccomp_profile_holds_for_the_program_and_for_later_ones() {
    for late in [true, false] {
        let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
        bundle.set("/process/noNewPrivileges", json!(late));
        let profile = json!({
            "defaultAction": "SCMP_ACT_ALLOW",
            "syscalls": [{ "names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 95 }]
        });
        bundle.set("/linux/seccomp", profile);
        assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
        let made = bundle.call(&["exec", "one", "/bin/busybox", "mkdir", "/x"]);
        assert_eq!(made.code, 1);
        assert!(made.err.contains("not supported"), "{made:?}");
        bundle.set("/process/args", json!(["/bin/busybox", "mkdir", "/x"]));
        bundle.set(
            "/linux/cgroupsPath",
            json!(bundle.config["linux"]["cgroupsPath"].as_str().unwrap().to_owned() + "-b"),
        );
        let first = bundle.call(&["run", "two"]);
        assert!(first.code == 1 && first.err.contains("not supported"), "{first:?}");
    }
}

#[test]
fn exec_joins_the_container() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    bundle.set("/process/env", json!(["PATH=/bin", "KEPT=yes"]));
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let script = "echo $$ $KEPT $ADDED; hostname; pwd; id -u; id -G; read -r line; echo got $line; exit 5";
    let args =
        ["exec", "-e", "ADDED=too", "--cwd", "/etc", "-u", "7:8", "-g", "9", "one", "/bin/busybox", "sh", "-c", script];
    let mut call = bundle.command(&args);
    let mut child = call.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("it runs");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), b"a line\n").expect("written");
    let ended = said(child.wait_with_output().expect("it ends"));
    assert_eq!(ended.code, 5, "{ended:?}");
    let lines: Vec<_> = ended.out.lines().collect();
    assert!(lines[0].ends_with(" yes too") && lines[0] != "1 yes too", "{lines:?}");
    assert_eq!(lines[1..], ["box", "/etc", "7", "8 9", "got a line"]);

    // By containerd's way: a process file, detached, with its id in a file.
    let process = json!({
        "args": ["/bin/sh", "-c", "echo done > /done"], "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 }
    });
    let (file, pid) = (bundle.file("process.json"), bundle.file("exec.pid"));
    fs::write(&file, process.to_string()).expect("written");
    let text = |path: &std::path::Path| path.to_str().expect("text").to_owned();
    let said = bundle.detached(&["exec", "-d", "--process", &text(&file), "--pid-file", &text(&pid), "one"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(fs::read_to_string(&pid).expect("written").parse::<u32>().is_ok());
    crate::harness::until("it to be done", || bundle.path().join("rootfs/done").exists());

    crate::harness::until("the programs to be gone", || bundle.processes("one") == 1);
    let refused = bundle.refused(&["exec", "one", "none"]);
    assert!(refused.contains("executable file not found in PATH=/bin"), "{refused}");
    // Not even a zombie, which is the first process's to look after.
    assert_eq!(bundle.processes("one"), 1);
    assert!(bundle.refused(&["exec", "--cwd", "etc", "one", "id"]).contains("no absolute path"));
    assert!(bundle.refused(&["exec", "one"]).contains("nothing to execute"));
    assert!(bundle.refused(&["exec", "-u", "root", "one", "id"]).contains("numbers are needed"));
    assert!(bundle.refused(&["exec", "--cap", "CAP_FLY", "one", "id"]).contains("no such capability"));
}

#[test]
fn no_descriptor_leaks_but_those_that_are_given() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("ls /proc/self/fd; cat <&3");
    let given = bundle.file("given");
    fs::write(&given, "given\n").expect("written");
    // The shell itself opens no descriptor but for ls.
    let call = |count: &str| {
        let file = fs::File::open(&given).expect("a file");
        let mut command = std::process::Command::new("/bin/sh");
        fs::write(bundle.path().join("config.json"), bundle.config.to_string()).expect("written");
        let script = "exec 3</proc/self/fd/$0 4</etc/passwd; exec \"$@\"";
        command.args(["-c", script, &file.as_raw_fd().to_string(), env!("CARGO_BIN_EXE_roster-runtime")]);
        command.arg("--root").arg(bundle.file("state")).args(["run", "--preserve-fds", count, "-b"]);
        command.arg(bundle.path()).arg("one").stdin(Stdio::null());
        // SAFETY: an ordinary system call between fork and exec, so that the shell gets the file.
        unsafe {
            let fd = file.as_raw_fd();
            std::os::unix::process::CommandExt::pre_exec(&mut command, move || {
                nix::libc::fcntl(fd, nix::libc::F_SETFD, 0);
                Ok(())
            });
        }
        said(command.output().expect("it runs"))
    };
    let one = call("1");
    // 4 is the listing's own.
    assert_eq!(one.out, "0\n1\n2\n3\n4\ngiven\n", "{one:?}");
    assert!(call("0").err.contains("3"), "it is not there");
    assert!(call("9").err.contains("is not open"));
    // Nor is one of the runtime's own taken for a gift.
    assert!(bundle.refused(&["run", "--preserve-fds", "1", "one"]).contains("3 is not open"));
}

#[test]
fn without_namespaces_of_its_own_it_has_the_hosts_and_leaves_no_mount_there() {
    let mut bundle = Bundle::new(&[]);
    let kinds = ["cgroup", "ipc", "mnt", "net", "pid", "uts"];
    bundle.config.as_object_mut().expect("an object").remove("hostname");
    bundle.set("/linux/namespaces", json!([]));
    let capabilities = json!(["CAP_KILL"]);
    bundle.set("/process/capabilities", json!({ "bounding": capabilities, "effective": capabilities }));
    bundle.shell("echo up > /up; sleep 1000");
    let place = bundle.path().display().to_string();
    let mounts = || {
        let text = fs::read_to_string("/proc/self/mountinfo").expect("mountinfo");
        text.lines().filter(|line| line.contains(&place)).count()
    };
    let links = |of: &str| kinds.map(|kind| fs::read_link(format!("/proc/{of}/ns/{kind}")).expect("a namespace"));
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    crate::harness::until("the program to run", || bundle.path().join("rootfs/up").exists());
    assert_eq!(mounts(), 4, "the root and what is mounted below it");
    let state: serde_json::Value = serde_json::from_str(&bundle.ok(&["state", "one"])).expect("JSON");
    let pid = state["pid"].to_string();
    assert_eq!(links(&pid), links("self"));
    assert_eq!(fs::read_link(format!("/proc/{pid}/root")).expect("its root"), bundle.path().join("rootfs"));
    assert_eq!(bundle.ok(&["exec", "one", "/bin/cat", "/up"]), "up\n");
    assert!(bundle.refused(&["exec", "--cwd", "/none", "one", "/bin/true"]).contains("working directory /none"));
    bundle.ok(&["delete", "--force", "one"]);
    assert_eq!(mounts(), 0);

    // Nor when it fails, and never one that was there before.
    bundle.set("/process/cwd", json!("/bin/sh"));
    let rootfs = bundle.path().join("rootfs");
    let bind = nix::mount::MsFlags::MS_BIND;
    nix::mount::mount(Some(&rootfs), &rootfs, None::<&str>, bind, None::<&str>).expect("bound on itself");
    let refused = bundle.call(&["run", "two"]);
    let left = mounts();
    nix::mount::umount(&rootfs).expect("taken off");
    assert!(refused.err.contains("working directory /bin/sh"), "{refused:?}");
    assert_eq!(left, 1);

    bundle.set("/linux/namespaces", json!([{ "type": "user" }]));
    let range = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", range.clone());
    bundle.set("/linux/gidMappings", range);
    assert!(bundle.refused(&["run", "two"]).contains("without a mount namespace of its own"));
    let own = std::process::id();
    bundle.set("/linux/namespaces", json!([{ "type": "mount", "path": format!("/proc/{own}/ns/mnt") }]));
    assert!(bundle.refused(&["run", "two"]).contains("the runtime's own, whose root would be changed"));
}

#[test]
fn mounts_are_listed_in_the_specs_order() {
    let mut bundle = Bundle::new(&["/bin/cat", "/proc/self/mountinfo"]);
    let volume = bundle.file("volume");
    fs::create_dir(&volume).expect("made");
    let mounts = bundle.config["mounts"].as_array_mut().expect("mounts");
    let bind = |to: &str, options: &[&str]| json!({ "destination": to, "source": volume, "options": options });
    for (to, options) in [("/b", ["bind", "private"]), ("/c", ["rbind", "rshared"]), ("/d", ["rbind", "rslave"])] {
        mounts.push(bind(to, &options));
        mounts.push(json!({ "destination": format!("{to}-tmpfs"), "type": "tmpfs", "source": "tmpfs" }));
    }
    let expected: Vec<String> =
        mounts.iter().map(|mount| mount["destination"].as_str().expect("a path").to_owned()).collect();
    let text = bundle.ok(&["run", "one"]);
    let listed =
        text.lines().filter_map(|line| line.split(' ').nth(4)).filter(|path| expected.iter().any(|e| e == path));
    assert_eq!(listed.collect::<Vec<_>>(), expected, "{text}");
}

#[test]
fn a_user_namespace_maps_its_root_to_nobody_of_the_hosts() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell("id -u; cat /proc/self/uid_map; echo made > /made && echo wrote > /dev/stdout; ls -n /volume/file");
    let volume = bundle.file("volume");
    fs::create_dir(&volume).expect("made");
    fs::write(volume.join("file"), "").expect("written");
    // What root has there is the container's root's here, which only the host's could arrange.
    let map = json!([{ "containerID": 0, "hostID": 200_000, "size": 10 }]);
    bundle.mount(json!({ "destination": "/volume", "type": "bind", "source": volume, "options": ["bind", "idmap"],
                         "uidMappings": map, "gidMappings": map }));
    let range = json!([{ "containerID": 0, "hostID": 200_000, "size": 65536 }]);
    bundle.set("/linux/uidMappings", range.clone());
    bundle.set("/linux/gidMappings", range);
    bundle.set(
        "/linux/namespaces",
        json!(["pid", "network", "ipc", "uts", "mount", "user"].map(|kind| json!({ "type": kind }))),
    );
    let rootfs = bundle.path().join("rootfs");
    for path in [rootfs.clone(), rootfs.join("etc"), rootfs.join("bin"), bundle.path(), bundle.file("")] {
        fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("opened");
    }
    std::os::unix::fs::chown(&rootfs, Some(200_000), Some(200_000)).expect("given away");
    let out = bundle.ok(&["run", "one"]);
    let words: Vec<_> = out.split_whitespace().collect();
    assert_eq!(words[..5], ["0", "0", "200000", "65536", "wrote"], "{out}");
    assert_eq!(words[7..9], ["0", "0"], "{out}");
    let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(rootfs.join("made")).expect("made"));
    assert_eq!(owner, 200_000);
}
