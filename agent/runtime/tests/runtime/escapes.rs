//! Ways out of a container, as an image or a program in it tries them.

use std::{
    fs,
    os::unix::fs::symlink,
    process::{Command, Stdio},
};

use nix::{libc, sys::stat::Mode, unistd::mkfifo};
use serde_json::json;

use crate::harness::{Bundle, until};

/// The program to run is the runtime itself, as `/proc/self/exe` is to one on its way in. Held open, its file could be
/// written to as soon as it does not run.
#[test]
fn the_runtimes_own_file_cannot_be_written() {
    let mut bundle = Bundle::new(&[]);
    bundle.program = bundle.file("runtime");
    // By a process of its own: a file that another thread's child still has open for writing cannot be executed.
    let copied = Command::new("cp").arg(env!("CARGO_BIN_EXE_roster-runtime")).arg(&bundle.program).status();
    assert!(copied.expect("it runs").success());
    fs::create_dir(bundle.image("trap")).expect("made");
    mkfifo(&bundle.image("trap/log"), Mode::S_IRWXU).expect("a fifo");
    bundle.perl(
        r#"my ($held, $victim);
           until ($victim) {
               opendir(my $all, "/proc");
               for my $process (map { "/proc/$_" } grep { /^\d/ } readdir $all) {
                   open(my $line, "<", "$process/cmdline") or next;
                   next if $process eq "/proc/$$" or index(<$line> // "", "/trap") < 0;
                   $victim = $process, last if open($held, "<", "$process/exe");
               }
           }
           open(my $log, "<", "/trap/log"); <$log>; close $log;
           while (-d $victim) {}
           my $opened = open(my $file, ">>", "/proc/self/fd/" . fileno $held);
           my $said = $opened ? "open" : $!;
           print $file "evil" if $opened;
           open(my $result, ">", "/result.new"); print $result $said; close $result;
           rename "/result.new", "/result"; sleep 1000"#,
    );
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    let entered = bundle.detached(&["exec", "-d", "one", "/proc/self/exe", "--log", "/trap/log", "state", "x"]);
    assert_eq!(entered.code, 0, "{entered:?}");
    until("the attack to end", || bundle.image("result").exists());
    assert_eq!(fs::read_to_string(bundle.image("result")).expect("said"), "Read-only file system");
    let same = fs::read(&bundle.program).expect("there") == fs::read(env!("CARGO_BIN_EXE_roster-runtime")).expect("it");
    assert!(same, "nothing was written");
}

/// By a descriptor of the runtime's that shows the host, if one were still open when the directory is entered.
#[test]
fn no_working_directory_and_no_program_lies_outside() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    bundle.cgroup("two");
    for number in 3..11 {
        let outside = format!("/proc/self/fd/{number}");
        let _ = fs::remove_file(bundle.image("work"));
        symlink(&outside, bundle.image("work")).expect("linked");
        for cwd in ["/work", &format!("{outside}/../..")] {
            let said = bundle.call(&["exec", "--cwd", cwd, "one", "/bin/ls"]);
            assert!(said.code == 1 && said.err.contains("working directory"), "exec in {cwd}: {said:?}");
            bundle.set("/process/cwd", json!(cwd));
            let said = bundle.call(&["run", "two"]);
            assert!(said.code == 1 && said.out.is_empty() && said.err.contains(cwd), "run in {cwd}: {said:?}");
        }
        let program = format!("{outside}/bin/busybox");
        let said = bundle.call(&["exec", "one", &program, "ls"]);
        assert!(said.code == 1 && said.out.is_empty(), "{said:?}");
    }
}

/// What the runtime writes to procfs for the container (sysctls, labels, limits) must reach the kernel's own.
#[test]
fn an_image_with_a_procfs_of_its_own_is_told_nothing() {
    let mut bundle = Bundle::new(&["/bin/cat", "/real/sys/net/ipv4/ip_unprivileged_port_start"]);
    let files = [
        "proc/sys/net/ipv4/ip_unprivileged_port_start",
        "proc/self/oom_score_adj",
        "proc/thread-self/attr/exec",
        "proc/self/attr/exec",
        "proc/self/uid_map",
    ];
    for file in files {
        let path = bundle.image(file);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "fake").expect("written");
    }
    let outside = bundle.file("outside");
    fs::write(&outside, "fake").expect("written");
    fs::remove_file(bundle.image("proc/self/oom_score_adj")).expect("removed");
    symlink(&outside, bundle.image("proc/self/oom_score_adj")).expect("linked");
    bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_unprivileged_port_start": "77" }));
    bundle.set("/process/oomScoreAdj", json!(321));
    let real = json!({ "destination": "/real", "type": "proc", "source": "proc" });
    bundle.config["mounts"][0] = real;
    assert_eq!(bundle.ok(&["run", "one"]), "77\n");
    bundle.set("/process/args", json!(["/bin/cat", "/real/self/oom_score_adj"]));
    assert_eq!(bundle.ok(&["run", "one"]), "321\n");
    for file in files {
        assert_eq!(fs::read_to_string(bundle.image(file)).expect("there"), "fake", "{file}");
    }
    // Nor is anything else taken for it.
    bundle.mount(json!({ "destination": "/proc", "type": "tmpfs", "source": "tmpfs" }));
    assert!(bundle.refused(&["run", "one"]).contains("nothing but a procfs may be on /proc"));
}

#[test]
fn the_hosts_sysctls_stay_as_they_are() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let before = fs::read("/proc/sys/kernel/core_pattern").expect("the host's");
    for (key, value) in [
        ("kernel.core_pattern", "|/bin/evil"),
        ("kernel.modprobe", "/bin/evil"),
        ("vm.swappiness", "1"),
        ("fs.file-max", "1000"),
        ("net/../kernel/core_pattern", "|/bin/evil"),
    ] {
        bundle.set("/linux/sysctl", json!({ key: value }));
        let said = bundle.refused(&["run", "one"]);
        assert!(said.contains(key), "{key}: {said}");
    }
    bundle.set("/linux/sysctl", json!({ "net.ipv4.ip_forward": "1" }));
    let kinds = ["pid", "mount", "uts", "ipc"].map(|kind| json!({ "type": kind }));
    bundle.set("/linux/namespaces", json!(kinds));
    assert!(bundle.refused(&["run", "one"]).contains("net.ipv4.ip_forward"));
    assert_eq!(fs::read("/proc/sys/kernel/core_pattern").expect("the host's"), before);
}

#[test]
fn a_node_of_a_disk_opens_nothing() {
    let mut bundle = Bundle::new(&[]);
    let partitions = fs::read_to_string("/proc/partitions").expect("disks");
    let disk = partitions.lines().skip(2).find_map(|line| {
        let fields: Vec<_> = line.split_whitespace().collect();
        Some((fields.first()?.parse::<u32>().ok()?, fields.get(1)?.parse::<u32>().ok()?))
    });
    let (major, minor) = disk.expect("a host has a disk");
    let script = format!(
        "/bin/busybox mknod /disk b {major} {minor} && test -b /disk && echo made; cat /disk; \
         /bin/busybox mknod /memory c 1 1; cat /memory; echo x > /disk; cat /dev/null && echo null"
    );
    bundle.shell(&script);
    bundle.set("/linux/resources/devices", json!([{ "allow": false, "access": "rwm" }]));
    let said = bundle.call(&["run", "one"]);
    assert_eq!(said.out, "made\nnull\n", "{said:?}");
    assert_eq!(said.err.matches("Operation not permitted").count(), 3, "{said:?}");
}

#[test]
fn other_containers_cannot_be_traced_signalled_or_read() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let all = ["CAP_KILL", "CAP_SYS_PTRACE", "CAP_DAC_OVERRIDE", "CAP_SYS_CHROOT"];
    bundle.capabilities(&all);
    assert_eq!(bundle.detached(&["run", "-d", "victim"]).code, 0);
    let victim = bundle.pid("victim");
    bundle.cgroup("attacker");
    let (attach, open) = (libc::SYS_ptrace, libc::SYS_pidfd_open);
    bundle.perl(&format!(
        r#"print "killed\n" if kill 9, {victim};
           print "traced\n" if syscall({attach}, 16, {victim}, 0, 0) == 0;
           print "opened\n" if syscall({open}, {victim}, 0) >= 0;
           print "seen\n" if -e "/proc/{victim}/mem";
           kill 9, -1;
           kill 9, 0;
           opendir(my $all, "/proc");
           print join(" ", grep {{ /^\d/ }} readdir $all), "\n""#
    ));
    let mut command = bundle.command(&["run", "attacker"]);
    // Signals to the group, which go across pid namespaces, must not find the caller. Not this test either.
    std::os::unix::process::CommandExt::process_group(&mut command, 0);
    let attacker = crate::harness::said(command.stdin(Stdio::null()).output().expect("it runs"));
    assert_eq!((attacker.code, attacker.out.as_str()), (0, "1\n"), "it sees nobody but itself: {attacker:?}");
    assert_eq!(bundle.status("victim"), "running");
    assert_eq!(bundle.pid("victim"), victim);
}

/// Keys go by the session, not by the namespace.
#[test]
fn the_callers_keys_are_not_the_containers() {
    let mut bundle = Bundle::new(&[]);
    let (search, request) = (libc::SYS_keyctl, libc::SYS_request_key);
    bundle.perl(&format!(
        r#"my ($kind, $name) = ("user", "roster-test");
           print syscall({search}, 10, -3, $kind, $name, 0) < 0 ? "none" : "found", "\n";
           print syscall({request}, $kind, $name, 0, 0) < 0 ? "none" : "found", "\n""#
    ));
    let run = |options: &[&str]| {
        let mut command: Command = bundle.command(&[&["run"], options, &["one"]].concat());
        // SAFETY: two ordinary system calls between fork and exec.
        unsafe {
            std::os::unix::process::CommandExt::pre_exec(&mut command, || {
                let none: *const libc::c_char = std::ptr::null();
                let (kind, name) = (c"user".as_ptr(), c"roster-test".as_ptr());
                if libc::syscall(libc::SYS_keyctl, 1, none) < 0
                    || libc::syscall(libc::SYS_add_key, kind, name, c"secret".as_ptr(), 6, -3) < 0
                {
                    return Err(std::io::Error::last_os_error());
                }
                Ok(())
            });
        }
        crate::harness::said(command.stdin(Stdio::null()).output().expect("it runs"))
    };
    assert_eq!(run(&[]).out, "none\nnone\n");
    let kept = run(&["--no-new-keyring"]);
    assert_eq!(kept.out, "found\nfound\n", "the attack works: {kept:?}");
}

#[test]
fn nothing_of_the_hosts_is_left_in_the_environment_or_the_tree() {
    let mut bundle = Bundle::new(&[]);
    bundle.shell(
        "cat /proc/self/environ | /bin/busybox tr '\\0' '\\n'; cat /proc/self/mountinfo; \
                  cd /; cd ../../..; test \"$(ls)\" = \"$(ls /)\" && echo closed",
    );
    let mut command = bundle.command(&["run", "one"]);
    let said = crate::harness::said(command.env("SECRET", "host").stdin(Stdio::null()).output().expect("it runs"));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(!said.out.contains("SECRET") && said.out.contains("PATH=/bin"), "{said:?}");
    let mounts = said.out.lines().filter(|line| line.contains(" - "));
    let points: Vec<_> = mounts.filter_map(|line| line.split(' ').nth(4)).collect();
    assert_eq!(points, ["/", "/proc", "/dev", "/dev/pts"]);
    assert!(said.out.ends_with("closed\n"), "{said:?}");
}
