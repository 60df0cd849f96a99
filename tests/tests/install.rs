//! `deploy/install` and `deploy/deb`, into folders; what needs systemd as process 1 is not in here.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use roster_tests::{
    cluster::{bin, repository},
    lab::run,
};

const PROGRAMS: [&str; 4] = ["roster-controller", "roster-agent", "roster-shim", "rctl"];
/// The units set these, or a person at most for a trial: they are in no configuration file.
const NOT_CONFIGURED: [&str; 4] =
    ["ROSTER_CGROUP_PARENT", "ROSTER_SHIM", "ROSTER_CONTROLLER", "ROSTER_CONTROLLER_WAIT"];

fn script(name: &str) -> Command {
    let mut command = Command::new(repository().join("deploy").join(name));
    command.env("ROSTER_BIN", bin("rctl").parent().expect("a folder"));
    command
}

fn install(destdir: &Path, more: &[&str]) -> String {
    run(script("install").arg("--destdir").arg(destdir).args(more)).unwrap_or_else(|error| panic!("{error}"))
}

/// Files below a folder, by their path in it.
fn files(root: &Path) -> BTreeMap<String, u32> {
    let mut found = BTreeMap::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let metadata = entry.metadata().expect("it is there");
            if metadata.is_dir() {
                folders.push(entry.path());
            } else {
                let path = entry.path().strip_prefix(root).expect("it is below").display().to_string();
                found.insert(path, metadata.permissions().mode() & 0o7777);
            }
        }
    }
    found
}

#[test]
fn everything_is_put_in_its_place_and_taken_away_again() {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), &[]);
    let installed = files(folder.path());
    for program in PROGRAMS {
        assert_eq!(installed.get(&format!("usr/local/bin/{program}")), Some(&0o755), "{installed:#?}");
    }
    for unit in ["roster-controller", "roster-agent", "roster-containers"] {
        assert_eq!(installed.get(&format!("etc/systemd/system/{unit}.service")), Some(&0o644), "{installed:#?}");
    }
    assert_eq!(installed.get("etc/roster/roster.env"), Some(&0o644));
    assert_eq!(installed.get("usr/local/share/doc/roster/examples/hello-image"), Some(&0o755), "{installed:#?}");
    let example = fs::read_to_string(folder.path().join("usr/local/share/doc/roster/examples/hello.yaml"));
    assert!(!example.expect("it is there").contains("deploy/"), "it names a file of the checkout");

    // A newer version leaves what an administrator wrote.
    let config = folder.path().join("etc/roster/roster.env");
    fs::write(&config, "ROSTER_LOG=debug\n").expect("ours");
    install(folder.path(), &[]);
    assert_eq!(files(folder.path()), installed);
    assert_eq!(fs::read_to_string(&config).expect("it is there"), "ROSTER_LOG=debug\n");

    install(folder.path(), &["uninstall"]);
    assert_eq!(files(folder.path()).into_keys().collect::<Vec<_>>(), ["etc/roster/roster.env"]);
    install(folder.path(), &["uninstall", "--purge"]);
    assert_eq!(files(folder.path()), BTreeMap::new());
}

#[test]
fn wrong_usage_is_told() {
    for (words, code, said) in [
        (&["--prefix", "here"][..], 1, "must be an absolute path"),
        (&["--purge"], 1, "--purge goes with uninstall"),
        (&["everything"], 2, "Usage: deploy/install"),
    ] {
        let output = script("install").args(words).output().expect("bash runs it");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && stderr.contains(said), "{words:?}: {stderr}");
    }
}

/// `(variable, default)` of a program, from what its help says.
fn variables(program: &str) -> BTreeMap<String, Option<String>> {
    let mut command = Command::new(bin(program));
    // A variable that is set would be shown with its value.
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("ROSTER_")) {
        command.env_remove(name);
    }
    let help = run(command.arg("--help")).unwrap_or_else(|error| panic!("{error}"));
    let inside = |line: &str, word: &str| Some(line.trim().strip_prefix(word)?.strip_suffix(']')?.to_owned());
    let mut found = BTreeMap::new();
    let mut last = None;
    for line in help.lines() {
        if let Some(variable) = inside(line, "[env: ") {
            let name = variable.trim_end_matches('=').to_owned();
            found.insert(name.clone(), None);
            last = Some(name);
        } else if let (Some(default), Some(name)) = (inside(line, "[default: "), &last) {
            found.insert(name.clone(), Some(default));
        }
    }
    found
}

/// What `deploy/roster.env` has on a line of its own for each variable, and whether that is called an example.
fn configured() -> BTreeMap<String, (String, bool)> {
    let text = fs::read_to_string(repository().join("deploy/roster.env")).expect("it is there");
    let lines = text.lines().zip(text.lines().skip(1));
    let written = lines.filter_map(|(above, line)| {
        let (name, value) = line.strip_prefix('#')?.split_once('=')?;
        name.starts_with("ROSTER_").then(|| (name.to_owned(), (value.to_owned(), above.starts_with("# Example"))))
    });
    written.collect()
}

#[test]
fn the_configuration_file_knows_every_variable_and_its_default() {
    let mut known = variables("roster-controller");
    known.extend(variables("roster-agent"));
    known.retain(|name, _| !NOT_CONFIGURED.contains(&name.as_str()));
    let written = configured();
    let names = |names: Vec<&String>| names.into_iter().cloned().collect::<BTreeSet<_>>();
    assert_eq!(
        names(written.keys().collect()),
        names(known.keys().collect()),
        "on the left deploy/roster.env, on the right --help"
    );
    for (name, default) in &known {
        let (value, example) = &written[name];
        assert_eq!(*example, default.is_none(), "{name} is a default or an example");
        if let Some(default) = default {
            assert_eq!(default, value, "the default of {name}");
        }
    }
}

#[test]
fn every_line_of_the_configuration_file_can_be_used_as_it_stands() {
    for program in ["roster-controller", "roster-agent"] {
        let mut command = Command::new(bin(program));
        command.envs(configured().into_iter().map(|(name, (value, _))| (name, value)));
        // The first thing that is looked at once all of the configuration was understood: nothing is started.
        let output = command.env("ROSTER_LOG", "[").output().expect("it is built");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains("--log") && !said.contains("invalid value"), "{said}");
    }
}

#[test]
fn the_units_are_right() {
    let folder = tempfile::tempdir().expect("a folder");
    install(folder.path(), &[]);
    let units = folder.path().join("etc/systemd/system");
    let paths: Vec<PathBuf> = fs::read_dir(&units).expect("units").flatten().map(|entry| entry.path()).collect();
    assert_eq!(paths.len(), 3);
    for path in &paths {
        let text = fs::read_to_string(path).expect("a unit");
        assert!(!text.contains('@'), "a place was not filled in:\n{text}");
        // The programs must be where the unit says; here that is below the folder.
        let there = folder.path().join("usr/local").display().to_string();
        fs::write(path, text.replace("/usr/local", &there)).expect("ours");
    }
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(&paths)
        .output()
        .expect("systemd is installed");
    let said = String::from_utf8_lossy(&output.stderr);
    let ours: Vec<&str> = said.lines().filter(|line| line.contains("roster")).collect();
    assert!(output.status.success() && ours.is_empty(), "{said}");
}

#[test]
fn the_package_is_whole() {
    let folder = tempfile::tempdir().expect("a folder");
    // Compressing test builds would take most of the test's time.
    let built = run(script("deb").arg(folder.path()).env("DPKG_DEB_COMPRESSOR_TYPE", "none"));
    let package = built.unwrap_or_else(|error| panic!("{error}")).trim().to_owned();
    let ask = |arguments: &[&str]| {
        run(Command::new("dpkg-deb").args(arguments)).unwrap_or_else(|error| panic!("{error}")).trim().to_owned()
    };
    assert_eq!(ask(&["-f", &package, "Package"]), "roster");
    assert_eq!(ask(&["-f", &package, "Version"]), env!("CARGO_PKG_VERSION"));
    let depends = ask(&["-f", &package, "Depends"]);
    assert!(depends.contains("libc6 (>= ") && depends.contains("nftables"), "{depends}");
    assert_eq!(ask(&["-I", &package, "conffiles"]), "/etc/roster/roster.env");

    let tree = folder.path().join("tree");
    ask(&["-x", &package, &tree.display().to_string()]);
    let unpacked = files(&tree);
    for program in PROGRAMS {
        assert_eq!(unpacked.get(&format!("usr/bin/{program}")), Some(&0o755), "{unpacked:#?}");
    }
    assert!(unpacked.contains_key("usr/lib/systemd/system/roster-agent.service"), "{unpacked:#?}");
    let version = run(Command::new(tree.join("usr/bin/roster-controller")).arg("--version"));
    assert_eq!(version.unwrap_or_else(|error| panic!("{error}")).split(' ').next(), Some("roster-controller"));
    let agent = fs::read_to_string(tree.join("usr/lib/systemd/system/roster-agent.service")).expect("a unit");
    assert!(agent.contains("ExecStart=/usr/bin/roster-agent ") && agent.contains("KillMode=process"), "{agent}");
}
