//! The runtime's own file, out of a container's reach.
//!
//! A process on its way into a container still is this program: what executes `/proc/self/exe` there, or opens it, has
//! the host's file, and root could write to it once it is not running. So whatever becomes such a process is executed
//! anew through a read-only mount that is nowhere in the tree of mounts: nobody can make it writable again.
//!
//! Where it can be, that was done before the program got here (`src/entry.rs`), and only what failed there is left.

use std::{
    convert::Infallible,
    ffi::{CString, OsString},
    io,
    os::{fd::AsRawFd, unix::ffi::OsStringExt},
    path::Path,
};

use nix::{
    sys::statvfs::{FsFlags, statvfs},
    unistd::execv,
};

use crate::{
    error::{StartError, Step},
    sys,
};

const OWN_FILE: &str = "/proc/self/exe";

/// The commands that put processes into containers.
const PUTTING_IN: [&str; 3] = ["create", "run", "exec"];

/// Goes on in a process that cannot give this program's file away. Nothing may have been opened yet, and to save time
/// nothing is understood: a container of such a name costs other commands a little.
pub(super) fn protect(mut arguments: impl Iterator<Item = OsString>) -> Result<(), StartError> {
    let puts_in = arguments.any(|argument| PUTTING_IN.iter().any(|command| argument == *command));
    let step = || "protect the runtime's own file".to_owned();
    match is_protected() {
        // By the descriptor's number it was executed with.
        Ok(true) => return sys::set_process_name(c"roster-runtime").step(step),
        Err(error) if puts_in => return Err(error).step(step),
        _ if !puts_in => return Ok(()),
        _ => {}
    }
    let Err(error) = execute_anew();
    Err(error)
}

fn is_protected() -> io::Result<bool> {
    Ok(statvfs(OWN_FILE)?.flags().contains(FsFlags::ST_RDONLY))
}

fn execute_anew() -> Result<Infallible, StartError> {
    let step = || "execute the runtime through a read-only mount".to_owned();
    let mount = sys::clone_mount(Path::new(OWN_FILE), false).step(step)?;
    sys::set_mount_attributes(&mount, sys::MOUNT_ATTR_RDONLY | sys::MOUNT_ATTR_NODEV, 0, false).step(step)?;
    let arguments: Result<Vec<_>, _> = std::env::args_os().map(|text| CString::new(text.into_vec())).collect();
    let path = CString::new(format!("/proc/self/fd/{}", mount.as_raw_fd()));
    // Closed by it, when the kernel has found the program.
    execv(&path.step(step)?, &arguments.step(step)?).step(step)
}
