//! The end of a singleton whose node's lease is over: stop signal, grace, SIGKILL, by the shim alone.
//!
//! Guarantees: what the deadline in the file says is looked at when that deadline comes, not before, so an idle
//! singleton costs one wake-up for each lease. Once the end has begun nothing takes it back. The grace counts from the
//! deadline, not from when this process came to see it: after a host has slept for long, SIGKILL comes at once, for
//! another host may run the task by then.
//!
//! What it cannot help: a process that the kernel does not let die, and the moments between the waking of a host and
//! of this process.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd},
    time::Duration,
};

use nix::{
    libc,
    sys::{
        time::TimeSpec,
        timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags},
    },
};

use roster_runtime::{
    error::{StartError, Step},
    sys,
};

use crate::{clock::BootTime, runtime::linux::lease::LeaseFile};

/// How a singleton ends when its lease does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) file: LeaseFile,
    pub(crate) signal: i32,
    pub(crate) grace: Duration,
}

#[derive(Debug)]
pub(super) struct Guard {
    terms: Terms,
    timer: TimerFd,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Held { until: BootTime },
    Stopping { kill_at: BootTime },
    Killed,
}

impl Guard {
    /// Refuses where there is no lease: nothing has been started yet.
    pub(super) fn begin(terms: Terms) -> Result<Self, StartError> {
        let until = terms.file.read().filter(|until| *until > BootTime::now()).ok_or_else(|| StartError::Step {
            step: "look at the node's lease".to_owned(),
            error: "it is over: this node has lost touch with the leader".to_owned(),
        })?;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK);
        let timer = timer.step(|| "make a timer".to_owned())?;
        let guard = Self { terms, timer, stage: Stage::Held { until } };
        guard.set_timer(until).step(|| "set the timer".to_owned())?;
        Ok(guard)
    }

    /// Readable when there is something to [`Guard::act`] on.
    pub(super) fn timer(&self) -> BorrowedFd<'_> {
        self.timer.as_fd()
    }

    /// The container was told to end because the lease was over.
    pub(super) fn is_lost(&self) -> bool {
        !matches!(self.stage, Stage::Held { .. })
    }

    /// Does what is due, to the container whose first process is given.
    pub(super) fn act(&mut self, init: &impl AsFd) -> io::Result<()> {
        let now = BootTime::now();
        if let Stage::Held { until } = self.stage {
            let until = self.terms.file.read().map_or(until, |latest| latest.max(until));
            if until > now {
                self.stage = Stage::Held { until };
                return self.set_timer(until);
            }
            let kill_at = until.plus(self.terms.grace);
            signal(init, self.terms.signal)?;
            self.stage = Stage::Stopping { kill_at };
        }
        match self.stage {
            Stage::Stopping { kill_at } if kill_at > now => self.set_timer(kill_at),
            Stage::Stopping { .. } => {
                signal(init, libc::SIGKILL)?;
                self.stage = Stage::Killed;
                Ok(self.timer.unset()?)
            }
            Stage::Held { .. } | Stage::Killed => Ok(()),
        }
    }

    /// Setting it also takes back that it has gone off.
    fn set_timer(&self, at: BootTime) -> io::Result<()> {
        let at = Expiration::OneShot(TimeSpec::from_duration(at.0));
        Ok(self.timer.set(at, TimerSetTimeFlags::TFD_TIMER_ABSTIME)?)
    }
}

/// A process that is gone already needs none.
fn signal(init: &impl AsFd, signal: i32) -> io::Result<()> {
    match sys::pidfd_send_signal(init, signal) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}
