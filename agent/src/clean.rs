//! Ends everything an agent has on a host: `roster-agent clean`.
//!
//! Works from what exists, not from what should, so it also clears up after an agent that died half-way. Goes on past
//! what it cannot remove and returns all of it.

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{StreamExt, stream};
use roster_proto::id::TaskId;

use crate::{
    runtime::{Phase, Runtime, linux::trash},
    telemetry::Chain,
};

/// Containers ended at a time.
const AT_ONCE: usize = 16;
/// Of the directories under the agent's own; anything else in there is not ours to delete.
const DATA: [&str; 9] = ["images", "containers", "disks", "kept", "logs", "base", "trash", "ledger", "identity"];
const RUN: [&str; 5] = ["tasks", "trash", "netns", "lease", "lock"];
/// Another thread of this process may be deleting in the same directory.
const DELETIONS: u32 = 5;

/// What is left, and why.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Leftovers(pub Vec<String>);

impl Leftovers {
    pub fn note<T, E: std::error::Error + 'static>(&mut self, what: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|error| self.0.push(format!("{what}: {}", Chain(&error)))).ok()
    }
}

/// Stops and removes every container: stop signal, `grace`, SIGKILL. Returns how many there were.
pub async fn containers<R: Runtime>(runtime: &Arc<R>, grace: Duration, left: &mut Leftovers) -> usize {
    let found = left.note("list the containers", runtime.list().await).unwrap_or_default();
    let ends = found.iter().map(|observed| async {
        if matches!(observed.phase, Phase::Running(_)) {
            stop(&**runtime, &observed.task, grace).await;
        }
        (&observed.task, runtime.remove(&observed.task).await)
    });
    let ends: Vec<_> = stream::iter(ends).buffer_unordered(AT_ONCE).collect().await;
    for (task, end) in ends {
        left.note(&format!("remove the container of task {task}"), end);
    }
    found.len()
}

/// What does not stop in time, or cannot be told to, is killed by its removal.
async fn stop<R: Runtime>(runtime: &R, task: &TaskId, grace: Duration) {
    if !grace.is_zero() && runtime.stop(task).await.is_ok() {
        _ = tokio::time::timeout(grace, runtime.ended(task)).await;
    }
}

/// Removes what the agent keeps in its run directory, and with `purge` in its data directory.
pub fn directories(run_dir: &Path, data_dir: &Path, purge: bool, left: &mut Leftovers) {
    if purge {
        remove(data_dir, &DATA, left);
    }
    remove(run_dir, &RUN, left);
}

fn remove(directory: &Path, names: &[&str], left: &mut Leftovers) {
    for path in names.iter().map(|name| directory.join(name)) {
        left.note(&format!("delete {}", path.display()), delete(&path));
    }
    left.note(&format!("delete {}", directory.display()), absent_is_fine(fs::remove_dir(directory)));
}

fn delete(path: &PathBuf) -> io::Result<()> {
    let mut result = Ok(());
    for _ in 0..DELETIONS {
        result = match fs::symlink_metadata(path) {
            // Containers' trees may be deeper than std's way of deleting them can go.
            Ok(metadata) if metadata.is_dir() => absent_is_fine(trash::empty(path).and_then(|()| fs::remove_dir(path))),
            Ok(_) => absent_is_fine(fs::remove_file(path)),
            Err(error) => absent_is_fine(Err(error)),
        };
        if result.is_ok() {
            break;
        }
    }
    result
}

fn absent_is_fine(result: io::Result<()>) -> io::Result<()> {
    result.or_else(|error| if error.kind() == io::ErrorKind::NotFound { Ok(()) } else { Err(error) })
}

#[cfg(test)]
mod tests {
    use roster_proto::{assignment::Assignment, id::Slot, spec::TaskSpec, task::Desired};

    use super::*;
    use crate::runtime::memory::{self, MemoryRuntime};

    #[tokio::test]
    async fn everything_is_stopped_and_removed() {
        let runtime = Arc::new(MemoryRuntime::default());
        for (name, command) in [("a", "sleep"), ("b", "stubborn")] {
            let spec = TaskSpec { command: Some(vec![command.into()]), ..TaskSpec::of_image("web") };
            let assignment = Assignment {
                task: TaskId::new(name).unwrap(),
                service: "shop/web".parse().unwrap(),
                slot: Slot::Replica(1),
                desired: Desired::Run,
                spec: Arc::new(spec),
                ports: Vec::new(),
                paused: false,
                shares_with: None,
            };
            runtime.start(&assignment).await.unwrap();
        }
        let mut left = Leftovers::default();
        assert_eq!(containers(&runtime, Duration::from_millis(20), &mut left).await, 2);
        assert_eq!(left, Leftovers::default());
        assert_eq!(runtime.list().await.unwrap(), []);

        runtime.fail("list", [memory::error("read", false)]);
        containers(&runtime, Duration::ZERO, &mut left).await;
        assert_eq!(left.0, ["list the containers: cannot start: read: as the test wants"]);
    }

    #[test]
    fn a_tree_deeper_than_descriptors_go_is_deleted() {
        use nix::{
            fcntl::{OFlag, openat},
            sys::stat::{Mode, mkdirat},
        };
        let root = tempfile::tempdir().unwrap();
        let (run, data) = (root.path().join("run"), root.path().join("data"));
        fs::create_dir_all(&run).unwrap();
        fs::create_dir_all(data.join("containers")).unwrap();
        let mut at = openat(nix::fcntl::AT_FDCWD, &data.join("containers"), OFlag::O_RDONLY, Mode::empty()).unwrap();
        for _ in 0..21_000 {
            mkdirat(&at, "d", Mode::S_IRWXU).unwrap();
            at = openat(&at, "d", OFlag::O_RDONLY, Mode::empty()).unwrap();
        }
        let mut left = Leftovers::default();
        directories(&run, &data, true, &mut left);
        assert_eq!((left, data.exists()), (Leftovers::default(), false));
    }

    #[test]
    fn only_what_is_ours_is_deleted() {
        let root = tempfile::tempdir().unwrap();
        let (run, data) = (root.path().join("run"), root.path().join("data"));
        for path in ["run/tasks/a/bundle", "run/netns", "data/images/blobs", "data/ledger"] {
            fs::create_dir_all(root.path().join(path)).unwrap();
        }
        fs::write(run.join("lock"), "").unwrap();
        fs::write(data.join("precious"), "").unwrap();
        let mut left = Leftovers::default();
        directories(&run, &data, false, &mut left);
        assert_eq!(left, Leftovers::default());
        assert!(!run.exists() && data.join("images/blobs").exists());

        directories(&run, &data, true, &mut left);
        assert!(data.join("precious").exists() && !data.join("images").exists());
        assert!(left.0.len() == 1 && left.0[0].contains("not empty"), "{left:?}");
    }
}
