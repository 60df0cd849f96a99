//! The lab's own machinery: hosts that reach each other, faults that bite, and a power cut that leaves nothing.

use std::process::{Command, Stdio};

use roster_tests::{
    cluster::{bin, repository},
    lab::{Cut, OPERATOR, Slowness, trial::Trial},
    wait,
};

/// An HTTP server on the host that answers with its name, as a user would start one in `deploy/lab shell`.
fn serve(trial: &Trial, name: &str) {
    let host = trial.host(name);
    let folder = host.data.join("www");
    std::fs::create_dir_all(&folder).expect("the folder is ours");
    std::fs::write(folder.join("index.html"), name).expect("the folder is ours");
    let mut command = trial.done(host.command("busybox"));
    let started = command.args(["httpd", "-f", "-p", "80", "-h"]).arg(&folder).stdin(Stdio::null()).spawn();
    let mut child = started.expect("busybox is there");
    std::thread::spawn(move || child.wait());
    wait::until(&format!("{name} to serve"), || host.here().expect("it is on").get("http://127.0.0.1/"));
}

/// Whether one host reaches another. A cut drops packets, so an answer that does not come is waited for.
fn reaches(trial: &Trial, from: &str, to: &str) -> bool {
    let url = format!("http://{}/", trial.host(to).address);
    let mut command = trial.done(trial.host(from).command("curl"));
    let output = command.args(["--silent", "--max-time", "1", &url]).output().expect("curl is there");
    output.status.success() && output.stdout == to.as_bytes()
}

#[test]
fn cuts_bite_and_heal() {
    let trial = Trial::hosts(3, 3);
    for name in ["h1", "h2", "h3"] {
        serve(&trial, name);
    }
    let seen = |trial: &Trial| {
        [("h1", "h2"), ("h2", "h1"), ("h1", "h3"), ("h2", "h3")].map(|(from, to)| reaches(trial, from, to))
    };
    assert_eq!(seen(&trial), [true; 4]);

    let own = Cut::Between("h1".to_owned(), "h1".to_owned());
    assert!(trial.lab.cut(&own).is_err_and(|error| error.to_string().contains("from itself")));
    trial.cut_between("h2", "h1");
    assert_eq!(seen(&trial), [false, false, true, true]);
    trial.cut("h3");
    assert_eq!(seen(&trial), [false; 4]);
    let mut cuts = trial.done(trial.lab.cuts());
    cuts.sort();
    assert_eq!(cuts, [Cut::FromAll("h3".to_owned()), Cut::Between("h1".to_owned(), "h2".to_owned())]);
    let operator = trial.done(trial.lab.operator());
    assert!(operator.get(&format!("http://{}/", trial.host("h3").address)).is_err(), "h3 is cut off from all");

    trial.heal();
    assert_eq!(seen(&trial), [true; 4]);
    assert_eq!(operator.get(&format!("http://{}/", trial.host("h3").address)).as_deref(), Ok("h3"));
    trial.down();
}

#[test]
fn slowness_is_of_one_host_and_ends() {
    let trial = Trial::hosts(2, 1);
    serve(&trial, "h1");
    let host = trial.host("h1");
    let big = host.data.join("www/big");
    std::fs::write(&big, vec![b'x'; 200_000]).expect("the folder is ours");
    let fetch = || {
        let url = format!("http://{}/big", host.address);
        let mut command = trial.done(trial.host("h2").command("curl"));
        let output = command.args(["--silent", "--max-time", "20", "--write-out", "%{time_total}", "-o", "/dev/null"]);
        let output = output.arg(&url).output().expect("curl is there");
        String::from_utf8_lossy(&output.stdout).parse::<f64>().expect("a number of seconds")
    };
    assert!(!trial.done(trial.lab.is_slow(host)));
    assert!(fetch() < 1.0);
    // 200 kB at 1 Mbit/s take 1.6 s, less what the bucket lets through at once.
    let slowness = Slowness { delay: None, rate: Some("1mbit".to_owned()), loss: None };
    assert_eq!(trial.done(trial.lab.slow(host, &slowness)), Vec::<String>::new());
    assert!(trial.done(trial.lab.is_slow(host)));
    assert!(fetch() > 1.0);
    trial.heal();
    assert!(!trial.done(trial.lab.is_slow(host)));
    assert!(fetch() < 1.0);

    let slowness = Slowness { delay: None, rate: None, loss: Some(100) };
    trial.done(trial.lab.slow(host, &slowness));
    assert!(!reaches(&trial, "h2", "h1"));
    trial.heal();
    assert!(reaches(&trial, "h2", "h1"));
    trial.down();
}

#[test]
fn a_power_cut_ends_every_process_and_a_boot_brings_the_address_back() {
    let trial = Trial::hosts(2, 1);
    serve(&trial, "h1");
    serve(&trial, "h2");
    let host = trial.host("h1");
    std::fs::write(host.run.join("of-this-boot"), "").expect("the folder is ours");
    assert!(!trial.done(host.processes()).is_empty());
    trial.kill("h1");
    assert!(!trial.done(host.is_on()));
    assert_eq!(trial.done(host.processes()), []);
    assert!(!host.run.exists() && host.data.join("www").exists(), "a power cut loses /run and keeps the disk");
    assert!(!reaches(&trial, "h2", "h1"));
    // A second time is no error: it is off already.
    trial.kill("h1");

    trial.done(trial.lab.switch_on(host));
    serve(&trial, "h1");
    // The other asks for its card once a second, as it did while it was off.
    for (from, to) in [("h2", "h1"), ("h1", "h2")] {
        wait::until(&format!("{from} to reach {to}"), || reaches(&trial, from, to).then_some(()).ok_or("it does not"));
    }
    assert!(!host.run.join("of-this-boot").exists());
    trial.down();
}

#[test]
fn hosts_bear_their_names_and_see_the_operator() {
    let trial = Trial::hosts(1, 1);
    let host = trial.host("h1");
    let said = trial.done(roster_tests::lab::run(&mut trial.done(host.command("hostname"))));
    assert_eq!(said.trim(), "h1");
    let mut ping = trial.done(host.command("busybox"));
    trial.done(roster_tests::lab::run(ping.args(["ping", "-c1", "-W2", &OPERATOR.to_string()])));
    trial.down();
}

/// The script, as a person runs it; what needs no cluster.
#[test]
fn the_script_refuses_what_is_wrong() {
    let lab = |words: &[&str]| {
        let mut command = Command::new(repository().join("deploy/lab"));
        command.args(words).env("ROSTER_BIN", bin("roster-lab").parent().expect("a folder"));
        let output = command.env("ROSTER_LAB", "absent").output().expect("bash runs it");
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (words, said) in [
        (&["status"][..], "there is no lab \"absent\": deploy/lab up"),
        (&["--name", "../x", "status"], "1 to 16 small letters"),
        (&["up", "0"], "a lab has 1 to 200 hosts"),
        (&["up", "5", "--controllers", "2"], "an odd number"),
    ] {
        let (code, stderr) = lab(words);
        assert!(code == Some(1) && stderr.contains(said), "{words:?}: {code:?} {stderr}");
    }
    assert_eq!(lab(&["explode"]).0, Some(2));
}
