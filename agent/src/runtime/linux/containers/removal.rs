//! Removing a container, whatever of it there is.

use std::{
    io,
    path::Path,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use roster_proto::id::TaskId;
use roster_runtime::sys;

use super::{Containers, blocking, failed, kept};
use crate::runtime::{
    RuntimeError,
    linux::{disk, foreign::Places, logs},
};

/// Looking through all kept logs costs more than removing a container: done once in so many.
const REMOVALS_PER_PRUNE: u64 = 16;
/// How long the shim of a container that was killed may take to write its records and go.
const SHIM_DEADLINE: Duration = Duration::from_secs(5);

impl Containers {
    /// Kills what still runs and removes every trace but the log; of a kept one not while somebody looks into it.
    pub async fn remove(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let lock = self.lock(task);
        let _guard = lock.lock().await;
        let (this, task) = (self.clone(), task.clone());
        blocking(move || {
            if this.is_inspected(&task) {
                return Err(failed(format!("remove what is kept of task {task}"), "somebody looks into it"));
            }
            let removed = this.tear_down(&task);
            let due = this.removals.fetch_add(1, Ordering::Relaxed).is_multiple_of(REMOVALS_PER_PRUNE);
            removed.and(if due { this.prune_logs() } else { Ok(()) })
        })
        .await
    }

    fn prune_logs(&self) -> Result<(), RuntimeError> {
        let homes = [self.config.run_dir.join("tasks"), self.kept_dir()];
        logs::prune(&self.config.data_dir.join("logs"), |task| homes.iter().any(|home| home.join(task).exists()))
            .map_err(|error| failed("delete the oldest logs".to_owned(), error))
    }

    /// Idempotent; goes on past errors.
    pub(super) fn tear_down(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.tear_down_all_but(task, Path::new(""))
    }

    pub(super) fn tear_down_all_but(&self, task: &TaskId, kept: &Path) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup(task)?;
        let mut errors = Vec::new();
        let mut attempt = |step: &str, result: io::Result<()>| {
            errors.extend(result.err().map(|error| format!("{step}: {error}")));
        };
        attempt("kill its processes", cgroup.kill());
        attempt("end its shim", self.end_shim(task));
        attempt("have its runtime remove it", self.delete_foreign(task));
        attempt("remove its cgroup", cgroup.remove());
        attempt("unmount its files", disk::unmount(&self.layer_dir(task)));
        for place in [self.layer_dir(task), self.kept_place(task)].iter().filter(|place| *place != kept) {
            attempt("unmount what is kept of its files", disk::unmount(&place.join(kept::FILES)));
        }
        let places = [
            ("remove its files", self.layer_dir(task)),
            ("remove its disk", self.disks.of(task)),
            ("remove its bundle", self.bundle(task).0),
            ("remove what is kept of it", self.kept_place(task)),
        ];
        for (step, place) in places.into_iter().filter(|(_, place)| place != kept) {
            attempt(step, self.trash.take(&place));
        }
        if errors.is_empty() {
            return Ok(());
        }
        Err(failed(format!("remove task {task}"), errors.join("; ")))
    }

    /// What the shim of a container of another runtime's did not come to.
    fn delete_foreign(&self, task: &TaskId) -> io::Result<()> {
        let bundle = self.bundle(task);
        let Some(runtime) = bundle.foreign()? else { return Ok(()) };
        let places = Places::of(&bundle);
        if !places.has_state() {
            return Ok(());
        }
        runtime.call(&places, "delete", &["--force"], &[]).map_err(io::Error::other)
    }

    /// Lets it write its records; a shim that takes too long is killed.
    pub(super) fn end_shim(&self, task: &TaskId) -> io::Result<()> {
        let Some(running) = self.bundle(task).running()? else { return Ok(()) };
        let Some(shim) = running.shim.pidfd()? else { return Ok(()) };
        if sys::wait_readable(&shim, SHIM_DEADLINE)? {
            return Ok(());
        }
        sys::pidfd_send_signal(&shim, nix::libc::SIGKILL)?;
        match sys::wait_readable(&shim, SHIM_DEADLINE)? {
            true => Ok(()),
            false => Err(io::Error::new(io::ErrorKind::TimedOut, "the shim does not die")),
        }
    }
}
