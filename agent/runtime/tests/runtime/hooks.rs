//! Hooks of every stage, with what they are told.

use std::fs;

use serde_json::{Value, json};

use crate::harness::{Bundle, until};

#[test]
fn hooks_of_every_stage_run_in_order_with_the_state() {
    let mut bundle = Bundle::new(&["/bin/sleep", "1000"]);
    let log = bundle.file("log");
    let hook = bundle.script("hook", &format!("read -r state; echo \"$1 $state\" >> {}", log.display()));
    let inside = bundle.path().join("rootfs/hook");
    fs::write(&inside, "#!/bin/sh\nread -r state; echo \"$1 $state\" >> /inside\n").expect("written");
    fs::set_permissions(&inside, std::os::unix::fs::PermissionsExt::from_mode(0o755)).expect("made executable");
    let mut hooks = serde_json::Map::new();
    for stage in ["prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop"] {
        let path = if stage == "startContainer" { "/hook".to_owned() } else { hook.display().to_string() };
        hooks.insert(stage.to_owned(), json!([{ "path": path, "args": ["hook", stage], "env": ["PATH=/bin"] }]));
    }
    bundle.set("/hooks", Value::Object(hooks));
    bundle.set("/annotations", json!({ "a": "b" }));
    let lines = |path: &std::path::Path| -> Vec<(String, Value)> {
        let text = fs::read_to_string(path).unwrap_or_default();
        let line = |line: &str| {
            let (stage, state) = line.split_once(' ').expect("two parts");
            (stage.to_owned(), serde_json::from_str(state).expect("JSON"))
        };
        text.lines().map(line).collect()
    };

    assert_eq!(bundle.detached(&["create", "one"]).code, 0);
    let stages = |lines: &[(String, Value)]| {
        let of = |(stage, state): &(String, Value)| format!("{stage} {}", state["status"].as_str().unwrap_or("?"));
        lines.iter().map(of).collect::<Vec<_>>()
    };
    let seen = lines(&log);
    assert_eq!(stages(&seen), ["prestart created", "createRuntime creating", "createContainer creating"]);
    for (_, state) in &seen {
        assert_eq!((&state["id"], &state["annotations"]["a"]), (&json!("one"), &json!("b")), "{state}");
        assert_eq!(state["bundle"], bundle.path().to_str().expect("text"));
    }
    let pid = seen[0].1["pid"].as_u64().expect("a pid");
    assert!(fs::exists(format!("/proc/{pid}/ns/net")).expect("looked"), "its namespaces can be reached");

    bundle.ok(&["start", "one"]);
    assert_eq!(stages(&lines(&bundle.path().join("rootfs/inside"))), ["startContainer created"]);
    until("poststart", || lines(&log).len() == 4);
    bundle.ok(&["delete", "--force", "one"]);
    assert_eq!(stages(&lines(&log))[3..], ["poststart running", "poststop stopped"]);
}

#[test]
fn a_hook_that_fails_stops_what_is_not_yet_running() {
    let mut bundle = Bundle::new(&["/bin/true"]);
    let fails = bundle.script("fails", "echo no disk >&2; exit 7");
    for stage in ["prestart", "createRuntime", "createContainer"] {
        bundle.set("/hooks", json!({ stage: [{ "path": fails }] }));
        let said = bundle.refused(&["create", "one"]);
        assert!(said.contains(stage) && said.contains("no disk"), "{said}");
        assert!(bundle.ok(&["list", "-q"]).is_empty());
    }
    // Too late to stop it.
    bundle.set("/hooks", json!({ "poststart": [{ "path": fails }], "poststop": [{ "path": fails }] }));
    let said = bundle.call(&["run", "one"]);
    assert_eq!(said.code, 0, "{said:?}");
    assert!(said.err.contains("warning") && said.err.contains("poststop"), "{said:?}");
}
