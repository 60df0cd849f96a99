//! From the host's root to the container's.

use std::{
    ffi::OsString,
    fs,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::ffi::OsStringExt,
    },
    path::{Path, PathBuf},
};

use nix::{
    errno::Errno,
    fcntl::{OFlag, open},
    mount::{MntFlags, MsFlags, umount2},
    sys::stat::Mode,
    unistd::{chroot, fchdir, pivot_root},
};

use crate::{
    error::{StartError, Step},
    sys,
};

fn step() -> String {
    "change the root".to_owned()
}

/// Puts the old root under the new one and takes it off again: no directory for it is needed, pivot_root(2).
pub(super) fn pivot(root: &OwnedFd) -> Result<(), StartError> {
    fchdir(root).step(step)?;
    pivot_root(".", ".").step(step)?;
    umount2(".", MntFlags::MNT_DETACH).step(step)?;
    std::env::set_current_dir("/").step(step)
}

/// Whoever has CAP_SYS_CHROOT can get out of it again.
pub(crate) fn chroot_into(root: &OwnedFd) -> Result<(), StartError> {
    fchdir(root).step(step)?;
    chroot(".").step(step)?;
    std::env::set_current_dir("/").step(step)
}

/// For a host whose root pivot_root(2) cannot leave, an initramfs: moves the new root over the old one.
///
/// The old root stays beneath, where `..` does not lead: from the top of a file system it goes through all that is
/// mounted there. But its mounts would be there for a container with its own user namespace to justify new mounts of
/// procfs and sysfs by, without what is masked in the container's; so all that can be is unmounted, and what is locked
/// is covered.
pub(super) fn move_over(root: &OwnedFd) -> Result<(), StartError> {
    let path = fs::read_link(format!("/proc/self/fd/{}", root.as_raw_fd())).step(step)?;
    let text = fs::read("/proc/self/mountinfo").step(step)?;
    let places: Vec<_> = text.split(|byte| *byte == b'\n').filter_map(mount_point).collect();
    // The latest first: what is mounted below something comes after it.
    for place in places.iter().rev().filter(|place| !path.starts_with(place) && !place.starts_with(&path)) {
        remove(place).step(|| format!("unmount {} of the host", place.display()))?;
    }
    let top = open("/", OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty()).step(step)?;
    fchdir(root).step(step)?;
    sys::attach_mount(root, top).step(step)?;
    chroot(".").step(step)?;
    std::env::set_current_dir("/").step(step)
}

fn remove(place: &Path) -> Result<(), Errno> {
    match umount2(place, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        // Gone with another, or below one that hides it.
        Ok(()) | Err(Errno::ENOENT) => Ok(()),
        // Locked by the user namespace, mount_namespaces(7); or below one that is gone by now.
        Err(Errno::EINVAL | Errno::EPERM) if place.starts_with("/proc") || place.starts_with("/sys") => {
            match nix::mount::mount(None::<&str>, place, Some("tmpfs"), MsFlags::MS_RDONLY, None::<&str>) {
                Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(()),
                covered => covered,
            }
        }
        Err(Errno::EINVAL | Errno::EPERM) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The fifth field of a line of mountinfo, proc_pid_mountinfo(5), where `\040` is a space.
pub(super) fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        match (first, tail) {
            (b'\\', [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', tail @ ..]) => {
                path.push((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'));
                rest = tail;
            }
            _ => {
                path.push(*first);
                rest = tail;
            }
        }
    }
    Some(OsString::from_vec(path).into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_point_is_read_with_the_characters_that_are_escaped() {
        let line = br"36 35 98:0 /mnt1 /my\040disk\134x rw,noatime master:1 - ext3 /dev/root rw";
        assert_eq!(mount_point(line), Some(PathBuf::from(r"/my disk\x")));
        assert_eq!(mount_point(b""), None);
    }
}
