//! `roster-shim live`: one program in a running container for somebody who watches it.
//!
//! ```text
//! agent ── roster-shim live ── the program, in a cgroup of its own below the container's
//!   │ standard input: a socket. The order comes by it, then signals; reports go back, the first with descriptors
//!   └ reads and writes the program's streams itself
//! ```
//!
//! When the socket closes, the agent or whoever asked it has gone, and the program and all that it started end, unless
//! they were detached from: then the shim reads and forgets what the program writes. When the program ends by itself,
//! what it left in the background stays, as a process of the container.

use std::{
    collections::HashSet,
    fs::{self, File},
    io::{self, BufRead, BufReader, IoSlice, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd, RawFd},
        unix::net::UnixStream,
    },
    time::{Duration, Instant},
};

use nix::{
    errno::Errno,
    fcntl::{FcntlArg, OFlag, fcntl},
    libc,
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{ControlMessage, MsgFlags, sendmsg},
    unistd::Pid,
};
use oci_spec::runtime::{BoxBuilder, LinuxCapabilitiesBuilder, Process, Spec};
use roster_runtime::{
    cgroup::CgroupDirs,
    channel::{Word, killed},
    container::Stdio,
    enter::{Entered, Entry, enter},
    error::{StartError, Step},
    namespaces::Namespaces,
    process::capabilities,
    rootfs::toolbox::{self, Toolbox},
    sys,
};

use crate::runtime::linux::{
    record::BundleDir,
    report::{DETACH, LiveReport, Order},
};

/// Bytes of an order: what the controller lets through, as JSON.
const ORDER_LIMIT: u64 = 16 << 20;
/// Of the program's streams the first that it writes to: its terminal, or standard output and standard error.
const WRITTEN_TO: usize = 2;
/// Milliseconds after which a terminal that nobody had open is read from again.
const LOOKING_AGAIN: u16 = 1000;
/// Read at a time where nobody sees it.
const FORGOTTEN: usize = 16 * 1024;
/// As Docker gives a terminal's program where nothing else is said.
const TERM: &str = "TERM=xterm";
/// In which processes that are left must have moved to the container's own cgroup.
const MOVING_DEADLINE: Duration = Duration::from_secs(5);

pub(super) fn live(bundle: &BundleDir, cgroup: &CgroupDirs, group: &str) -> Result<(), StartError> {
    serve(|agent| begin(agent, bundle, cgroup, group))
}

/// Does what the agent orders, and tells it how that ended.
pub(super) fn serve(work: impl FnOnce(&Agent) -> Result<Option<i32>, StartError>) -> Result<(), StartError> {
    let agent = Agent::on_standard_input().step(|| "use the agent's socket".to_owned())?;
    let ended = super::stand_alone().and_then(|()| work(&agent));
    let report = match &ended {
        Ok(Some(code)) => LiveReport::Exited(*code),
        Ok(None) => return Ok(()),
        Err(error) => LiveReport::Failed(error.clone()),
    };
    // An agent that is gone does not want to know.
    let _ = agent.tell(&report, &[]);
    ended.map(drop)
}

/// The program's exit code, unless the agent went away first.
fn begin(agent: &Agent, bundle: &BundleDir, cgroup: &CgroupDirs, group: &str) -> Result<Option<i32>, StartError> {
    let order = agent.order().step(|| "read the order".to_owned())?;
    let gone = || StartError::impossible("running a program in the container", "it is not running");
    let running = bundle.running().step(|| "read the container's record".to_owned())?.ok_or_else(gone)?;
    let container = running.init.pidfd().step(|| "open the container's first process".to_owned())?.ok_or_else(gone)?;
    let mut spec = bundle.spec()?;
    take_over(&mut spec, &order)?;
    let own = cgroup.child(group).step(|| "make a cgroup for the program".to_owned())?;
    let toolbox = order.tools.then(|| Toolbox::of_host(&bundle.rootfs())).transpose()?;
    let result = run(agent, &own, &container, &spec, &order, toolbox);
    // Only its own directory: the others are the container's.
    let alone = CgroupDirs(own.0[..1].to_vec());
    let left = match result {
        Ok(Some(_)) => leave_behind(&alone, cgroup),
        _ => alone.kill(),
    };
    let cleared = left.and_then(|()| alone.remove()).step(|| "clear the program's cgroup".to_owned());
    let code = result?;
    cleared.map(|()| code)
}

/// The container's process as the order wants this one.
pub(super) fn take_over(spec: &mut Spec, order: &Order) -> Result<(), StartError> {
    let missing = || StartError::impossible("running a program in the container", "config.json has no process");
    let process = spec.process_mut().as_mut().ok_or_else(missing)?;
    let env = environment(process, order);
    process.set_args(Some(order.args.clone())).set_env(Some(env));
    // What the container works in may lie where the host's programs are.
    if let Some(dir) = order.working_dir.as_deref().or(order.tools.then_some("/")) {
        process.set_cwd(dir.into());
    }
    if let Some(user) = &order.user {
        let mut own = process.user().clone();
        own.set_username(Some(user.clone()));
        process.set_user(own);
    }
    process.set_terminal(Some(order.terminal.is_some())).set_console_size(None);
    if let Some((rows, columns)) = order.terminal {
        let size = BoxBuilder::default().height(u64::from(rows)).width(u64::from(columns)).build();
        process.set_console_size(Some(size.map_err(io::Error::other).step(|| "size the terminal".to_owned())?));
    }
    if order.privileged {
        let all = HashSet::from(capabilities::ALL);
        let sets = LinuxCapabilitiesBuilder::default().bounding(all.clone()).effective(all.clone()).permitted(all);
        let sets = sets.inheritable(HashSet::new()).ambient(HashSet::new()).build();
        process.set_capabilities(Some(sets.map_err(io::Error::other).step(|| "name all capabilities".to_owned())?));
        process.set_no_new_privileges(Some(false));
        if let Some(linux) = spec.linux_mut() {
            linux.set_seccomp(None);
        }
    }
    Ok(())
}

/// The order's variables in the place of those of the same name; execve(2) would let the first of two win.
fn environment(process: &Process, order: &Order) -> Vec<String> {
    fn name(variable: &str) -> &str {
        variable.split_once('=').map_or(variable, |(name, _)| name)
    }
    let mut env = process.env().clone().unwrap_or_default();
    // Another user has another home.
    if order.user.is_some() && process.user().username() != &order.user {
        env.retain(|variable| name(variable) != "HOME");
    }
    if order.terminal.is_some() && !env.iter().any(|variable| name(variable) == "TERM") {
        env.push(TERM.to_owned());
    }
    if order.tools {
        // Where the container's own programs are, and what they are loaded with, is of no use to the host's.
        env.retain(|variable| name(variable) != "PATH" && !name(variable).starts_with("LD_"));
        env.push(format!("PATH={}", toolbox::PATH));
    }
    for variable in &order.env {
        env.retain(|one| name(one) != name(variable));
        env.push(variable.clone());
    }
    env
}

fn run(
    agent: &Agent,
    group: &CgroupDirs,
    container: &OwnedFd,
    spec: &Spec,
    order: &Order,
    toolbox: Option<Toolbox>,
) -> Result<Option<i32>, StartError> {
    let linux = spec.linux().as_ref();
    let missing = || StartError::impossible("running a program in the container", "config.json has no process");
    let (stdio, ours) = streams(order)?;
    let entry = Entry {
        container,
        namespaces: Namespaces::of(spec)?.flags(),
        door: group.door().step(|| "open the program's cgroup".to_owned())?,
        stdio,
        process: spec.process().as_ref().ok_or_else(missing)?,
        seccomp: linux.and_then(|linux| linux.seccomp().as_ref()),
        personality: linux.and_then(|linux| linux.personality().clone()),
        dies_with_maker: true,
        preserved: 0,
        toolbox,
    };
    // SAFETY: the shim never starts a thread.
    let entered = unsafe { enter(entry) }?;
    let leader = i32::try_from(entered.pid).map_err(io::Error::other).step(|| "read a process id".to_owned())?;
    watch(agent, &entered, Pid::from_raw(-leader), ours)
}

/// Until the program has ended, or the agent is gone. Signals are passed on to `whom`; `ours` is what the agent is to
/// get, unless there is a terminal.
pub(super) fn watch(
    agent: &Agent,
    entered: &Entered,
    whom: Pid,
    mut ours: Vec<OwnedFd>,
) -> Result<Option<i32>, StartError> {
    let Entered { pidfd, channel, .. } = entered;
    let (mut executing, mut told) = (false, false);
    loop {
        let mut polled = vec![PollFd::new(agent.socket.as_fd(), PollFlags::POLLIN)];
        // First it says that it runs, then that it has ended, however short it was.
        polled.push(PollFd::new(if told { pidfd.as_fd() } else { channel.as_fd() }, PollFlags::POLLIN));
        match poll(&mut polled, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error).step(|| "watch the program".to_owned()),
        }
        let ready = |index: usize| polled.get(index).and_then(PollFd::any).unwrap_or(false);
        let (spoke, moved) = (ready(0), ready(1));
        drop(polled);
        if spoke {
            match pass_on(agent, whom).step(|| "pass a signal on".to_owned())? {
                Heard::Signals => {}
                Heard::Detached if told => {
                    unwatched(pidfd, ours).step(|| "watch the program".to_owned())?;
                    return reap(pidfd).map(Some);
                }
                Heard::Detached | Heard::Gone => {
                    // Had it not come as far as its cgroup, killing that would miss it.
                    let _ = sys::pidfd_send_signal(pidfd, libc::SIGKILL);
                    return Ok(None);
                }
            }
        }
        match moved {
            true if told => return reap(pidfd).map(Some),
            true => match channel.hear().step(|| "hear from the program".to_owned())? {
                Some(Word::Terminal(master)) => ours = vec![master],
                Some(Word::Executing) => executing = true,
                Some(Word::Warning(_)) => {}
                Some(Word::Failed(error)) => {
                    // Or it would be a zombie in the container for somebody else to reap.
                    sys::wait(pidfd).step(|| "wait for the program".to_owned())?;
                    return Err(error);
                }
                Some(other) => {
                    return Err(io::Error::other(format!("it says {other:?}"))).step(|| "hear from it".to_owned());
                }
                None if executing => {
                    agent.tell(&LiveReport::Running, &ours).step(|| "tell the agent".to_owned())?;
                    // Its closing the input is what the program must notice; the others are here for when it detaches.
                    ours.truncate(WRITTEN_TO);
                    told = true;
                }
                None => return Err(killed()),
            },
            false => {}
        }
    }
}

fn reap(pidfd: &OwnedFd) -> Result<i32, StartError> {
    Ok(sys::wait(pidfd).step(|| "wait for the program".to_owned())?.shell_code())
}

/// Until the program ends: what nobody sees any more must not hold it up.
fn unwatched(pidfd: &OwnedFd, written_to: Vec<OwnedFd>) -> io::Result<()> {
    // Whoever waits for the end of what the agent says does not wait for this.
    sys::place_at(sys::open_null()?, libc::STDERR_FILENO)?;
    let mut sources: Vec<File> = written_to.into_iter().map(File::from).collect();
    for source in &sources {
        // What was ready to be read may have been closed since.
        let flags = OFlag::from_bits_retain(fcntl(source, FcntlArg::F_GETFL)?);
        fcntl(source, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    }
    // Terminals that nobody has open. Of one that is opened anew, as /dev/tty for instance, nobody tells.
    let mut closed = Vec::new();
    loop {
        let mut polled = vec![PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
        polled.extend(sources.iter().map(|source| PollFd::new(source.as_fd(), PollFlags::POLLIN)));
        match poll(&mut polled, if closed.is_empty() { PollTimeout::NONE } else { LOOKING_AGAIN.into() }) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = polled.iter().map(|polled| polled.any().unwrap_or(false)).collect();
        drop(polled);
        if ready[0] {
            return Ok(());
        }
        for index in (0..sources.len()).rev().filter(|index| ready[index + 1]) {
            match sources[index].read(&mut [0; FORGOTTEN]) {
                Ok(1..) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if error.raw_os_error() == Some(libc::EIO) => closed.push(sources.swap_remove(index)),
                Ok(0) | Err(_) => drop(sources.swap_remove(index)),
            }
        }
        if ready.iter().all(|ready| !ready) {
            sources.append(&mut closed);
        }
    }
}

/// The program's ends, and the others in the order in which the agent expects them.
pub(super) fn streams(order: &Order) -> Result<(Stdio, Vec<OwnedFd>), StartError> {
    if order.terminal.is_some() {
        return Ok((Stdio::Inherited, Vec::new()));
    }
    let pipe = || super::pipe().step(|| "make a pipe".to_owned());
    let null = || sys::open_null().map(OwnedFd::from).step(|| "open /dev/null".to_owned());
    if order.detached {
        return Ok((Stdio::Given { input: null()?, out: null()?, err: null()? }, Vec::new()));
    }
    let ((out_read, out), (err_read, err)) = (pipe()?, pipe()?);
    let mut ours = vec![out_read, err_read];
    let input = match order.input {
        true => {
            let (input, write) = pipe()?;
            ours.push(write);
            input
        }
        false => null()?,
    };
    Ok((Stdio::Given { input, out, err }, ours))
}

enum Heard {
    Signals,
    /// The program is to go on by itself.
    Detached,
    /// The agent is.
    Gone,
}

/// To a process, or to the group that the program leads, as a terminal does it.
fn pass_on(agent: &Agent, whom: Pid) -> io::Result<Heard> {
    let mut signals = [0; 16];
    let length = match (&agent.socket).read(&mut signals) {
        Ok(0) => return Ok(Heard::Gone),
        Ok(length) => length,
        Err(error) if error.kind() == io::ErrorKind::Interrupted => return Ok(Heard::Signals),
        Err(error) if error.raw_os_error() == Some(libc::ECONNRESET) => return Ok(Heard::Gone),
        Err(error) => return Err(error),
    };
    for signal in &signals[..length] {
        if *signal == DETACH {
            return Ok(Heard::Detached);
        }
        // SAFETY: kill(2) takes any number, real-time signals too, which the typed one does not.
        let sent = unsafe { libc::kill(whom.as_raw(), i32::from(*signal)) };
        match Errno::result(sent) {
            // It has ended, or does not lead its group yet.
            Ok(_) | Err(Errno::ESRCH) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Heard::Signals)
}

/// What the program started and did not wait for goes on as part of the container.
fn leave_behind(group: &CgroupDirs, container: &CgroupDirs) -> io::Result<()> {
    let home = container.0[0].join("cgroup.procs");
    let deadline = Instant::now() + MOVING_DEADLINE;
    loop {
        let left = group.processes()?;
        if left.is_empty() {
            return Ok(());
        }
        for pid in left {
            match fs::write(&home, pid.to_string()) {
                Err(error) if error.raw_os_error() == Some(libc::ESRCH) => {}
                moved => moved?,
            }
        }
        if Instant::now() > deadline {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "it starts processes faster than they can be moved"));
        }
    }
}

/// The other end of the socket on standard input.
pub(super) struct Agent {
    socket: UnixStream,
}

impl Agent {
    fn on_standard_input() -> io::Result<Self> {
        let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
        // What the program is given is put there; the socket must not be.
        sys::place_at(sys::open_null()?, libc::STDIN_FILENO)?;
        Ok(Self { socket })
    }

    /// Signals may follow right behind it, so it is read byte by byte up to its end.
    pub(super) fn order(&self) -> io::Result<Order> {
        let mut line = Vec::new();
        BufReader::with_capacity(1, (&self.socket).take(ORDER_LIMIT)).read_until(b'\n', &mut line)?;
        Ok(serde_json::from_slice(&line)?)
    }

    fn tell(&self, report: &LiveReport, descriptors: &[OwnedFd]) -> io::Result<()> {
        let mut line = serde_json::to_vec(report)?;
        line.push(b'\n');
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &control[..] };
        let sent =
            sendmsg::<()>(self.socket.as_raw_fd(), &[IoSlice::new(&line)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        // The descriptors went with the first byte.
        (&self.socket).write_all(&line[sent..])
    }
}
