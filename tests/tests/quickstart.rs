//! `deploy/quickstart`, as a newcomer runs it: twice in a row, then down, with nothing left.

use std::process::Command;

use roster_tests::{
    cluster::{Cluster, bin, repository},
    leftovers,
};

#[test]
fn up_twice_then_down_leaves_nothing() {
    // Only for its folder, its name and its network namespace.
    let place = Cluster::empty();
    let root = place.path("root");
    let quickstart = |argument: &str| {
        let output = place
            .netns
            .command(repository().join("deploy/quickstart"))
            .arg(argument)
            .env("ROSTER_ROOT", &root)
            .env("ROSTER_NAME", &place.name)
            .env("ROSTER_BIN", bin("rctl").parent().expect("a folder"))
            .output()
            .expect("bash runs it");
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "quickstart {argument}: {}\n{text}", output.status);
        text
    };
    for round in ["first", "second"] {
        let text = quickstart("up");
        for words in ["web.1", "web.2", "web.3", "replaced and healthy again after", "deploy/quickstart down"] {
            assert!(text.contains(words), "{words:?} is missing in the {round} run:\n{text}");
        }
    }
    assert!(quickstart("status").contains("roster-agent runs as process"));
    quickstart("down");
    let left = leftovers::of(&place.name, &root, &place.netns);
    assert!(left.is_empty(), "left over: {left:#?}");
    for folder in ["var/lib/roster", "run/roster"] {
        assert!(!root.join(folder).exists(), "{folder} is left over");
    }
    quickstart("down");
}

#[test]
fn without_root_it_says_so() {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups"])
        .arg(repository().join("deploy/quickstart"))
        .output()
        .expect("setpriv is part of util-linux");
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(said.contains("must run as root"), "{said}");
}
