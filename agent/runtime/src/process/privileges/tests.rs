use std::fs;

use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::process::in_child::{failure, in_child, status};

const SETS: [&str; 5] = ["CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb"];
/// CAP_KILL, CAP_NET_BIND_SERVICE.
const KILL: u64 = 1 << 5;
const BIND: u64 = 1 << 10;

fn process(user: serde_json::Value, capabilities: serde_json::Value) -> Process {
    let process = serde_json::json!({"user": user, "cwd": "/", "capabilities": capabilities});
    serde_json::from_value(process).unwrap()
}

fn become_it(process: &Process) -> Result<Vec<LeftOut>, StartError> {
    take_on(&Ids::of(process.user())?, process)
}

/// What the kernel says a process has after it took that on.
fn seen(process: &Process, fields: &[&str]) -> Vec<String> {
    let seen = in_child(|| {
        let left_out = become_it(process).unwrap();
        assert_eq!(left_out, []);
        fields.iter().map(|field| status(field) + "\n").collect()
    });
    seen.lines().map(str::to_owned).collect()
}

fn sets(masks: [u64; 5]) -> Vec<String> {
    masks.map(|mask| format!("{mask:016x}")).to_vec()
}

fn two_and_one() -> serde_json::Value {
    serde_json::json!({
        "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"], "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_NET_BIND_SERVICE"], "ambient": ["CAP_NET_BIND_SERVICE"],
    })
}

#[test]
fn root_has_the_sets_it_was_given() {
    let root = process(serde_json::json!({"uid": 0, "gid": 0}), two_and_one());
    assert_eq!(seen(&root, &SETS), sets([KILL | BIND, KILL | BIND, KILL, BIND, BIND]));
}

#[test]
fn another_user_has_the_sets_it_was_given() {
    let user = process(serde_json::json!({"uid": 1234, "gid": 5, "additionalGids": [6, 7]}), two_and_one());
    let mut expected = sets([KILL | BIND, KILL | BIND, KILL, BIND, BIND]);
    expected.extend(["1234 1234 1234 1234", "5 5 5 5", "6 7"].map(str::to_owned));
    assert_eq!(seen(&user, &[&SETS[..], &["Uid", "Gid", "Groups"]].concat()), expected);
}

#[test]
fn without_capabilities_there_are_none_and_no_groups_of_the_runtimes() {
    for uid in [0, 1234] {
        let bare: Process = serde_json::from_value(serde_json::json!({"user": {"uid": uid}, "cwd": "/"})).unwrap();
        let mut expected = sets([0; 5]);
        expected.push(String::new());
        assert_eq!(seen(&bare, &[&SETS[..], &["Groups"]].concat()), expected);
    }
}

#[test]
fn what_cannot_be_granted_is_left_out_and_told() {
    let wanted = serde_json::json!({
        "bounding": ["CAP_KILL", "CAP_NET_BIND_SERVICE"], "permitted": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
        "effective": ["CAP_KILL"], "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_NET_BIND_SERVICE"],
    });
    let user = process(serde_json::json!({"uid": 1234}), wanted);
    let seen = in_child(|| {
        // As if the runtime had been started without it.
        bound(BIND).unwrap();
        let mut own = sys::capabilities().unwrap();
        own.effective &= !BIND;
        own.permitted &= !BIND;
        sys::set_capabilities(own).unwrap();
        let left_out = become_it(&user).unwrap();
        let told = left_out.iter().map(|left_out| format!("{left_out}\n"));
        told.chain(SETS.map(|set| status(set) + "\n")).collect()
    });
    let lines: Vec<_> = seen.lines().collect();
    let (told, kept) = lines.split_at(lines.len() - SETS.len());
    assert_eq!(told.len(), 3, "{told:?}");
    for (line, set) in told.iter().zip(["bounding", "permitted", "ambient"]) {
        assert!(line.starts_with(&format!("left out of the {set} capabilities: CAP_NET_BIND_SERVICE (")), "{line}");
    }
    assert_eq!(kept, sets([KILL; 5]));
}

#[test]
fn the_umask_is_the_users() {
    let user = process(serde_json::json!({"umask": 0o037}), serde_json::json!({}));
    assert_eq!(seen(&user, &["Umask"]), ["0037"]);
}

#[test]
fn new_privileges_are_forbidden_by_themselves() {
    let user = process(serde_json::json!({"uid": 1234}), serde_json::json!({}));
    let seen = in_child(|| {
        become_it(&user).unwrap();
        let before = status("NoNewPrivs");
        forbid_new_privileges().unwrap();
        before + &status("NoNewPrivs")
    });
    assert_eq!(seen, "01");
}

/// As one that an unprivileged user makes: one user, one group, and setgroups denied.
fn enter_lone_user_namespace() {
    unshare(CloneFlags::CLONE_NEWUSER).unwrap();
    fs::write("/proc/self/setgroups", "deny").unwrap();
    fs::write("/proc/self/uid_map", "0 0 1").unwrap();
    fs::write("/proc/self/gid_map", "0 0 1").unwrap();
}

fn in_lone_user_namespace(user: serde_json::Value) -> String {
    let process = process(user, two_and_one());
    in_child(|| {
        enter_lone_user_namespace();
        failure(become_it(&process))
    })
}

#[test]
fn where_setgroups_is_denied_only_who_wants_groups_fails() {
    assert_eq!(in_lone_user_namespace(serde_json::json!({"uid": 0})), "");
    let error = in_lone_user_namespace(serde_json::json!({"uid": 0, "additionalGids": [0]}));
    assert!(error.contains("must not deny setgroups"), "{error}");
}

#[test]
fn a_user_the_namespace_does_not_have_is_named() {
    let error = in_lone_user_namespace(serde_json::json!({"uid": 7}));
    assert!(error.starts_with("becoming user 7: ") && error.contains("linux.uidMappings"), "{error}");
    let error = in_lone_user_namespace(serde_json::json!({"gid": 8}));
    assert!(error.starts_with("becoming group 8: ") && error.contains("linux.gidMappings"), "{error}");
}

#[test]
fn groups_that_may_not_be_dropped_are_not_kept_in_silence() {
    let seen = in_child(|| {
        setgroups(&[Gid::from_raw(9)]).unwrap();
        let mut own = sys::capabilities().unwrap();
        own.effective &= !(1 << number(Capability::Setgid));
        sys::set_capabilities(own).unwrap();
        failure(set_groups(&[]))
    });
    assert!(seen.contains("setting the supplementary groups []"), "{seen}");
}
