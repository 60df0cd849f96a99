//! Deleting directories away from whoever waits: renamed now, deleted by a thread of its own.
//!
//! On a disk that discards freed blocks, each directory takes about a millisecond to delete. What an agent that was
//! killed had not deleted yet is deleted by the next one.
//!
//! The trees were written by containers: they may be of any depth and hold any kind of file. Nothing is followed, and
//! what lies deep is first moved up, so that neither descriptors nor the stack run out.

use std::{
    ffi::{CStr, OsStr},
    fs, io,
    os::{
        fd::{AsFd, BorrowedFd, OwnedFd},
        unix::ffi::OsStrExt,
    },
    path::{Path, PathBuf},
    sync::{
        atomic::{AtomicU64, Ordering},
        mpsc::{self, SyncSender, TrySendError},
    },
    thread,
    time::{SystemTime, UNIX_EPOCH},
};

use nix::{
    dir::{Dir, Type},
    errno::Errno,
    fcntl::{OFlag, renameat},
    sys::stat::Mode,
    unistd::{UnlinkatFlags, unlinkat},
};

/// Directories within each other that are held open at a time.
const DEEPEST: u32 = 16;

#[derive(Debug)]
pub(super) struct Trash {
    dirs: Vec<PathBuf>,
    wake: SyncSender<()>,
    next: AtomicU64,
}

impl Trash {
    /// `dirs`: one for each file system that things are taken from, each beside them.
    pub(super) fn open(dirs: Vec<PathBuf>) -> io::Result<Self> {
        dirs.iter().try_for_each(fs::create_dir_all)?;
        // One wake-up that waits is enough: it leads to everything being looked at.
        let (wake, woken) = mpsc::sync_channel(1);
        let to_empty = dirs.clone();
        thread::Builder::new().name("trash".to_owned()).spawn(move || {
            while woken.recv().is_ok() {
                for dir in &to_empty {
                    if let Err(error) = empty(dir) {
                        tracing::warn!(dir = %dir.display(), %error, "cannot delete what removed containers left");
                    }
                }
            }
        })?;
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        let trash = Self { dirs, wake, next: AtomicU64::new(started as u64) };
        trash.wake();
        Ok(trash)
    }

    /// Moves `path` out of sight. Nothing to do where there is nothing.
    pub(super) fn take(&self, path: &Path) -> io::Result<()> {
        let beside = |dir: &&PathBuf| dir.parent().is_some_and(|parent| path.starts_with(parent));
        // The nearest: one agent's directories may lie within each other and still be different file systems.
        let nearest = self.dirs.iter().filter(beside).max_by_key(|dir| dir.components().count());
        let dir = nearest.ok_or_else(|| io::Error::other("no trash on its file system"))?;
        let name = self.next.fetch_add(1, Ordering::Relaxed).to_string();
        match fs::rename(path, dir.join(name)) {
            Ok(()) => {
                self.wake();
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn wake(&self) {
        match self.wake.try_send(()) {
            Ok(()) | Err(TrySendError::Full(())) => {}
            Err(TrySendError::Disconnected(())) => tracing::error!("the thread that deletes has died"),
        }
    }
}

/// Deletes everything in `dir`, also while another does.
pub(crate) fn empty(dir: &Path) -> io::Result<()> {
    let top = open_dir(nix::fcntl::AT_FDCWD, dir)?;
    let mut moved = 0;
    // What was moved up is found by the next round.
    while clear(&top, top.as_fd(), 0, &mut moved)? {}
    Ok(())
}

fn open_dir(at: impl AsFd, path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::openat(at, path, flags, Mode::empty())?)
}

/// Says whether something was moved up into `top` instead. Entries are deleted while the directory is read: a container
/// may have made millions.
fn clear(top: &OwnedFd, at: BorrowedFd<'_>, depth: u32, moved: &mut u64) -> io::Result<bool> {
    let mut any_moved = false;
    let mut dir = Dir::from_fd(at.try_clone_to_owned()?)?;
    for entry in dir.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        if entry.file_type() != Some(Type::Directory) {
            match unlinkat(at, name, UnlinkatFlags::NoRemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => continue,
                Err(Errno::EISDIR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if depth == DEEPEST {
            move_up(top, at, name, moved)?;
            any_moved = true;
            continue;
        }
        let child = match open_dir(at, Path::new(OsStr::from_bytes(name.to_bytes()))) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            child => child?,
        };
        any_moved |= clear(top, child.as_fd(), depth + 1, moved)?;
        match unlinkat(at, name, UnlinkatFlags::RemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(any_moved)
}

/// Under a name that nothing in `top` has: an earlier round that failed may have left some.
fn move_up(top: &OwnedFd, at: BorrowedFd<'_>, name: &CStr, moved: &mut u64) -> io::Result<()> {
    loop {
        *moved += 1;
        match renameat(at, name, top, format!("deep-{moved}").as_str()) {
            Err(Errno::ENOTEMPTY | Errno::EEXIST) => {}
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trees_of_any_depth_and_name_are_deleted_and_links_not_followed() {
        let dir = tempfile::tempdir().expect("tempdir");
        let (outside, trash) = (dir.path().join("outside"), dir.path().join("trash"));
        fs::create_dir_all(&outside).expect("made");
        fs::write(outside.join("kept"), "x").expect("written");
        let mut path = trash.join("1");
        for _ in 0..200 {
            path.push("d");
        }
        path.push(OsStr::from_bytes(b"not-\xff-utf8"));
        fs::create_dir_all(&path).expect("made");
        fs::write(path.join("file"), "x").expect("written");
        fs::create_dir_all(trash.join("deep-1/left/by/a/failed/round")).expect("made");
        (0..5000).for_each(|number| fs::write(trash.join(format!("1/many-{number}")), "").expect("written"));
        std::os::unix::fs::symlink(&outside, trash.join("1/link")).expect("linked");
        empty(&trash).expect("emptied");
        assert_eq!(fs::read_dir(&trash).expect("dir").count(), 0);
        assert!(outside.join("kept").exists());
    }
}
