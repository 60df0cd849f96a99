//! Ways to more rights than were given.

use std::{
    collections::HashSet,
    fs,
    os::unix::fs::{PermissionsExt, chown},
};

use nix::libc;
use oci_spec::runtime::Capability;
use roster_runtime::seccomp::default_profile;
use serde_json::json;

use crate::harness::Bundle;

#[test]
fn a_setuid_program_gives_nothing_where_no_new_privileges_are() {
    let mut bundle = Bundle::new(&[]);
    bundle.perl("");
    // Of a copy, for it is the bit of the file that counts.
    fs::copy("/usr/bin/perl", bundle.image("bin/setuid")).expect("copied");
    chown(bundle.image("bin/setuid"), Some(0), Some(0)).expect("given to root");
    fs::set_permissions(bundle.image("bin/setuid"), fs::Permissions::from_mode(0o6755)).expect("the bit set");
    bundle.set("/process/args", json!(["/bin/setuid", "-e", "print \"$< $>\\n\""]));
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    assert_eq!(bundle.ok(&["run", "one"]), "1000 1000\n");
    bundle.set("/process/noNewPrivileges", json!(false));
    assert_eq!(bundle.ok(&["run", "one"]), "1000 0\n", "the attack works");
}

#[test]
fn under_the_default_profile_there_are_no_new_namespaces_and_no_mounts() {
    let mut bundle = Bundle::new(&[]);
    let number = |flag: libc::c_int| flag.to_string();
    let calls = [
        ("unshare user", libc::SYS_unshare, number(libc::CLONE_NEWUSER)),
        ("unshare mount", libc::SYS_unshare, number(libc::CLONE_NEWNS)),
        ("unshare both", libc::SYS_unshare, number(libc::CLONE_NEWUSER | libc::CLONE_NEWNS)),
        ("mount", libc::SYS_mount, r#"my $t = "tmpfs", my $on = "/etc", $t, 0, 0"#.to_owned()),
        ("umount", libc::SYS_umount2, r#"my $on = "/proc", 2"#.to_owned()),
        ("fsopen", libc::SYS_fsopen, r#"my $t = "tmpfs", 0"#.to_owned()),
        ("open_tree", libc::SYS_open_tree, r#"-100, my $top = "/", 1"#.to_owned()),
        ("pivot_root", libc::SYS_pivot_root, r#"my $here = ".", $here"#.to_owned()),
    ];
    let script: String = calls
        .iter()
        .map(|(name, call, args)| {
            // Each in a child, for one that works changes what follows.
            let attempt = format!("syscall({call}, {args}) < 0 ? \"{name}: $!\" : \"{name} works\"");
            format!("unless (fork) {{ print {attempt}, \"\\n\"; exit }} wait;\n")
        })
        .collect();
    bundle.perl(&format!("$| = 1; {script}"));
    let refused: String = calls.iter().map(|(name, ..)| format!("{name}: Operation not permitted\n")).collect();
    bundle.set("/process/noNewPrivileges", json!(true));
    let without = bundle.ok(&["run", "one"]);
    assert!(without.contains("unshare user works") && without.contains("unshare both works"), "the attack: {without}");
    let capabilities = HashSet::from([Capability::SysChroot, Capability::Mknod, Capability::Chown]);
    bundle.set("/linux/seccomp", serde_json::to_value(default_profile(&capabilities)).expect("JSON"));
    assert_eq!(bundle.ok(&["run", "one"]), refused);
    // As another user, and by a later program.
    bundle.set("/process/user", json!({ "uid": 1000, "gid": 1000 }));
    assert_eq!(bundle.ok(&["run", "one"]), refused);
    let script = bundle.config["process"]["args"][2].as_str().expect("the script").to_owned();
    bundle.set("/process/args", json!(["/bin/sleep", "1000"]));
    assert_eq!(bundle.detached(&["run", "-d", "one"]).code, 0);
    assert_eq!(bundle.ok(&["exec", "one", "/usr/bin/perl", "-e", &script]), refused);
}
