//! Making a group on v2 in which the controllers work that are needed.
//!
//! A controller works in a group only if every group above hands it down: written in `cgroup.subtree_control`, which
//! the kernel refuses of a group (other than the root) with processes of its own. Handing down waits for groups that
//! are being removed nearby, so it is done only where it is not done yet.
//!
//! Source: the kernel's Documentation/admin-guide/cgroup-v2.rst, "Controllers".

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::{StartError, Step};

/// A group above, and what it hands down already.
struct Above {
    path: PathBuf,
    handed: String,
}

/// What is to be written to a group's `cgroup.subtree_control`.
#[derive(Debug, PartialEq, Eq)]
struct HandDown {
    path: PathBuf,
    value: String,
}

/// For a group that is there.
pub(super) fn enable(root: &Path, group: &Path, needed: &[&str]) -> Result<(), StartError> {
    if lacking(needed, &read(&group.join("cgroup.controllers"))?).is_empty() {
        return Ok(());
    }
    let offered = read(&root.join("cgroup.controllers"))?;
    let mut above = Vec::new();
    for path in group.ancestors().skip(1).take_while(|dir| dir.starts_with(root)) {
        above.push(Above { path: path.to_owned(), handed: read(&path.join("cgroup.subtree_control"))? });
    }
    above.reverse();
    for HandDown { path, value } in plan(&offered, above, needed)? {
        fs::write(path.join("cgroup.subtree_control"), &value).map_err(|error| refused(&path, &value, error))?;
    }
    Ok(())
}

/// From the root down.
fn plan(offered: &str, above: Vec<Above>, needed: &[&str]) -> Result<Vec<HandDown>, StartError> {
    if let Some(name) = lacking(needed, offered).first() {
        let reason =
            "the kernel does not offer it at the root of control groups v2: build it in, or unmount it from v1";
        return Err(StartError::impossible(format!("using the cgroup controller {name}"), reason));
    }
    let hand_down = |Above { path, handed }| {
        let lacking = lacking(needed, &handed);
        let value = lacking.iter().map(|name| format!("+{name}")).collect::<Vec<_>>().join(" ");
        (!lacking.is_empty()).then_some(HandDown { path, value })
    };
    Ok(above.into_iter().filter_map(hand_down).collect())
}

fn lacking<'a>(needed: &[&'a str], there: &str) -> Vec<&'a str> {
    needed.iter().copied().filter(|name| !there.split_ascii_whitespace().any(|other| other == *name)).collect()
}

fn read(path: &Path) -> Result<String, StartError> {
    fs::read_to_string(path).step(|| format!("read {}", path.display()))
}

fn refused(path: &Path, value: &str, error: io::Error) -> StartError {
    let what = format!("handing down the cgroup controllers {value:?} in {}", path.display());
    if error.raw_os_error() == Some(nix::libc::EBUSY) {
        let reason = "it has processes of its own, and such a group must not hand any down: choose another cgroup \
                      above the container's";
        return StartError::impossible(what, reason);
    }
    StartError::Step { step: what, error: error.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn above(groups: &[(&str, &str)]) -> Vec<Above> {
        groups.iter().map(|(path, handed)| Above { path: path.into(), handed: (*handed).to_owned() }).collect()
    }

    #[test]
    fn only_what_is_not_handed_down_yet_is_from_the_root_down() {
        let above = above(&[("/c", "cpu memory pids"), ("/c/roster", "memory"), ("/c/roster/web", "")]);
        let plan = plan("cpu cpuset io memory pids\n", above, &["pids", "memory", "cpu"]).unwrap();
        let expected = [("/c/roster", "+pids +cpu"), ("/c/roster/web", "+pids +memory +cpu")]
            .map(|(path, value)| HandDown { path: path.into(), value: value.to_owned() });
        assert_eq!(plan, expected);
    }

    #[test]
    fn a_controller_that_the_root_does_not_offer_is_named() {
        let error = plan("cpu memory\n", above(&[("/c", "")]), &["memory", "pids"]).unwrap_err().to_string();
        assert!(error.contains("cgroup controller pids"), "{error}");
    }
}
