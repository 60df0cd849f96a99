//! Named network namespaces: files on which a namespace is bind-mounted, as ip-netns(8) does it.
//!
//! A namespace is made, and a socket into one opened, on a thread that lives for that alone: the threads of the runtime
//! stay in the namespace of the process. A namespace gets its settings before it gets its name, so that one with a name
//! is complete.

use std::{
    fs::{self, File, OpenOptions},
    io,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
    thread,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
    sys::statfs::{NSFS_MAGIC, fstatfs},
};
use tokio::{runtime::Handle, sync::oneshot};

use super::netlink::Netlink;

/// The thread makes a handful of system calls and nothing deep.
const THREAD_STACK: usize = 128 * 1024;

#[derive(Debug)]
pub(super) struct Netns {
    pub(super) file: File,
    /// Speaks to this namespace.
    pub(super) netlink: Netlink,
    /// Made by this call, hence empty.
    pub(super) is_new: bool,
}

/// Settings of a new namespace, `/proc/sys/net/` left out. As Docker does it, programs that are not root may listen on
/// ports below 1024 and ping: the ports are the container's own. IPv6 is off since nothing would route it.
const SETTINGS: [(&str, &str); 4] = [
    ("ipv4/ip_unprivileged_port_start", "0"),
    ("ipv4/ping_group_range", "0 2147483647"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// The namespace of that name, made where there is none.
pub(super) async fn open_or_create(path: PathBuf) -> io::Result<Netns> {
    let runtime = Handle::current();
    let (answer, result) = oneshot::channel();
    thread::Builder::new().name("netns".to_owned()).stack_size(THREAD_STACK).spawn(move || {
        let _context = runtime.enter();
        // Whoever asked may have gone; what was made has a name and is found again by it.
        drop(answer.send(open_or_create_here(&path)));
    })?;
    result.await.map_err(|_| io::Error::other("the thread that was to make the network namespace ended"))?
}

/// Leaves the calling thread in the namespace.
fn open_or_create_here(path: &Path) -> io::Result<Netns> {
    let (file, is_new) = match enter(path)? {
        Some(file) => (file, false),
        None => (create(path)?, true),
    };
    Ok(Netns { file, netlink: Netlink::open()?, is_new })
}

fn enter(path: &Path) -> io::Result<Option<File>> {
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if fstatfs(&file)?.filesystem_type() != NSFS_MAGIC {
        return Ok(None);
    }
    setns(&file, CloneFlags::CLONE_NEWNET)?;
    Ok(Some(file))
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new().write(true).create(true).truncate(false).mode(0o400).open(path)?;
    unshare(CloneFlags::CLONE_NEWNET)?;
    for (setting, value) in SETTINGS {
        match fs::write(Path::new("/proc/sys/net").join(setting), value) {
            // A kernel without IPv6.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            result => result?,
        }
    }
    mount(Some("/proc/thread-self/ns/net"), path, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
    File::open(path)
}

/// Takes the name away; the namespace itself goes with its last process and descriptor. Succeeds where there is none.
pub(super) fn remove(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => break,
            Err(error) => return Err(error.into()),
        }
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}

/// The names in a directory of namespaces, of finished and of half-made ones; none if there is no such directory.
pub(super) fn names(directory: &Path) -> io::Result<Vec<String>> {
    let entries = match fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(error),
    };
    let name = |entry: io::Result<fs::DirEntry>| Ok(entry?.file_name().to_string_lossy().into_owned());
    entries.map(name).collect()
}
