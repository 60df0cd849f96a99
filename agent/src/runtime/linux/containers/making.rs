//! From an assignment and an unpacked image to a container that runs.

use std::{fs, io, os::unix::fs::PermissionsExt, path::PathBuf, sync::Arc};

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    spec::{IpcMode, PidMode},
    task::StopReason,
};

use super::{Containers, RootImage, blocking, failed, private_dir, stop_signal};
use crate::runtime::{
    Phase, RuntimeError, Started,
    linux::{
        bundle::{self, Contents, Network, Platform},
        devices::HostDevices,
        etc,
        foreign::ForeignRuntime,
        lease::LeaseFile,
        report::cause,
        shim::{Call, lease, partner::Partner},
    },
};

impl Containers {
    /// Makes the container and runs it; what was half made before is torn down first, what already runs stays.
    pub async fn start(
        self: &Arc<Self>,
        assignment: &Assignment,
        image: RootImage<'_>,
        network: Network<'_>,
    ) -> Result<Started, RuntimeError> {
        let lock = self.lock(&assignment.task);
        let _guard = lock.lock().await;
        let _permit = self.starts.acquire().await.expect("the semaphore is never closed");
        let spec = self.spec(assignment, image, &network)?;
        let hostname = bundle::hostname(assignment);
        let files = etc::Files::of_host(&hostname, &network).map_err(|error| failed("read /etc".to_owned(), error))?;
        let (this, assignment, address) = (self.clone(), assignment.clone(), network.address());
        blocking(move || {
            if let Phase::Running(started) = this.phase(&assignment.task)? {
                return Ok(started);
            }
            this.tear_down(&assignment.task)?;
            let result = this.make(&assignment, &spec, &files, address);
            if result.is_err() {
                // The failure is told; what this cannot clean up is listed as broken, to be removed again.
                let _ = this.tear_down(&assignment.task);
            }
            result
        })
        .await
    }

    fn spec(
        &self,
        assignment: &Assignment,
        image: RootImage<'_>,
        network: &Network<'_>,
    ) -> Result<oci_spec::runtime::Spec, RuntimeError> {
        let dir = self.layer_dir(&assignment.task);
        let mut lower: Vec<PathBuf> = image.layers.iter().rev().cloned().collect();
        lower.push(self.base.clone());
        let impossible = |error| RuntimeError { cause: cause(error), transient: false };
        let devices = HostDevices::of(&assignment.spec).map_err(impossible)?;
        let spec = bundle::spec(&Contents {
            assignment,
            node: &self.config.node,
            image: image.config,
            lower,
            upper: dir.join("upper"),
            work: dir.join("work"),
            files: &dir,
            network: *network,
            cgroup: self.group(&assignment.task),
            cgroup2: self.hierarchies.is_v2(),
            platform: Platform::of_host(),
            devices: &devices,
        });
        let spec = spec.map_err(impossible)?;
        stop_signal(&spec)?;
        Ok(spec)
    }

    fn make(
        &self,
        assignment: &Assignment,
        spec: &oci_spec::runtime::Spec,
        files: &etc::Files,
        address: Option<std::net::Ipv4Addr>,
    ) -> Result<Started, RuntimeError> {
        let task = &assignment.task;
        let (bundle, dir) = (self.bundle(task), self.layer_dir(task));
        let foreign = self.foreign(assignment)?;
        private_dir(&dir).map_err(|error| failed(format!("make the directory {}", dir.display()), error))?;
        if let Some(size) = assignment.spec.resources.limits.disk.or(self.config.disk) {
            self.disks.make(task, size, &dir)?;
        }
        let made = || -> io::Result<()> {
            // What `/` looks like in the container.
            fs::create_dir(dir.join("upper"))?;
            fs::set_permissions(dir.join("upper"), fs::Permissions::from_mode(etc::ENTERABLE))?;
            fs::create_dir(dir.join("work"))?;
            private_dir(&bundle.rootfs())?;
            files.write(&dir)?;
            fs::write(bundle.config(), serde_json::to_vec(spec)?)?;
            if assignment.spec.attended {
                fs::write(bundle.held(), [])?;
            }
            foreign.map_or(Ok(()), |runtime| bundle.write_foreign(runtime))
        };
        made().map_err(|error| failed("write the bundle".to_owned(), error))?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let cgroup = self.hierarchies.create(&self.group(task), &resources, true).map_err(|error| {
            let what = format!("limiting {}", assignment.name());
            RuntimeError { cause: Cause::Impossible { what, reason: error.to_string() }, transient: false }
        })?;
        let lease = match assignment.spec.singleton {
            true => Some(lease::Terms {
                file: LeaseFile::within(&self.config.run_dir),
                signal: stop_signal(spec)?,
                grace: assignment.spec.stop_grace_period,
            }),
            false => None,
        };
        let (logs, foreign) = (self.log_dir(task), foreign.is_some());
        let (stdin, host_pid) = (assignment.spec.stdin_open, assignment.spec.rights.pid == PidMode::Host);
        let partner = self.partner(assignment)?;
        let attended = assignment.spec.attended;
        let (bundle, cgroup) = (bundle.0, cgroup.0);
        let call = Call::Run { bundle, logs, cgroup, address, stdin, host_pid, partner, foreign, attended, lease };
        let begun = self.shim.run(&call).map(Started::from);
        match partner {
            Some(partner) if begun.is_err() && partner.is_gone() => Err(severed()),
            _ => begun,
        }
    }

    /// The container whose namespaces it shares, which must run.
    fn partner(&self, assignment: &Assignment) -> Result<Option<Partner>, RuntimeError> {
        let rights = &assignment.spec.rights;
        let (ipc, pid) = (matches!(rights.ipc, IpcMode::Service(_)), matches!(rights.pid, PidMode::Service(_)));
        if !ipc && !pid {
            return Ok(None);
        }
        let Some(task) = &assignment.shares_with else { return Err(severed()) };
        if let Some(runtime) = self.made_by_other(task)? {
            let reason = format!("the runtime {runtime} made that one, and only it knows what is inside");
            let cause = Cause::Impossible { what: "sharing the namespaces of another container".to_owned(), reason };
            return Err(RuntimeError { cause, transient: false });
        }
        let seen = self.see(task)?.ok_or_else(severed)?;
        Ok(Some(Partner { init: seen.init, ipc, pid }))
    }

    /// The other runtime that the spec asks for.
    fn foreign(&self, assignment: &Assignment) -> Result<Option<&ForeignRuntime>, RuntimeError> {
        let Some(name) = &assignment.spec.runtime else { return Ok(None) };
        let known = self.config.runtimes.get(name).map(Some);
        known.ok_or_else(|| {
            let names: Vec<&str> = self.config.runtimes.keys().map(String::as_str).collect();
            let knows = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
            let reason = format!(
                "this node's agent was told of no runtime of that name, only of {knows}: start it with --runtime \
                 {name}=PROGRAM, or remove `runtime`"
            );
            let cause = Cause::Impossible { what: format!("running it by the runtime {name}"), reason };
            RuntimeError { cause, transient: false }
        })
    }
}

/// The namespaces that were to be shared are gone: no failure of the container's own.
fn severed() -> RuntimeError {
    RuntimeError { cause: Cause::Stopped { reason: StopReason::Severed }, transient: false }
}
