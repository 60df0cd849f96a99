//! What `rctl` says without a cluster: wrong files, wrong usage, help.

use std::{
    fs,
    os::unix::{net::UnixListener, process::ExitStatusExt},
    process::{Command, Stdio},
};

use roster_tests::cluster::{bin, repository};

fn rctl(arguments: &[&str]) -> (Option<i32>, String, String) {
    let output = Command::new(bin("rctl"))
        .args(arguments)
        .current_dir(repository().join("ctl"))
        .env_clear()
        .env("HOME", "/root")
        .env("COLUMNS", "100")
        .env("ROSTER_ENDPOINT", "unix:///no/such/controller.sock")
        .stdin(Stdio::null())
        .output()
        .expect("rctl starts");
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (output.status.code(), text(&output.stdout), text(&output.stderr))
}

/// The same files whose problems are snapshotted beside the reader: the binary prints exactly that, and exits with 1.
#[test]
fn each_wrong_spec_is_refused_whole_by_the_binary() {
    let folder = repository().join("ctl/tests/bad");
    let mut specs: Vec<_> = fs::read_dir(&folder)
        .expect("the wrong specs")
        .map(|entry| entry.expect("an entry").file_name().to_string_lossy().into_owned())
        .filter(|name| name.ends_with(".yaml"))
        .collect();
    specs.sort();
    assert!(specs.len() >= 30, "{} wrong specs", specs.len());
    for name in specs {
        let file = format!("tests/bad/{name}");
        for command in ["plan", "apply"] {
            let (code, stdout, stderr) = rctl(&[command, &file]);
            assert_eq!((code, stdout.as_str()), (Some(1), ""), "{command} {file}: {stderr}");
            assert!(stderr.contains("nothing was changed"), "{command} {file}: {stderr}");
            assert!(!stderr.contains("error: error:") && !stderr.contains('\u{1b}'), "{command} {file}: {stderr}");
        }
    }
}

#[test]
fn without_a_controller_it_says_where_it_looked_and_what_to_do() {
    let (code, _, stderr) = rctl(&["ps"]);
    assert_eq!(code, Some(1));
    insta::assert_snapshot!("no_controller", stderr);
    let (code, _, stderr) = rctl(&["ps", "--endpoint", "https://example.com"]);
    assert_eq!(code, Some(1));
    insta::assert_snapshot!("wrong_endpoint", stderr);
}

#[test]
fn wrong_usage_never_looks_like_a_plan_with_changes() {
    for arguments in
        [&["plan", "--no-such-flag"][..], &["scale"], &["scale", "web"], &["logs", "--since", "soon", "web"]]
    {
        let (code, _, stderr) = rctl(arguments);
        assert_eq!(code, Some(1), "{arguments:?}: {stderr}");
        assert!(stderr.contains("--help") || stderr.contains("For more information"), "{stderr}");
    }
}

#[test]
fn help_of_every_command() {
    let mut left = vec![Vec::new()];
    let mut told = 0;
    while let Some(command) = left.pop() {
        let arguments: Vec<&str> = command.iter().map(String::as_str).chain(["--help"]).collect();
        let (code, text, _) = rctl(&arguments);
        assert_eq!(code, Some(0), "{arguments:?}");
        let below = text.lines().skip_while(|line| *line != "Commands:").skip(1).take_while(|line| !line.is_empty());
        // A line that goes on is indented further.
        let names = below.filter_map(|line| line.strip_prefix("  ")?.split(' ').next().filter(|name| !name.is_empty()));
        left.extend(names.map(|name| [&command[..], &[name.to_owned()]].concat()));
        let name: Vec<&str> = ["help"].into_iter().chain(command.iter().map(String::as_str)).collect();
        insta::assert_snapshot!(name.join("_"), text);
        told += 1;
    }
    assert!(told > 40, "{told} commands");
}

#[test]
fn completion_scripts_know_the_commands() {
    for shell in ["bash", "zsh", "fish"] {
        let (code, script, _) = rctl(&["completion", shell]);
        assert_eq!(code, Some(0));
        for word in ["apply", "scale", "completion"] {
            assert!(script.contains(word), "{shell} does not know {word}");
        }
    }
}

/// As when the output goes to a file on a disk that is full.
#[test]
fn output_that_cannot_be_written_is_an_error_not_a_panic() {
    for arguments in [&["completion", "bash"][..], &["version", "--client"]] {
        let full = fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
        let output = Command::new(bin("rctl")).args(arguments).stdout(full).output().expect("rctl starts");
        let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{stderr}");
        assert!(stderr.contains("cannot print: No space left on device"), "{stderr}");
    }
}

#[test]
fn a_reader_that_goes_away_ends_rctl_quietly_and_a_controller_that_does_is_an_error() {
    let mut command = Command::new(bin("rctl"));
    command.arg("--help").stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("rctl starts");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("rctl ends");
    let quietly = output.stderr.is_empty();
    assert!(output.status.signal() == Some(13) && quietly, "{output:?}");

    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("controller.sock");
    let listener = UnixListener::bind(&socket).expect("a socket of ours");
    // Ends with the test's process.
    std::thread::spawn(move || listener.incoming().for_each(drop));
    let endpoint = format!("unix://{}", socket.display());
    let (code, _, stderr) = rctl(&["--endpoint", &endpoint, "--request-timeout", "1s", "ps"]);
    assert!(code == Some(1) && stderr.contains("error: "), "{code:?} {stderr}");
}
