//! Making the container by another OCI runtime's program, and staying with it.
//!
//! The layers are mounted in a mount namespace of the shim's own, in which the program is run, so that no mount is ever
//! seen, or left behind, on the host. The container's first process, which the program leaves behind, becomes a child
//! of the shim's. It does not die with the shim: the agent, which finds the shim gone, kills it.

use std::{
    fs,
    io::{self, IoSliceMut, Read, Write},
    os::{
        fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd},
        unix::net::UnixListener,
    },
    path::Path,
    process::{Child, Stdio},
    time::Duration,
};

use nix::{
    cmsg_space, libc,
    mount::MsFlags,
    sched::CloneFlags,
    sys::socket::{ControlMessageOwned, MsgFlags, recvmsg},
};
use oci_spec::runtime::{Spec, User};
use roster_proto::report::LogStream;
use roster_runtime::{
    container,
    error::{StartError, Step},
    process::user::Ids,
    rootfs, sys,
};
use serde::{Deserialize, Serialize};

use super::{
    log_file::LogFile,
    run::{Begun, Making, Streams},
};
use crate::runtime::linux::{
    foreign::{ForeignRuntime, Places, standard},
    record::BundleDir,
    report::ExecReport,
};

/// What a child that has entered the container's root tells of the user there.
#[derive(Serialize, Deserialize)]
enum Told {
    Ids { uid: u32, gid: u32, groups: Vec<u32>, home: String },
    Failed(StartError),
}

fn runtime_of(bundle: &BundleDir) -> Result<ForeignRuntime, StartError> {
    let found = bundle.foreign().step(|| "read which runtime makes the container".to_owned())?;
    found.ok_or_else(|| StartError::impossible("making the container by another runtime", "none is named"))
}

/// Returns once the program's `start` has, or, where that is for later, its `create`.
pub(super) fn start(making: &Making<'_>) -> Result<Begun, StartError> {
    let runtime = runtime_of(making.bundle)?;
    let places = Places::of(making.bundle);
    let result = begin(making, &runtime, &places);
    if result.is_err() && places.has_state() {
        // The first error is the one to tell; what this leaves behind the agent finds and removes.
        let _ = runtime.call(&places, "delete", &["--force"], &[]);
    }
    result
}

fn begin(making: &Making<'_>, runtime: &ForeignRuntime, places: &Places) -> Result<Begun, StartError> {
    let spec = making.bundle.spec()?;
    let has_terminal = spec.process().as_ref().and_then(|process| process.terminal()) == Some(true);
    sys::prctl(libc::PR_SET_CHILD_SUBREAPER, 1).step(|| "adopt the container's first process".to_owned())?;
    container::create_sources(&spec)?;
    let root = making.bundle.rootfs();
    mount_root(&spec, &root)?;
    let (ids, home) = ids(&spec, &root)?;
    fs::create_dir_all(&places.bundle).step(|| format!("make {}", places.bundle.display()))?;
    let text = serde_json::to_vec(&standard(spec, &root, &ids, &home)?).step(|| "write the bundle".to_owned())?;
    fs::write(places.bundle.join("config.json"), text).step(|| "write the bundle".to_owned())?;

    let log = LogFile::open(making.logs).step(|| format!("open the log in {}", making.logs.display()))?;
    let (outputs, input) = create(making, runtime, places, has_terminal)?;
    let pid = fs::read_to_string(&places.pid_file).step(|| "read the container's process id".to_owned())?;
    let pid = pid.trim().parse().map_err(io::Error::other).step(|| "read the container's process id".to_owned())?;
    let pidfd = sys::pidfd_open(pid).step(|| "open the container's first process".to_owned())?;
    // Nobody tells by it: there is no init of Roster's.
    let (ended, _) = super::pipe().step(|| "make a pipe".to_owned())?;
    if !making.attended {
        runtime.call(places, "start", &[], &[])?;
    }
    Ok((pid, pidfd, Streams { outputs, input, ended }, log))
}

fn mount_root(spec: &Spec, root: &Path) -> Result<(), StartError> {
    nix::sched::unshare(CloneFlags::CLONE_NEWNS).step(|| "make a mount namespace".to_owned())?;
    let none = None::<&str>;
    nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_SLAVE, none)
        .step(|| "cut the mounts off from the host's".to_owned())?;
    rootfs::mount_layers(spec, root)
}

/// Looked up by a child whose root is the container's, which cannot lead it out.
fn ids(spec: &Spec, root: &Path) -> Result<(Ids, String), StartError> {
    let step = || "look up the container's user".to_owned();
    let user = spec.process().as_ref().map(|process| process.user().clone()).unwrap_or_default();
    let (read, write) = super::pipe().step(step)?;
    // SAFETY: the shim never starts a thread.
    match unsafe { sys::fork_into(0, None) }.step(step)? {
        sys::Forked::Child => {
            let told = match enter(root).step(step).and_then(|()| Ids::of(&user)) {
                Ok(ids) => {
                    let home = ids.home().into_owned();
                    Told::Ids { uid: ids.uid, gid: ids.gid, groups: ids.groups, home }
                }
                Err(error) => Told::Failed(error),
            };
            let written = serde_json::to_vec(&told).map(|text| fs::File::from(write).write_all(&text));
            std::process::exit(i32::from(!matches!(written, Ok(Ok(())))))
        }
        sys::Forked::Parent { pidfd, .. } => {
            drop(write);
            let mut text = Vec::new();
            fs::File::from(read).read_to_end(&mut text).step(step)?;
            sys::wait(&pidfd).step(step)?;
            match serde_json::from_slice(&text).step(step)? {
                Told::Failed(error) => Err(error),
                Told::Ids { uid, gid, groups, home } => {
                    let mut user = User::default();
                    user.set_uid(uid).set_gid(gid).set_additional_gids(Some(groups));
                    Ids::of(&user).map(|ids| (ids, home))
                }
            }
        }
    }
}

fn enter(root: &Path) -> io::Result<()> {
    nix::unistd::chroot(root)?;
    std::env::set_current_dir("/")
}

type Outputs = Vec<(LogStream, OwnedFd)>;

fn create(
    making: &Making<'_>,
    runtime: &ForeignRuntime,
    places: &Places,
    has_terminal: bool,
) -> Result<(Outputs, Option<OwnedFd>), StartError> {
    let bundle = places.bundle.to_string_lossy();
    let (pid_file, console) = (places.pid_file.to_string_lossy(), places.console.to_string_lossy());
    let mut options = vec!["--bundle", &*bundle, "--pid-file", &*pid_file];
    if has_terminal {
        let step = || "listen for the terminal".to_owned();
        options.extend(["--console-socket", &*console]);
        let listener = UnixListener::bind(&places.console).step(step)?;
        listener.set_nonblocking(true).step(step)?;
        let mut command = runtime.command(places, "create", &options);
        runtime.finish(places, "create", &mut command, None)?;
        return Ok((vec![(LogStream::Stdout, terminal(&listener)?)], None));
    }
    let pipe = || super::pipe().step(|| "make a pipe".to_owned());
    let (out, out_write) = pipe()?;
    let (err, err_write) = pipe()?;
    let mut command = runtime.command(places, "create", &options);
    command.stdout(out_write).stderr(err_write);
    let mut input = None;
    if making.stdin {
        let (read, write) = pipe()?;
        command.stdin(read);
        input = Some(write);
    }
    runtime.finish(places, "create", &mut command, Some(&err))?;
    Ok((vec![(LogStream::Stdout, out), (LogStream::Stderr, err)], input))
}

/// What the program sent before it ended: one message with the terminal's master.
fn terminal(listener: &UnixListener) -> Result<OwnedFd, StartError> {
    let step = || "receive the terminal".to_owned();
    let (stream, _) = listener.accept().step(step)?;
    let mut name = [0; 256];
    let mut parts = [IoSliceMut::new(&mut name)];
    let mut space = cmsg_space!(RawFd);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    let message = recvmsg::<()>(stream.as_raw_fd(), &mut parts, Some(&mut space), flags).step(step)?;
    let descriptor = message.cmsgs().step(step)?.find_map(|message| match message {
        ControlMessageOwned::ScmRights(descriptors) => descriptors.first().copied(),
        _ => None,
    });
    let descriptor = descriptor.ok_or_else(|| io::Error::other("the message has none")).step(step)?;
    // SAFETY: the kernel just made it for us.
    Ok(unsafe { OwnedFd::from_raw_fd(descriptor) })
}

/// Of a container that was only created.
pub(super) fn begin_program(bundle: &BundleDir) -> Result<(), StartError> {
    runtime_of(bundle)?.call(&Places::of(bundle), "start", &[], &[])
}

/// After the container's end.
pub(super) fn delete(bundle: &BundleDir) -> Result<(), StartError> {
    let places = Places::of(bundle);
    if places.has_state() { runtime_of(bundle)?.call(&places, "delete", &["--force"], &[]) } else { Ok(()) }
}

/// One command by the program's `exec`, up to a timeout.
pub(super) fn exec(
    runtime: &ForeignRuntime,
    bundle: &BundleDir,
    timeout: Duration,
    command: &[std::ffi::OsString],
) -> Result<ExecReport, StartError> {
    let step = || format!("exec in the container by {runtime}");
    let places = Places::of(bundle);
    let pid_file = places.bundle.join(format!("exec-{}", std::process::id()));
    let output = || -> Result<Stdio, StartError> { Ok(io::stdout().as_fd().try_clone_to_owned().step(step)?.into()) };
    let mut call = runtime.command(&places, "exec", &["--pid-file", &pid_file.to_string_lossy()]);
    call.args(command).stdout(output()?).stderr(output()?);
    let mut child = call.spawn().step(step)?;
    let report = wait(&mut child, &pid_file, timeout).step(step);
    match fs::remove_file(&pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error).step(step),
        _ => report,
    }
}

fn wait(child: &mut Child, pid_file: &Path, timeout: Duration) -> io::Result<ExecReport> {
    let pidfd = sys::pidfd_open(child.id())?;
    if sys::wait_readable(&pidfd, timeout)? {
        return Ok(ExecReport::Exited(sys::wait(&pidfd)?.shell_code()));
    }
    // The command first, then the program that waits for it.
    if let Some(pid) = fs::read_to_string(pid_file).ok().and_then(|text| text.trim().parse().ok()) {
        kill(sys::pidfd_open(pid))?;
    }
    kill(Ok(pidfd))?;
    child.wait()?;
    Ok(ExecReport::TimedOut)
}

/// Gone already is as good.
fn kill(pidfd: io::Result<OwnedFd>) -> io::Result<()> {
    match pidfd.and_then(|pidfd| sys::pidfd_send_signal(pidfd, libc::SIGKILL)) {
        Err(error) if error.raw_os_error() != Some(libc::ESRCH) => Err(error),
        _ => Ok(()),
    }
}
