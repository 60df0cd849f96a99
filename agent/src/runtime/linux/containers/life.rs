//! A container that runs: seen, waited for, asked to end, made to stand still.

use std::{fs, io, sync::Arc, time::Duration};

use roster_proto::id::TaskId;
use roster_runtime::{config, sys};

use super::{Containers, Seen, blocking, failed, stop_signal, unknown};
use crate::{
    clock::BootTime,
    runtime::{
        Ended, Exit, RuntimeError,
        linux::{foreign::Places, lease::LeaseFile, readiness, record, report::cause},
    },
};

/// How long processes may take to stand still: those that wait for a disk do only when it has answered.
const FREEZE_PATIENCE: Duration = Duration::from_secs(5);
/// Between two looks at a container that waits for somebody to attach.
const HELD_LOOK: Duration = Duration::from_millis(100);

impl Containers {
    /// Resolves when the container has ended.
    pub async fn ended(self: &Arc<Self>, task: &TaskId) -> Result<Ended, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let running = bundle.running().map_err(unreadable)?.ok_or_else(|| unknown(task))?;
        let shim = running.shim.pidfd().map_err(|error| failed("open the shim's process".to_owned(), error))?;
        if let Some(shim) = shim {
            readiness::process_end(shim).await.map_err(|error| failed("wait for the shim".to_owned(), error))?;
        }
        if let Some(ended) = bundle.ended().map_err(unreadable)? {
            return Ok(ended);
        }
        // Whatever of the container outlived its shim must not go on unwatched.
        self.kill(task).await?;
        Ok(Ended { how: Exit::ShimLost, at: record::now() })
    }

    /// Looked at now and again: hardly any waits for longer than a moment.
    pub async fn begun(&self, task: &TaskId) {
        let held = self.bundle(task).held();
        while held.exists() {
            tokio::time::sleep(HELD_LOOK).await;
        }
    }

    pub async fn stop(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let config = fs::read(bundle.config()).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => unknown(task),
            _ => unreadable(error),
        })?;
        let spec = config::parse(&config).map_err(|error| unreadable(error.into()))?;
        // What has not begun cannot be asked to end.
        let signal = if bundle.held().exists() { nix::libc::SIGKILL } else { stop_signal(&spec)? };
        let (this, task) = (self.clone(), task.clone());
        blocking(move || {
            this.signal(&task, signal)?;
            // The signal is what it finds first when it goes on.
            if this.is_frozen(&task) { this.thaw(&task) } else { Ok(()) }
        })
        .await
    }

    /// Returns when every process stands still; when some do not in time, all go on.
    pub fn freeze(&self, task: &TaskId) -> Result<(), RuntimeError> {
        if self.see(task)?.is_none() {
            return Ok(());
        }
        let frozen = self.hierarchies.freeze(&self.group(task), FREEZE_PATIENCE);
        frozen.map_err(|error| RuntimeError { cause: cause(error), transient: true })
    }

    pub fn thaw(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let thawed = self.hierarchies.thaw(&self.group(task));
        thawed.map_err(|error| RuntimeError { cause: cause(error), transient: true })
    }

    /// Where the host has no freezer, nothing was ever frozen.
    pub(in crate::runtime::linux) fn is_frozen(&self, task: &TaskId) -> bool {
        self.hierarchies.is_frozen(&self.group(task)).unwrap_or(false)
    }

    /// To its first process; false: it has ended. One that stands still gets it when it goes on, but for SIGKILL.
    /// Blocks, under another runtime for as long as that takes.
    pub fn signal(&self, task: &TaskId, signal: i32) -> Result<bool, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let Some(running) = bundle.running().map_err(unreadable)? else { return Err(unknown(task)) };
        let step = || format!("send signal {signal} to the container");
        if let Some(runtime) = bundle.foreign().map_err(unreadable)? {
            // Its first process may be no process of the container's, but a sandbox around it.
            if !running.init.is_running() {
                return Ok(false);
            }
            let sent = runtime.call(&Places::of(&bundle), "kill", &[], &[&signal.to_string()]);
            return sent.map(|()| true).map_err(|error| RuntimeError { cause: cause(error), transient: true });
        }
        let Some(init) = running.init.pidfd().map_err(|error| failed(step(), error))? else { return Ok(false) };
        match sys::pidfd_send_signal(init, signal) {
            // On cgroup v1 even that waits until it is thawed.
            Ok(()) if signal == nix::libc::SIGKILL && self.is_frozen(task) => self.thaw(task).map(|()| true),
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(nix::libc::ESRCH) => Ok(false),
            Err(error) => Err(failed(step(), error)),
        }
    }

    pub fn see(&self, task: &TaskId) -> Result<Option<Seen>, RuntimeError> {
        let bundle = self.bundle(task);
        let unreadable = |error| failed(format!("read the records in {}", bundle.0.display()), error);
        let Some(running) = bundle.running().map_err(unreadable)? else { return Ok(None) };
        if !running.init.is_running() {
            return Ok(None);
        }
        let disk = self.disks.of(task).exists().then(|| self.layer_dir(task));
        Ok(Some(Seen { task: task.clone(), init: running.init, cgroup: self.cgroup(task)?, disk }))
    }

    pub async fn kill(self: &Arc<Self>, task: &TaskId) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup(task)?;
        blocking(move || cgroup.kill().map_err(|error| failed("kill the container".to_owned(), error))).await
    }

    pub fn extend_lease(&self, until: BootTime) -> Result<(), RuntimeError> {
        let file = LeaseFile::within(&self.config.run_dir);
        file.write(until).map_err(|error| failed(format!("write the lease {}", file.0.display()), error))
    }
}
