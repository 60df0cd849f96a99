//! The shim: one small process for each container, which makes it, owns its output and its exit status, and outlives
//! the agent.
//!
//! ```text
//! agent ── roster-shim run ── container's process 1
//!             │ stderr: one StartReport, then closed
//!             ├ logs/TASK/0.log         what the container writes
//!             ├ tasks/TASK/attach.sock  for those who watch it
//!             ├ tasks/TASK/running.json once the image's program is executing
//!             └ tasks/TASK/exit.json    once it has ended
//! ```
//!
//! The process that will be the container reads the bundle after the fork, so that the shim that stays behind has
//! neither the bundle nor a parser in its memory. The container dies with its shim: its process 1 asks the kernel for
//! SIGKILL at its parent's death.
//!
//! Runs as root with one thread, without an async runtime. Deliberately absent: restarting.

pub(crate) mod attach;
mod exec;
mod foreign;
mod hold;
mod kept;
pub(crate) mod lease;
mod live;
mod log_file;
pub(super) mod partner;
mod run;

use std::{
    ffi::OsString,
    io::{self, Write},
    net::Ipv4Addr,
    path::PathBuf,
    process::ExitCode,
    time::Duration,
};

use roster_runtime::{
    cgroup::CgroupDirs,
    error::{StartError, Step},
    sys,
};

pub use self::log_file::LogFile;
use self::partner::Partner;
use super::{
    lease::LeaseFile,
    record::BundleDir,
    report::{ExecReport, StartReport},
};

/// What `roster-shim` was asked to do. Written by the agent only, so it is strict and not a user interface.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Call {
    Run {
        bundle: PathBuf,
        logs: PathBuf,
        cgroup: Vec<PathBuf>,
        address: Option<Ipv4Addr>,
        /// Keep standard input open.
        stdin: bool,
        /// It is in the host's pid namespace.
        host_pid: bool,
        /// Whose namespaces it shares.
        partner: Option<Partner>,
        /// Another runtime makes it, which the bundle names.
        foreign: bool,
        /// Its program begins when somebody attaches.
        attended: bool,
        /// Of a singleton.
        lease: Option<lease::Terms>,
    },
    Exec {
        bundle: PathBuf,
        cgroup: Vec<PathBuf>,
        timeout: Duration,
        command: Vec<OsString>,
    },
    Live {
        bundle: PathBuf,
        cgroup: Vec<PathBuf>,
        /// The program's own cgroup, below the container's first.
        group: String,
    },
    /// As `Live`, in a failed container that is kept.
    Kept {
        bundle: PathBuf,
        cgroup: Vec<PathBuf>,
    },
}

impl Call {
    pub(crate) fn to_args(&self) -> Vec<OsString> {
        let mut args: Vec<OsString> = Vec::new();
        let mut option = |name: &str, value: OsString| args.extend([name.into(), value]);
        match self {
            Call::Run { bundle, logs, cgroup, address, stdin, host_pid, partner, foreign, attended, lease } => {
                option("run", bundle.into());
                option("--logs", logs.into());
                cgroup.iter().for_each(|dir| option("--cgroup", dir.into()));
                address.iter().for_each(|address| option("--address", address.to_string().into()));
                if *stdin {
                    option("--stdin", "open".into());
                }
                if *host_pid {
                    option("--pid", "host".into());
                }
                if let Some(partner) = partner {
                    option("--partner", partner.to_string().into());
                }
                if *foreign {
                    option("--runtime", "other".into());
                }
                if *attended {
                    option("--begin", "attended".into());
                }
                if let Some(lease::Terms { file, signal, grace }) = lease {
                    option("--lease", file.0.clone().into());
                    option("--stop-signal", signal.to_string().into());
                    option("--grace-ms", grace.as_millis().to_string().into());
                }
            }
            Call::Exec { bundle, cgroup, timeout, command } => {
                option("exec", bundle.into());
                option("--timeout-ms", timeout.as_millis().to_string().into());
                cgroup.iter().for_each(|dir| option("--cgroup", dir.into()));
                args.push("--".into());
                args.extend(command.iter().cloned());
            }
            Call::Live { bundle, cgroup, group } => {
                option("live", bundle.into());
                cgroup.iter().for_each(|dir| option("--cgroup", dir.into()));
                option("--group", group.into());
            }
            Call::Kept { bundle, cgroup } => {
                option("kept", bundle.into());
                cgroup.iter().for_each(|dir| option("--cgroup", dir.into()));
            }
        }
        args
    }

    fn parse(args: impl IntoIterator<Item = OsString>) -> Option<Self> {
        let mut args = args.into_iter();
        let verb = args.next()?;
        let bundle = PathBuf::from(args.next()?);
        let (mut logs, mut address, mut timeout, mut cgroup) = (None, None, None, Vec::new());
        let (mut lease, mut signal, mut grace, mut group) = (None, None, None, None);
        let mut partner = None;
        let (mut stdin, mut host_pid, mut foreign, mut attended) = (false, false, false, false);
        while let Some(option) = args.next() {
            if option == "--" {
                break;
            }
            let value = args.next()?;
            match option.to_str()? {
                "--logs" => logs = Some(PathBuf::from(value)),
                "--cgroup" => cgroup.push(PathBuf::from(value)),
                "--address" => address = Some(value.to_str()?.parse().ok()?),
                "--group" => group = Some(value.into_string().ok()?),
                "--stdin" => stdin = value == "open",
                "--runtime" => foreign = value == "other",
                "--begin" => attended = value == "attended",
                "--pid" => host_pid = value == "host",
                "--partner" => partner = Some(value.to_str()?.parse().ok()?),
                "--timeout-ms" => timeout = Some(Duration::from_millis(value.to_str()?.parse().ok()?)),
                "--lease" => lease = Some(LeaseFile(value.into())),
                "--stop-signal" => signal = Some(value.to_str()?.parse().ok()?),
                "--grace-ms" => grace = Some(Duration::from_millis(value.to_str()?.parse().ok()?)),
                _ => return None,
            }
        }
        match verb.to_str()? {
            "run" => {
                let lease = match lease {
                    Some(file) => Some(lease::Terms { file, signal: signal?, grace: grace? }),
                    None => None,
                };
                let logs = logs?;
                Some(Call::Run { bundle, logs, cgroup, address, stdin, host_pid, partner, foreign, attended, lease })
            }
            "live" => Some(Call::Live { bundle, cgroup, group: group? }),
            "kept" => Some(Call::Kept { bundle, cgroup }),
            "exec" => Some(Call::Exec { bundle, cgroup, timeout: timeout?, command: args.collect() }),
            _ => None,
        }
    }
}

/// Nearly the last the kernel picks when the host is out of memory: losing a shim loses its container.
const OOM_SCORE: &str = "-998";

/// All of `roster-shim`'s `main`.
pub fn main() -> ExitCode {
    let Some(call) = Call::parse(std::env::args_os().skip(1)) else {
        eprintln!("roster-shim makes containers for roster-agent, which starts it; it is not to be run by hand");
        return ExitCode::from(2);
    };
    let result = match call {
        Call::Run { bundle, logs, cgroup, address, stdin, host_pid, partner, foreign, attended, lease } => {
            let (bundle, cgroup) = (BundleDir(bundle), CgroupDirs(cgroup));
            let (bundle, logs, cgroup) = (&bundle, &*logs, &cgroup);
            let making = run::Making { bundle, logs, cgroup, stdin, host_pid, partner, foreign, attended };
            run::run(&making, address, lease).inspect_err(|error| {
                report(&StartReport::Failed(error.clone()));
            })
        }
        Call::Exec { bundle, cgroup, timeout, command } => {
            exec::exec(&BundleDir(bundle), &CgroupDirs(cgroup), timeout, &command).inspect_err(|error| {
                report(&ExecReport::Failed(error.clone()));
            })
        }
        Call::Live { bundle, cgroup, group } => live::live(&BundleDir(bundle), &CgroupDirs(cgroup), &group),
        Call::Kept { bundle, cgroup } => kept::kept(&BundleDir(bundle), &CgroupDirs(cgroup)),
    };
    if result.is_ok() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// Tells the agent, if it still listens: one that was killed meanwhile finds the records instead.
fn report(report: &impl serde::Serialize) {
    if let Ok(text) = serde_json::to_vec(report) {
        let _ = io::stderr().write_all(&text);
    }
}

/// What ends the agent, a key at its terminal for instance, does not end this.
fn stand_alone() -> Result<(), StartError> {
    sys::set_process_name(c"roster-shim").step(|| "name the shim".to_owned())?;
    nix::unistd::setsid().step(|| "begin a session".to_owned())?;
    std::env::set_current_dir("/").step(|| "change to /".to_owned())?;
    // A host that does not let us (no CAP_SYS_RESOURCE) gets a shim as likely to be killed as any process.
    match std::fs::write("/proc/self/oom_score_adj", OOM_SCORE) {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied => {
            Err(error).step(|| "set the shim's oom_score_adj".to_owned())
        }
        _ => Ok(()),
    }
}

/// A pipe that no program executed later inherits.
fn pipe() -> io::Result<(std::os::fd::OwnedFd, std::os::fd::OwnedFd)> {
    Ok(nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?)
}

#[cfg(test)]
mod tests {
    use roster_runtime::identity::Identity;

    use super::*;

    #[test]
    fn calls_come_back_as_written() {
        let terms =
            lease::Terms { file: LeaseFile("/run/lease".into()), signal: 15, grace: Duration::from_millis(2500) };
        let partner = Partner { init: Identity { pid: 12, start: 345 }, ipc: true, pid: false };
        for lease in [None, Some(terms)] {
            let run = Call::Run {
                bundle: "/run/t".into(),
                logs: "/log/t".into(),
                cgroup: vec!["/c/1".into(), "/c/2".into()],
                address: Some(Ipv4Addr::new(10, 0, 0, 2)),
                stdin: lease.is_some(),
                host_pid: lease.is_some(),
                partner: lease.is_some().then_some(partner),
                foreign: lease.is_some(),
                attended: lease.is_none(),
                lease,
            };
            assert_eq!(Call::parse(run.to_args()), Some(run));
        }
        let exec = Call::Exec {
            bundle: "/run/t".into(),
            cgroup: vec!["/c/1".into()],
            timeout: Duration::from_millis(1500),
            command: vec!["sh".into(), "-c".into(), "--".into()],
        };
        assert_eq!(Call::parse(exec.to_args()), Some(exec));
        let live = Call::Live { bundle: "/run/t".into(), cgroup: vec!["/c/1".into()], group: "live-1".into() };
        assert_eq!(Call::parse(live.to_args()), Some(live));
        let kept = Call::Kept { bundle: "/kept/t".into(), cgroup: vec!["/c/1".into()] };
        assert_eq!(Call::parse(kept.to_args()), Some(kept));
        assert_eq!(Call::parse(["--help".into()]), None);
    }
}
