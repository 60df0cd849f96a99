//! A container's terminal: made in the container's own devpts, its master handed to whoever will talk to it.
//!
//! Nothing is reached by a path once it is made: the image decides what `/dev/pts/0` is, and another process of a
//! shared namespace may replace it meanwhile.

use std::{
    io::{self, IoSlice},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::net::UnixStream,
    },
    path::Path,
};

use nix::{
    fcntl::OFlag,
    libc,
    sys::{
        socket::{ControlMessage, MsgFlags, sendmsg},
        statfs::{FsType, fstatfs},
    },
    unistd::{Uid, fchown},
};
use oci_spec::runtime::Process;

use crate::{
    channel::{Channel, Word},
    error::{StartError, Step},
    rootfs::Root,
    sys,
};

/// DEVPTS_SUPER_MAGIC of linux/magic.h.
const DEVPTS: FsType = FsType(0x1cd1);

/// Makes a terminal, tells the maker its master, and returns the end for the program.
pub(crate) fn make(ptmx: OwnedFd, process: &Process, maker: &Channel) -> Result<OwnedFd, StartError> {
    let step = || "make a terminal".to_owned();
    if fstatfs(&ptmx).step(step)?.filesystem_type() != DEVPTS {
        return Err(StartError::impossible(
            "making a terminal",
            "the container has no file system of type devpts on /dev/pts: add the mount to config.json",
        ));
    }
    let terminal = sys::open_peer(&ptmx).step(step)?;
    if let Some(size) = process.console_size() {
        let cells = |count: u64| libc::c_ushort::try_from(count).unwrap_or(libc::c_ushort::MAX);
        let size =
            libc::winsize { ws_row: cells(size.height()), ws_col: cells(size.width()), ws_xpixel: 0, ws_ypixel: 0 };
        sys::set_window_size(&ptmx, &size).step(|| "set the terminal's size".to_owned())?;
    }
    // So that a program that is not root may open it again; the group stays devpts's own.
    fchown(&terminal, Some(Uid::from_raw(process.user().uid())), None).step(|| "give the terminal away".to_owned())?;
    maker.say(&Word::Terminal(ptmx)).step(step)?;
    Ok(terminal)
}

/// Of the root that is being made.
pub(crate) fn ptmx_of(root: &Root) -> Result<OwnedFd, StartError> {
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY;
    root.open(Path::new("/dev/pts/ptmx"), flags).step(|| "open the container's /dev/pts/ptmx".to_owned())
}

/// The terminal is `/dev/console` too.
pub(crate) fn bind_console(root: &Root, terminal: &OwnedFd) -> Result<(), StartError> {
    let step = || "bind the terminal on /dev/console".to_owned();
    let tree = sys::clone_mount_of(terminal.as_fd()).step(step)?;
    root.attach(tree, root.file(Path::new("/dev/console")).step(step)?).step(step)
}

/// In the calling process's session, as its controlling terminal and its standard streams.
pub(crate) fn take(terminal: &OwnedFd) -> io::Result<()> {
    nix::unistd::setsid()?;
    sys::take_terminal(terminal)?;
    [libc::STDIN_FILENO, libc::STDOUT_FILENO, libc::STDERR_FILENO]
        .into_iter()
        .try_for_each(|stream| sys::place_at(terminal, stream))
}

/// As the OCI runtimes' callers expect it at their console socket: one message, the path for a name, the descriptor.
pub(crate) fn hand_over(master: &OwnedFd, socket: &Path) -> io::Result<()> {
    let stream = UnixStream::connect(socket)?;
    let descriptors = [master.as_raw_fd()];
    let control = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(b"/dev/ptmx")], &control, MsgFlags::MSG_NOSIGNAL, None)?;
    Ok(())
}
