//! A container's files on a file system of their own, so that they cannot fill the host's.
//!
//! It is an ext4 in a sparse file, mounted where the files would lie otherwise. That needs nothing of the host's own file
//! system, where project quotas would need ext4 or xfs with a mount option that no distribution sets. The file takes
//! as much of the host's disk as is in use, at most its size, and gives back what is deleted. The size is no
//! reservation: when the host's disk is full, the container's writes fail with an I/O error.
//!
//! ```text
//! DATA/disks/TASK        the file
//! DATA/containers/TASK   where it is mounted
//! ```
//!
//! Nothing of it survives the container, so there is no journal. The loop device lets go of the file with the mount,
//! whoever unmounts it.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
};
use roster_proto::{
    cause::{Bytes, Cause},
    id::TaskId,
};
use roster_runtime::sys;

use super::{
    containers::{failed, private_dir},
    foreign::PATH,
};
use crate::runtime::RuntimeError;

const MKFS: &str = "mkfs.ext4";
const CONTROL: &str = "/dev/loop-control";
/// Of no use without a journal or a resize are theirs; everything may be used by the container; inode tables and
/// bitmaps are not written before they are needed.
const OPTIONS: [&str; 12] = [
    "-q",
    "-F",
    "-O",
    "^has_journal,^resize_inode",
    "-b",
    "4096",
    "-i",
    "8192",
    "-m",
    "0",
    "-E",
    "nodiscard,lazy_itable_init=1",
];
/// What is deleted is given back to the host; no thread writes the inode tables after all.
const MOUNT_OPTIONS: &str = "discard,noinit_itable";
/// Other programs of the host look for free devices too.
const ATTEMPTS: u32 = 32;
/// Of what the program says when it fails.
const MOST_SAID: u64 = 1024;

#[derive(Debug)]
pub(super) struct Disks(pub(super) PathBuf);

/// Why this host cannot limit what containers write, if it cannot.
pub(super) fn unable() -> Option<String> {
    let installed = PATH.split(':').any(|dir| Path::new(dir).join(MKFS).exists());
    if !installed {
        return Some(format!("there is no {MKFS} on this node: install e2fsprogs"));
    }
    match File::open(CONTROL) {
        Ok(_) => None,
        Err(error) => {
            Some(format!("this node has no loop devices ({CONTROL}: {error}): load the kernel's module loop"))
        }
    }
}

impl Disks {
    fn file(&self, task: &TaskId) -> PathBuf {
        self.0.join(task.as_str())
    }

    /// Mounts a new, empty file system of that size at `at`, an empty directory.
    pub(super) fn make(&self, task: &TaskId, size: u64, at: &Path) -> Result<(), RuntimeError> {
        if let Some(reason) = unable() {
            let what = format!("limiting its files to {}", Bytes(size));
            let reason = format!("{reason}, or remove `storage_opt` (the agent's --container-disk)");
            return Err(RuntimeError { cause: Cause::Impossible { what, reason }, transient: false });
        }
        let path = self.file(task);
        let made = || -> io::Result<()> {
            let file = File::options().create_new(true).read(true).write(true).mode(0o600).open(&path)?;
            file.set_len(size)?;
            format(&path)?;
            mount_file(&file, at)?;
            fs::set_permissions(at, fs::Permissions::from_mode(0o700))
        };
        made().map_err(|error| failed("make a file system for its files".to_owned(), error))
    }

    /// The file of a task, also where nothing is mounted.
    pub(super) fn of(&self, task: &TaskId) -> PathBuf {
        self.file(task)
    }
}

/// Mounts the file system that is in a file, unless it is mounted there. Never two at a time: they would spoil it.
pub(super) fn mount_again(path: &Path, at: &Path) -> io::Result<()> {
    if is_mounted(at)? {
        return Ok(());
    }
    mount_file(&File::options().read(true).write(true).open(path)?, at)
}

fn mount_file(file: &File, at: &Path) -> io::Result<()> {
    let device = attach(file)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    Ok(mount(Some(&device.1), at, Some("ext4"), flags, Some(MOUNT_OPTIONS))?)
}

/// Has what is mounted at `from` at `to`, also when somebody still looks into it.
pub(super) fn move_mount(from: &Path, to: &Path) -> io::Result<()> {
    if !is_mounted(from)? {
        return Ok(());
    }
    let shown = sys::clone_mount(from, false)?;
    unmount(from)?;
    private_dir(to)?;
    sys::attach_mount(shown, File::open(to)?)
}

fn is_mounted(at: &Path) -> io::Result<bool> {
    let beside = at.parent().unwrap_or(at);
    Ok(fs::symlink_metadata(at)?.dev() != fs::symlink_metadata(beside)?.dev())
}

/// Takes it away from all who still look into it, too. Nothing to do where nothing is mounted.
pub(super) fn unmount(at: &Path) -> io::Result<()> {
    loop {
        match umount2(at, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(errno) => return Err(errno.into()),
        }
    }
}

fn format(path: &Path) -> io::Result<()> {
    let mut command = Command::new(MKFS);
    command.args(OPTIONS).arg(path).env_clear().env("PATH", PATH).current_dir("/");
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn()?;
    let mut said = Vec::new();
    if let Some(stderr) = child.stderr.take() {
        stderr.take(MOST_SAID).read_to_end(&mut said)?;
    }
    let status = child.wait()?;
    if status.success() {
        return Ok(());
    }
    Err(io::Error::other(format!("{MKFS}: {status}: {}", String::from_utf8_lossy(&said).trim())))
}

/// The device, open until it is mounted, and its path.
fn attach(file: &File) -> io::Result<(File, PathBuf)> {
    let control = File::open(CONTROL)?;
    let mut attempts = 0;
    loop {
        let number = sys::free_loop_device(&control)?;
        let path = PathBuf::from(format!("/dev/loop{number}"));
        let device = File::options().read(true).write(true).open(&path)?;
        match sys::attach_loop_device(&device, file) {
            Ok(()) => return Ok((device, path)),
            Err(error) if error.raw_os_error() == Some(Errno::EBUSY as i32) && attempts < ATTEMPTS => attempts += 1,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use nix::sched::{CloneFlags, unshare};

    use super::*;

    #[test]
    fn a_host_without_loop_devices_says_so_and_does_not_go_on_without_a_limit() {
        // A `/dev` of its own for this thread, which ends with the test.
        unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let none = None::<&str>;
        mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        mount(Some("tmpfs"), "/dev", Some("tmpfs"), MsFlags::empty(), none).expect("tmpfs");
        let dir = tempfile::tempdir().expect("tempdir");
        let disks = Disks(dir.path().to_owned());
        let error = disks.make(&TaskId::new("t1").expect("id"), 8 << 20, dir.path()).expect_err("no loop devices");
        let text = error.to_string();
        assert!(!error.transient, "{error:?}");
        assert!(
            text.contains("limiting its files to 8 MiB") && text.contains("load the kernel's module loop"),
            "{text}"
        );
        assert!(text.contains("remove `storage_opt`"), "{text}");
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), 0);
    }
}
