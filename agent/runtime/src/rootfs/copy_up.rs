//! `tmpcopyup`: a new tmpfs begins with a copy of the directory that it covers.
//!
//! What is copied is the image's and may be changed by others meanwhile. So every file is first opened as a mere place
//! (`O_PATH`), and only what then is a regular file or directory is opened to be read. Devices and sockets are left
//! out: a tmpfs of a container has no use for either. Owners, modes and times are kept; extended attributes and hard
//! links are not.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, AsRawFd, OwnedFd},
    path::Path,
};

use nix::{
    dir::Dir,
    fcntl::{AtFlags, OFlag, openat, readlinkat},
    sys::{
        stat::{FileStat, Mode, SFlag, UtimensatFlags, fchmod, fstat, futimens, mkdirat, mknodat, utimensat},
        time::TimeSpec,
    },
    unistd::{Gid, Uid, fchown, fchownat, symlinkat},
};

/// Each level of directories holds a few descriptors.
const DEEPEST: u32 = 128;

/// Copies what is in `from` into `to`, and gives `to` its owner.
pub(super) fn copy(from: &OwnedFd, to: &OwnedFd) -> io::Result<()> {
    let to = readable(to, OFlag::O_DIRECTORY)?;
    let of = fstat(from)?;
    copy_directory(from, &to, DEEPEST)?;
    fchown(&to, Some(Uid::from_raw(of.st_uid)), Some(Gid::from_raw(of.st_gid)))?;
    Ok(())
}

fn copy_directory(from: &OwnedFd, to: &OwnedFd, deepest: u32) -> io::Result<()> {
    let Some(deepest) = deepest.checked_sub(1) else {
        return Err(io::Error::other(format!("more than {DEEPEST} directories lie in each other")));
    };
    let mut directory = Dir::from_fd(readable(from, OFlag::O_DIRECTORY)?)?;
    for entry in directory.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let place = openat(from, name, OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC, Mode::empty())?;
        copy_entry(&place, to, name, deepest)?;
    }
    Ok(())
}

fn copy_entry(from: &OwnedFd, to: &OwnedFd, name: &std::ffi::CStr, deepest: u32) -> io::Result<()> {
    let of = fstat(from)?;
    let create = OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    let (user, group) = (Some(Uid::from_raw(of.st_uid)), Some(Gid::from_raw(of.st_gid)));
    match SFlag::from_bits_truncate(of.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => {
            mkdirat(to, name, Mode::S_IRWXU)?;
            let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
            let made = openat(to, name, flags, Mode::empty())?;
            copy_directory(from, &made, deepest)?;
            keep(&made, &of)
        }
        SFlag::S_IFREG => {
            let made = File::from(openat(to, name, create, Mode::S_IRUSR)?);
            io::copy(&mut File::from(readable(from, OFlag::empty())?), &mut &made)?;
            keep(made, &of)
        }
        SFlag::S_IFLNK => {
            symlinkat(readlinkat(from, "")?.as_os_str(), to, name)?;
            fchownat(to, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            Ok(utimensat(to, name, &accessed(&of), &modified(&of), UtimensatFlags::NoFollowSymlink)?)
        }
        SFlag::S_IFIFO => {
            mknodat(to, name, SFlag::S_IFIFO, Mode::from_bits_truncate(of.st_mode), 0)?;
            Ok(fchownat(to, name, user, group, AtFlags::AT_SYMLINK_NOFOLLOW)?)
        }
        _ => Ok(()),
    }
}

/// Owner first: chown(2) takes the set-user-ID bits away.
fn keep(made: impl AsFd, of: &FileStat) -> io::Result<()> {
    fchown(&made, Some(Uid::from_raw(of.st_uid)), Some(Gid::from_raw(of.st_gid)))?;
    fchmod(&made, Mode::from_bits_truncate(of.st_mode))?;
    Ok(futimens(&made, &accessed(of), &modified(of))?)
}

fn accessed(of: &FileStat) -> TimeSpec {
    TimeSpec::new(of.st_atime, of.st_atime_nsec)
}

fn modified(of: &FileStat) -> TimeSpec {
    TimeSpec::new(of.st_mtime, of.st_mtime_nsec)
}

/// Opens for reading what is open as a place. The host's `/proc` is still the process's.
fn readable(place: &OwnedFd, flags: OFlag) -> io::Result<OwnedFd> {
    let path = format!("/proc/self/fd/{}", place.as_raw_fd());
    Ok(nix::fcntl::open(Path::new(&path), flags | OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())?)
}
