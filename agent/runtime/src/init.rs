//! The small init of `init: true`: reaps zombies, passes signals on, ends with its child and tells how that ended.
//!
//! It is the maker's own code going on as process 1, so nothing is put into the container for it. The kernel lets the
//! container look at nothing of it but its name and its command line, which is the same: no file, descriptor,
//! environment or path of the host's can be learnt through it.
//!
//! A process 1 cannot end by a signal that it sends itself, so the way the program ended goes to the maker by a pipe.
//! Its own exit code is a shell's for the same.

use std::{convert::Infallible, io::IsTerminal, os::fd::OwnedFd};

use nix::{
    errno::Errno,
    libc,
    sys::{
        signal::{SigSet, SigmaskHow, sigprocmask},
        wait::{WaitPidFlag, WaitStatus, waitpid},
    },
    unistd::{Pid, getpgrp, setpgid, tcsetpgrp},
};

use crate::{
    channel::Channel,
    error::{StartError, Step},
    program::Program,
    signal, sys,
};

/// What `ps` shows, in the container and on the host.
const NAME: &std::ffi::CStr = c"roster-init";

/// To be called while `/proc` is still the host's: the container's may be anything.
pub(crate) fn disguise() -> Result<(), StartError> {
    let step = || "name the init".to_owned();
    sys::set_process_name(NAME).step(step)?;
    sys::set_command_line(NAME).step(step)
}

/// Runs the program as a child of the calling process, the first of the container. Every descriptor but the standard
/// three and the two given must be closed.
pub(crate) fn run(program: &Program, maker: &Channel, ended: Option<&OwnedFd>) -> Result<Infallible, StartError> {
    // Before there is anybody in the container who could look. The program becomes visible to itself by exec.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).step(|| "hide the init".to_owned())?;
    sigprocmask(SigmaskHow::SIG_SETMASK, Some(&SigSet::all()), None).step(|| "block signals".to_owned())?;
    // Without a pid namespace of its own it is not process 1, to which orphans come by themselves.
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).step(|| "adopt orphans".to_owned())?;
    // SAFETY: this process is a copy of one thread.
    match unsafe { sys::fork_into(0, None) }.step(|| "fork the program from its init".to_owned())? {
        sys::Forked::Child => {
            lead_the_terminal()?;
            signal::reset().step(|| "reset signals".to_owned())?;
            program.exec(maker)
        }
        sys::Forked::Parent { child, pidfd } => {
            drop(pidfd);
            // The program meets the same failure, but may be killed by this one's end before it has reported it. What is
            // left out is for it to say.
            program.take_on(|_| Ok(()))?;
            // SAFETY: this process ends by exit(3) below.
            unsafe { maker.close_copy() };
            let how = pass_on(child);
            if let Some(ended) = ended {
                // Should this fail, the exit code still says nearly the same.
                let _ = nix::unistd::write(ended, &how.to_bytes());
            }
            std::process::exit(how.shell_code())
        }
    }
}

/// Puts the program alone in the foreground of its terminal, so that what is typed there to interrupt it does not come
/// to it a second time through the init. All signals must be blocked.
fn lead_the_terminal() -> Result<(), StartError> {
    let stdin = std::io::stdin();
    if !stdin.is_terminal() {
        return Ok(());
    }
    let step = || "lead the terminal".to_owned();
    let own = Pid::from_raw(0);
    setpgid(own, own).step(step)?;
    tcsetpgrp(stdin, getpgrp()).step(step)
}

/// Returns once the program has ended.
fn pass_on(child: u32) -> sys::WaitStatus {
    let child = Pid::from_raw(child as i32);
    loop {
        match sys::wait_for_signal() {
            Ok(libc::SIGCHLD) => {
                if let Some(how) = reap(child) {
                    return how;
                }
            }
            Ok(signal) => {
                // SAFETY: plain integers. The child is not reaped yet, so the pid is its own. It may have exited, or
                // belong to another user than this init by now: there is nobody to tell either to.
                unsafe { libc::kill(child.as_raw(), signal) };
            }
            Err(_) => {}
        }
    }
}

/// Reaps all that have ended; how the program did, if it was among them.
fn reap(child: Pid) -> Option<sys::WaitStatus> {
    let mut how = None;
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(pid, status)) if pid == child => how = Some(sys::WaitStatus::Code(status)),
            Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => {
                how = Some(sys::WaitStatus::Signal(signal as i32));
            }
            Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return how,
            Ok(_) | Err(_) => {}
        }
    }
}
