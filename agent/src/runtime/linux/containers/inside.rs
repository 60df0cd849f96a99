//! What goes on in a container beside its own program, and what its files are.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use roster_proto::{id::TaskId, wire};
use roster_runtime::{cgroup::CgroupDirs, sys};
use roster_tree::Root;

use super::{Containers, blocking, failed, kept, unknown};
use crate::runtime::{
    Phase, Probed, RuntimeError,
    linux::{
        live::{self, LiveError, LiveInput, LiveOutput},
        record::BundleDir,
        report::cause,
        shim::Call,
    },
};

impl Containers {
    pub async fn probe(&self, task: &TaskId, command: &[String], timeout: Duration) -> Result<Probed, RuntimeError> {
        let call = Call::Exec {
            bundle: self.bundle(task).0,
            cgroup: self.cgroup(task)?.0,
            timeout,
            command: command.iter().map(Into::into).collect(),
        };
        self.shim.exec(&call, timeout).await
    }

    pub(in crate::runtime::linux) fn made_by_other(&self, task: &TaskId) -> Result<Option<String>, RuntimeError> {
        let bundle = self.bundle(task);
        let foreign = bundle.foreign().map_err(|error| failed(format!("read {}", bundle.0.display()), error))?;
        Ok(foreign.map(|runtime| runtime.to_string()))
    }

    /// As its configuration has them.
    pub fn layers(&self, task: &TaskId) -> Result<Vec<PathBuf>, RuntimeError> {
        let bundle = self.kept_bundle(task).unwrap_or_else(|| self.bundle(task));
        if !bundle.config().exists() {
            return Err(unknown(task));
        }
        let spec = bundle.spec().map_err(|error| RuntimeError { cause: cause(error), transient: true })?;
        Ok(kept::layers_of(&spec))
    }

    pub(in crate::runtime::linux) fn running_bundle(&self, task: &TaskId) -> Result<BundleDir, LiveError> {
        match self.phase(task) {
            Ok(Phase::Running(_)) => Ok(self.bundle(task)),
            _ => Err(LiveError::NotRunning(task.to_string())),
        }
    }

    /// What the container has for `/`, with all that is mounted in it.
    pub(in crate::runtime::linux) fn root(&self, task: &TaskId) -> Result<Root, LiveError> {
        if let Some(kept) = self.kept_bundle(task) {
            return self.kept_root(&kept);
        }
        let not_running = || LiveError::NotRunning(task.to_string());
        let cannot = |source| LiveError::Io { doing: "open the container's root", source };
        let bundle = self.bundle(task);
        let running = bundle.running().map_err(cannot)?.ok_or_else(not_running)?;
        is_ours(&bundle)?;
        let init = running.init.pidfd().map_err(cannot)?.ok_or_else(not_running)?;
        let root = fs::File::open(format!("/proc/{}/root", running.init.pid)).map_err(cannot)?;
        // That it still runs now says that it was its root.
        match sys::wait_readable(&init, Duration::ZERO).map_err(cannot)? {
            true => Err(not_running()),
            false => Ok(Root::whole(root)),
        }
    }

    /// Runs one more program in the container, to its end or until its caller detaches.
    pub(in crate::runtime::linux) async fn run_program(
        self: &Arc<Self>,
        task: &TaskId,
        program: &wire::Program,
        input: LiveInput,
        output: LiveOutput,
    ) -> Result<(), LiveError> {
        if self.kept_bundle(task).is_some() {
            return self.run_in_kept(task, program, input, output).await;
        }
        let running = self.running_bundle(task);
        is_ours(&running.map_err(|error| if program.tools { LiveError::NotKept(task.to_string()) } else { error })?)?;
        if self.hierarchies.is_frozen(&self.group(task)).map_err(LiveError::Start)? {
            return Err(LiveError::Paused);
        }
        let cgroup = self.cgroup(task)?;
        let group = format!("live-{:016x}", rand::random::<u64>());
        let own = CgroupDirs(vec![cgroup.0[0].join(&group)]);
        let shim = self.shim.live(&Call::Live { bundle: self.bundle(task).0, cgroup: cgroup.0, group })?;
        let result = live::run(shim, &program.into(), true, input, output).await;
        if let Err(LiveError::ShimDied) = result {
            // It would have done so.
            blocking(move || own.remove().map_err(|error| failed("clear the program's cgroup".to_owned(), error)))
                .await?;
        }
        result
    }
}

/// What a container of another runtime is like inside, only that runtime knows: its first process may be a whole kernel.
fn is_ours(bundle: &BundleDir) -> Result<(), LiveError> {
    let foreign = bundle.foreign();
    match foreign.map_err(|source| LiveError::Io { doing: "read which runtime made the container", source })? {
        Some(runtime) => Err(LiveError::Foreign(runtime.to_string())),
        None => Ok(()),
    }
}
