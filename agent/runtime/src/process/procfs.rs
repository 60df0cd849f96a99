//! Writing to the host's procfs, and to nothing that only looks like it.
//!
//! A write that takes a security label on, or sets a kernel parameter, is harmful when it lands in another file: it
//! seems done and is not, or it changes the host (CVE-2019-16884, CVE-2023-28642, CVE-2025-52881). So it is checked
//! that `/proc` is the root of a procfs, and the way from there to the file may cross no mount and leave by no link.
//!
//! Everything here is for a process whose root is still the host's.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::OwnedFd,
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::{
        stat::{Mode, fstat},
        statfs::{PROC_SUPER_MAGIC, fstatfs},
    },
};

/// Of the top directory of every procfs: a bind mount of a part of one is none.
const ROOT_INODE: u64 = 1;

/// Writes all of `text` at once, which is what the kernel wants, to a file below `/proc` without links on the way.
pub fn write(path: &str, text: &str) -> io::Result<()> {
    write_below(Path::new("/proc"), path, text, ResolveFlag::RESOLVE_NO_SYMLINKS)
}

/// As [`write`], to a file of the calling thread's own, whichever pid namespace it is in.
pub fn write_own(path: &str, text: &str) -> io::Result<()> {
    write_below(Path::new("/proc"), &format!("thread-self/{path}"), text, ResolveFlag::empty())
}

fn write_below(root: &Path, path: &str, text: &str, resolve: ResolveFlag) -> io::Result<()> {
    let root = open_root(root)?;
    let confined = ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_XDEV | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(OFlag::O_WRONLY | OFlag::O_CLOEXEC).resolve(confined | resolve);
    let written = File::from(openat2(&root, path, how)?).write(text.as_bytes())?;
    if written == text.len() { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
}

fn open_root(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let root = open(path, flags, Mode::empty())?;
    let genuine = fstatfs(&root)?.filesystem_type() == PROC_SUPER_MAGIC && fstat(&root)?.st_ino == ROOT_INODE;
    if genuine { Ok(root) } else { Err(io::Error::other(format!("{} is not the kernel's procfs", path.display()))) }
}

#[cfg(test)]
mod tests {
    use nix::errno::Errno;

    use super::*;

    #[test]
    fn a_directory_that_only_looks_like_procfs_is_not_written_to() {
        let fake = tempfile::tempdir().unwrap();
        std::fs::write(fake.path().join("label"), "old").unwrap();
        let error = write_below(fake.path(), "label", "new", ResolveFlag::empty()).unwrap_err();
        assert!(error.to_string().contains("is not the kernel's procfs"), "{error}");
        assert_eq!(std::fs::read_to_string(fake.path().join("label")).unwrap(), "old");
    }

    #[test]
    fn a_part_of_procfs_is_not_taken_for_the_whole() {
        let error = write_below(Path::new("/proc/self/task"), "1/comm", "x", ResolveFlag::empty());
        // `/proc/self` may be a link on the way: only the last part must not be one.
        assert!(error.unwrap_err().to_string().contains("is not the kernel's procfs"));
    }

    #[test]
    fn links_lead_out_of_procfs_for_nobody() {
        assert_eq!(write("self/comm", "x").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(write_own("root/etc/x", "x").unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        assert_eq!(write("../etc/x", "x").unwrap_err().raw_os_error(), Some(Errno::EXDEV as i32));
    }
}
