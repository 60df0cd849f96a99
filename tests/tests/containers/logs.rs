use roster_tests::{cluster::Cluster, drive::Drive};

use super::{shell, until_logged};

#[test]
fn logs_between_two_moments() {
    let cluster = Cluster::start();
    let script = "for i in 1 2 3 4 5 6; do echo line $i; usleep 20000; done; echo end; exec sleep inf";
    cluster.apply(&shell("talk", "init: true", script));
    until_logged(&cluster, "talk", "end");
    let stamped = cluster.ok(&["logs", "-t", "talk.1"]);
    let moment = |line: &str| {
        let found = stamped.lines().find_map(|one| one.strip_suffix(line)).unwrap_or_else(|| panic!("{stamped}"));
        found.trim().to_owned()
    };
    let (second, fourth) = (moment("line 2"), moment("line 4"));
    assert!(second < fourth && second.ends_with('Z'), "{stamped}");

    let logs = |arguments: &[&str]| cluster.ok(&[&["logs", "talk.1"], arguments].concat());
    assert_eq!(logs(&["--since", &second, "--until", &fourth]), "line 2\nline 3\nline 4\n");
    assert_eq!(logs(&["--until", &fourth, "--tail", "2"]), "line 3\nline 4\n");
    assert_eq!(logs(&["--until", "1h"]), "", "nothing is an hour old");
    assert_eq!(logs(&["--since", "1h", "-n", "1"]), "end\n");
    // A follower whose moment has come has nothing to wait for, and one whose moment comes ends with it.
    assert_eq!(logs(&["--follow", "--until", &second]), "line 1\nline 2\n");
    let soon = in_a_second();
    assert!(logs(&["--follow", "--until", &soon]).ends_with("end\n"));

    let refused = cluster.rctl(&["logs", "talk.1", "--since", &fourth, "--until", &second]);
    assert!(refused.code == 1 && refused.stderr.contains("--until is before --since"), "{refused:?}");
    let refused = cluster.rctl(&["logs", "talk.1", "--until", "yesterday"]);
    assert!(refused.stderr.contains("write how long ago"), "{refused:?}");
    cluster.down();
}

/// As RFC 3339.
fn in_a_second() -> String {
    let date = std::process::Command::new("date").args(["-u", "-d", "+1 second", "+%Y-%m-%dT%H:%M:%S.%NZ"]).output();
    String::from_utf8(date.expect("date runs").stdout).expect("a moment").trim().to_owned()
}
