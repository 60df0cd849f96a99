//! `roster-shim exec`: one command in a running container, with its identity and limits, up to a timeout.
//!
//! ```text
//! supervisor ─ stays on the host: timeout, cgroup, report
//!   └ bridge ─ enters the container's namespaces, for only its children are born into the pid namespace
//!       └ command ─ joins the cgroup, takes on the identity, executes
//! ```
//!
//! The command has a cgroup of its own below the container's, so that at the end, or at the timeout, everything it
//! started goes with it.

use std::{
    convert::Infallible,
    ffi::OsString,
    fs,
    os::fd::{AsFd, OwnedFd},
    time::Duration,
};

use nix::{
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
};
use oci_spec::runtime::{Process, Spec};

use super::{
    container::{self, Program, StatusPipe},
    report, sys,
};
use crate::runtime::linux::{
    cgroup::{CgroupDirs, Door},
    record::BundleDir,
    report::{ExecReport, StartError, Step},
};

/// All but the cgroup namespace: on v2 the kernel lets nobody clone into a group across that one's border.
const NAMESPACES: libc::c_int =
    libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_NEWUTS | libc::CLONE_NEWIPC | libc::CLONE_NEWNET;

pub(super) fn exec(
    bundle: &BundleDir,
    cgroup: &CgroupDirs,
    timeout: Duration,
    command: &[OsString],
) -> Result<(), StartError> {
    // A process on its way into a container must not be open to the ones already there.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).step(|| "hide the shim".to_owned())?;
    let gone = || StartError::impossible("running a command in the container", "it is not running");
    let running = bundle.running().step(|| "read the container's record".to_owned())?.ok_or_else(gone)?;
    let container = running.init.pidfd().step(|| "open the container's first process".to_owned())?.ok_or_else(gone)?;
    let config = bundle.config();
    let text = fs::read(&config).step(|| format!("read {}", config.display()))?;
    let spec: Spec = serde_json::from_slice(&text).step(|| format!("read {}", config.display()))?;
    let process = spec.process().as_ref().ok_or_else(gone)?;
    let args = command.iter().map(|arg| arg.to_string_lossy().into_owned()).collect();

    let name = format!("exec-{}", std::process::id());
    let group = cgroup.child(&name).step(|| "make a cgroup for the command".to_owned())?;
    let result = run(&group, &container, process, args, timeout);
    // Only its own directory: the others are the container's.
    let removed = CgroupDirs(group.0[..1].to_vec()).remove().step(|| "remove the command's cgroup".to_owned());
    let answer = result?;
    removed?;
    report(&answer);
    Ok(())
}

fn run(
    group: &CgroupDirs,
    container: &OwnedFd,
    process: &Process,
    args: Vec<String>,
    timeout: Duration,
) -> Result<ExecReport, StartError> {
    let door = group.door().step(|| "open the command's cgroup".to_owned())?;
    let (status, status_write) = super::pipe().step(|| "make a pipe".to_owned())?;
    // SAFETY: the shim never starts a thread.
    match unsafe { sys::fork_into(0, None) }.step(|| "fork".to_owned())? {
        sys::Forked::Child => {
            drop(status);
            let status = StatusPipe::new(status_write);
            let Err(error) = bridge(container, door, process, args, &status);
            status.fail(&error)
        }
        sys::Forked::Parent { pidfd, .. } => {
            drop((status_write, door));
            let ended = await_end(&pidfd, timeout)?;
            if !ended {
                let group = CgroupDirs(group.0[..1].to_vec());
                group.kill().step(|| "kill the command".to_owned())?;
                // Had it not come as far as its cgroup, it dies with the bridge.
                sys::pidfd_send_signal(&pidfd, libc::SIGKILL).step(|| "kill the command".to_owned())?;
            }
            let code = sys::wait(&pidfd).step(|| "wait for the command".to_owned())?;
            if !ended {
                return Ok(ExecReport::TimedOut);
            }
            container::await_exec(status)?;
            Ok(ExecReport::Exited(code.shell_code()))
        }
    }
}

fn await_end(pidfd: &OwnedFd, timeout: Duration) -> Result<bool, StartError> {
    let timeout = PollTimeout::try_from(timeout).unwrap_or(PollTimeout::MAX);
    let mut polled = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    Ok(poll(&mut polled, timeout).step(|| "wait for the command".to_owned())? > 0)
}

fn bridge(
    container: &OwnedFd,
    door: Door,
    process: &Process,
    args: Vec<String>,
    status: &StatusPipe,
) -> Result<Infallible, StartError> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        .step(|| "ask to die with the shim".to_owned())?;
    let null = sys::open_null().step(|| "open /dev/null".to_owned())?;
    let directory = match &door {
        Door::Directory(fd) => Some(fd.try_clone().step(|| "keep the cgroup".to_owned())?),
        Door::Tasks(_) => None,
    };
    sys::enter_namespaces(container, NAMESPACES).step(|| "enter the container's namespaces".to_owned())?;
    // SAFETY: the shim never starts a thread.
    let forked = unsafe { sys::fork_into(0, directory.as_ref().map(AsFd::as_fd)) };
    match forked.step(|| "fork into the container".to_owned())? {
        sys::Forked::Child => {
            drop(directory);
            let Err(error) = command(container, null, door, process, args, status);
            status.fail(&error)
        }
        sys::Forked::Parent { pidfd, .. } => {
            drop((door, null));
            status.close();
            let code = sys::wait(&pidfd).step(|| "wait for the command".to_owned())?;
            std::process::exit(code.shell_code())
        }
    }
}

fn command(
    container: &OwnedFd,
    null: fs::File,
    door: Door,
    process: &Process,
    args: Vec<String>,
    status: &StatusPipe,
) -> Result<Infallible, StartError> {
    sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong)
        .step(|| "ask to die with the shim".to_owned())?;
    door.enter().step(|| "join the cgroup".to_owned())?;
    sys::enter_namespaces(container, libc::CLONE_NEWCGROUP).step(|| "enter the cgroup namespace".to_owned())?;
    container::reset_signals().step(|| "reset signals".to_owned())?;
    nix::unistd::setsid().step(|| "begin a session".to_owned())?;
    sys::place_at(&null, libc::STDIN_FILENO).step(|| "connect standard input".to_owned())?;
    // Standard output is the agent's pipe for what the command says; the report's pipe is not for the container.
    sys::place_at(std::io::stdout(), libc::STDERR_FILENO).step(|| "connect standard error".to_owned())?;
    drop(null);
    sys::new_session_keyring().step(|| "make a session keyring".to_owned())?;
    let program = Program::of(process, args)?;
    status.keep_alone()?;
    program.exec(status)
}
