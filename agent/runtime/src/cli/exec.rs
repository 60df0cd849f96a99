//! `exec`: one more program in a container.

use std::{
    collections::HashSet,
    fs,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use clap::Args;
use nix::poll::PollFlags;
use oci_spec::runtime::{Capability, Process, Spec};

use super::{Context, Doing, Error, Outcome, foreground, make, warn};
use crate::{
    channel::{Word, killed},
    config,
    container::Stdio,
    enter::{Entered, Entry, enter},
    error::Step,
    namespaces::Namespaces,
    program::{first_foreign, own_pipes},
    store::Status,
    terminal,
};

#[derive(Debug, Args)]
pub(super) struct Exec {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// The program and its arguments, unless --process says
    #[arg(value_name = "COMMAND", trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
    /// A JSON file with the `process` object of config.json
    #[arg(short, long, value_name = "FILE", conflicts_with = "command")]
    process: Option<PathBuf>,
    /// Return when the program runs
    #[arg(short, long)]
    detach: bool,
    /// Give it a terminal
    #[arg(short, long)]
    tty: bool,
    /// Send the terminal's master to this unix socket
    #[arg(long, value_name = "SOCKET")]
    console_socket: Option<PathBuf>,
    /// Write its process id to this file
    #[arg(long, value_name = "FILE")]
    pid_file: Option<PathBuf>,
    /// Working directory
    #[arg(long, value_name = "DIR")]
    cwd: Option<PathBuf>,
    /// NAME=VALUE, once for each
    #[arg(short, long, value_name = "VARIABLE")]
    env: Vec<String>,
    /// UID[:GID]
    #[arg(short, long, value_name = "USER")]
    user: Option<String>,
    /// A supplementary group, once for each
    #[arg(short = 'g', long, value_name = "GID")]
    additional_gids: Vec<u32>,
    /// A capability to add, once for each
    #[arg(short, long, value_name = "CAPABILITY")]
    cap: Vec<String>,
    /// It can gain no privileges
    #[arg(long)]
    no_new_privs: bool,
    /// AppArmor profile
    #[arg(long, value_name = "PROFILE")]
    apparmor: Option<String>,
    /// SELinux label
    #[arg(long, value_name = "LABEL")]
    process_label: Option<String>,
    /// Hand the program this many descriptors beyond standard error
    #[arg(long, value_name = "COUNT", default_value_t = 0)]
    preserve_fds: u32,
    /// Also in a paused container: it runs when that is resumed
    #[arg(long)]
    ignore_paused: bool,
}

pub(super) fn exec(context: &Context, exec: Exec) -> Outcome {
    first_foreign(exec.preserve_fds)?;
    let fitting: &[Status] = match exec.ignore_paused {
        true => &[Status::Created, Status::Running, Status::Paused],
        false => &[Status::Created, Status::Running],
    };
    let (container, record) = context.found(&exec.id, "exec into", fitting)?;
    let spec = container.spec()?;
    let process = exec.process(&spec)?;
    config::check_process(&process)?;
    let has_terminal = process.terminal() == Some(true);
    match (has_terminal, &exec.console_socket) {
        (true, None) if exec.detach => {
            return Err(Error::Refused(
                "cannot make a terminal without --console-socket: nobody would be at its \
                                       other end"
                    .to_owned(),
            ));
        }
        (false, Some(_)) => {
            return Err(Error::Refused("--console-socket is of no use without a terminal: add --tty".to_owned()));
        }
        _ => {}
    }
    let signals = if exec.detach { None } else { Some(foreground::Signals::block()?) };
    let gone = || Error::Refused(format!("cannot exec into container {}: container not running", exec.id));
    let init = record.init()?.ok_or_else(gone)?;
    let dirs = context.hierarchies.dirs(&record.cgroup)?;
    let linux = spec.linux().as_ref();
    let namespaces = Namespaces::of(&spec)?;
    let entry = Entry {
        container: &init,
        namespaces: namespaces.flags(),
        door: dirs.door().doing(|| "open the container's cgroup".to_owned())?,
        stdio: Stdio::Inherited,
        process: &process,
        seccomp: linux.and_then(|linux| linux.seccomp().as_ref()),
        personality: linux.and_then(|linux| linux.personality().clone()),
        dies_with_maker: false,
        preserved: exec.preserve_fds,
        toolbox: None,
    };
    if let Some(root) = namespaces.host_root(&spec) {
        own_pipes(root)?;
    }
    // SAFETY: this program never starts a thread.
    let entered = unsafe { enter(entry) }?;
    // Left behind, it would be a zombie of the container's first process, which may never look after it.
    let master = begin(&exec, &entered, signals.as_ref()).map_err(|error| make::end(&entered.pidfd, error))?;
    match signals {
        Some(signals) => foreground::stay(&entered.pidfd, master, signals),
        None => Ok(0),
    }
}

/// Returns once the program runs, with its terminal, where nobody else has that.
fn begin(exec: &Exec, entered: &Entered, signals: Option<&foreground::Signals>) -> Result<Option<OwnedFd>, Error> {
    if let Some(file) = &exec.pid_file {
        make::write_pid(file, entered.pid)?;
    }
    let mut master = None;
    let mut executing = false;
    loop {
        if let Some(signals) = signals {
            signals.await_ready(entered.channel.as_fd(), PollFlags::POLLIN)?;
        }
        match entered.channel.hear().step(|| "hear from the container's process".to_owned())? {
            Some(Word::Terminal(terminal)) => master = Some(terminal),
            Some(Word::Warning(words)) => warn(&words),
            Some(Word::Executing) => executing = true,
            Some(Word::Failed(error)) => return Err(error.into()),
            None if executing => break,
            _ => return Err(killed().into()),
        }
    }
    if let (Some(terminal), Some(socket)) = (&master, &exec.console_socket) {
        terminal::hand_over(terminal, socket).doing(|| format!("send the terminal to {}", socket.display()))?;
        master = None;
    }
    Ok(master)
}

impl Exec {
    fn process(&self, spec: &Spec) -> Result<Process, Error> {
        if let Some(file) = &self.process {
            return read(file);
        }
        if self.command.is_empty() {
            return Err(Error::Refused("nothing to execute: give a command, or --process FILE".to_owned()));
        }
        let missing = || Error::Refused("the container has no process to take after: give --process FILE".to_owned());
        let mut process = spec.process().clone().ok_or_else(missing)?;
        process.set_args(Some(self.command.clone())).set_terminal(Some(self.tty));
        if let Some(cwd) = &self.cwd {
            process.set_cwd(cwd.clone());
        }
        let mut env = process.env().clone().unwrap_or_default();
        env.extend(self.env.iter().cloned());
        process.set_env(Some(env));
        self.identify(&mut process)?;
        self.confine(&mut process)?;
        Ok(process)
    }

    fn identify(&self, process: &mut Process) -> Result<(), Error> {
        let mut user = process.user().clone();
        if let Some(text) = &self.user {
            let (uid, gid) = text.split_once(':').map_or((text.as_str(), None), |(uid, gid)| (uid, Some(gid)));
            let number = |text: &str| {
                let words = || Error::Refused(format!("--user {text:?}: numbers are needed, as UID or UID:GID"));
                text.parse::<u32>().map_err(|_| words())
            };
            user.set_uid(number(uid)?).set_username(None);
            if let Some(gid) = gid {
                user.set_gid(number(gid)?);
            }
        }
        if !self.additional_gids.is_empty() {
            let mut groups = user.additional_gids().clone().unwrap_or_default();
            groups.extend(&self.additional_gids);
            user.set_additional_gids(Some(groups));
        }
        process.set_user(user);
        Ok(())
    }

    fn confine(&self, process: &mut Process) -> Result<(), Error> {
        if self.no_new_privs {
            process.set_no_new_privileges(Some(true));
        }
        if let Some(profile) = &self.apparmor {
            process.set_apparmor_profile(Some(profile.clone()));
        }
        if let Some(label) = &self.process_label {
            process.set_selinux_label(Some(label.clone()));
        }
        if self.cap.is_empty() {
            return Ok(());
        }
        let mut all = process.capabilities().clone().unwrap_or_default();
        for name in &self.cap {
            let unknown = || Error::Refused(format!("--cap {name:?}: there is no such capability"));
            let capability: Capability =
                serde_json::from_value(serde_json::Value::String(name.to_uppercase())).map_err(|_| unknown())?;
            let with = |set: &Option<HashSet<Capability>>| {
                let mut set = set.clone().unwrap_or_default();
                set.insert(capability);
                Some(set)
            };
            let (bounding, effective, permitted) = (with(all.bounding()), with(all.effective()), with(all.permitted()));
            all.set_bounding(bounding).set_effective(effective).set_permitted(permitted);
        }
        process.set_capabilities(Some(all));
        Ok(())
    }
}

fn read(file: &Path) -> Result<Process, Error> {
    let bytes = fs::read(file).doing(|| format!("read {}", file.display()))?;
    config::parse_process(&bytes, warn)
        .map_err(|error| Error::Refused(format!("{} is not understood: {error}", file.display())))
}
