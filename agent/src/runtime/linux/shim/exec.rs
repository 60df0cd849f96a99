//! `roster-shim exec`: one command in a running container, with its identity and limits, up to a timeout.
//!
//! The command has a cgroup of its own below the container's, so that at the end, or at the timeout, everything it
//! started goes with it.

use std::{ffi::OsString, os::fd::OwnedFd, time::Duration};

use nix::libc;
use oci_spec::runtime::Spec;
use roster_runtime::{
    cgroup::CgroupDirs,
    channel::await_exec,
    container::Stdio,
    enter::{Entered, Entry, enter},
    error::{StartError, Step},
    namespaces::Namespaces,
    sys,
};

use super::{foreign, report};
use crate::runtime::linux::{record::BundleDir, report::ExecReport};

pub(super) fn exec(
    bundle: &BundleDir,
    cgroup: &CgroupDirs,
    timeout: Duration,
    command: &[OsString],
) -> Result<(), StartError> {
    if let Some(runtime) = bundle.foreign().step(|| "read which runtime made the container".to_owned())? {
        report(&foreign::exec(&runtime, bundle, timeout, command)?);
        return Ok(());
    }
    let gone = || StartError::impossible("running a command in the container", "it is not running");
    let running = bundle.running().step(|| "read the container's record".to_owned())?.ok_or_else(gone)?;
    let container = running.init.pidfd().step(|| "open the container's first process".to_owned())?.ok_or_else(gone)?;
    let mut spec = bundle.spec()?;
    if let Some(process) = spec.process_mut() {
        process.set_terminal(Some(false));
        process.set_args(Some(command.iter().map(|arg| arg.to_string_lossy().into_owned()).collect()));
    }

    let name = format!("exec-{}", std::process::id());
    let group = cgroup.child(&name).step(|| "make a cgroup for the command".to_owned())?;
    let result = run(&group, &container, &spec, timeout);
    // Only its own directory: the others are the container's.
    let removed = own(&group).remove().step(|| "remove the command's cgroup".to_owned());
    let answer = result?;
    removed?;
    report(&answer);
    Ok(())
}

fn own(group: &CgroupDirs) -> CgroupDirs {
    CgroupDirs(group.0[..1].to_vec())
}

fn run(group: &CgroupDirs, container: &OwnedFd, spec: &Spec, timeout: Duration) -> Result<ExecReport, StartError> {
    let missing = || StartError::impossible("running a command in the container", "config.json has no process");
    let linux = spec.linux().as_ref();
    // Standard output is the agent's pipe for what the command says; the report's pipe is not for the container.
    let output = || {
        let output = std::os::fd::AsFd::as_fd(&std::io::stdout()).try_clone_to_owned();
        output.step(|| "connect standard output".to_owned())
    };
    let entry = Entry {
        container,
        namespaces: Namespaces::of(spec)?.flags(),
        door: group.door().step(|| "open the command's cgroup".to_owned())?,
        stdio: Stdio::Given {
            input: sys::open_null().step(|| "open /dev/null".to_owned())?.into(),
            out: output()?,
            err: output()?,
        },
        process: spec.process().as_ref().ok_or_else(missing)?,
        seccomp: linux.and_then(|linux| linux.seccomp().as_ref()),
        personality: linux.and_then(|linux| linux.personality().clone()),
        dies_with_maker: true,
        preserved: 0,
        toolbox: None,
    };
    // SAFETY: the shim never starts a thread.
    let Entered { pidfd, channel, .. } = unsafe { enter(entry) }?;
    let ended = sys::wait_readable(&pidfd, timeout).step(|| "wait for the command".to_owned())?;
    if !ended {
        own(group).kill().step(|| "kill the command".to_owned())?;
        // Had it not come as far as its cgroup, it is no member yet.
        sys::pidfd_send_signal(&pidfd, libc::SIGKILL).step(|| "kill the command".to_owned())?;
    }
    let status = sys::wait(&pidfd).step(|| "wait for the command".to_owned())?;
    if !ended {
        return Ok(ExecReport::TimedOut);
    }
    await_exec(&channel, drop)?;
    Ok(ExecReport::Exited(status.shell_code()))
}
