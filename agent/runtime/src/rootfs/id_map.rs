//! Mounts that show other owners than their file systems have: mount_setattr(2), "ID-mapped mounts".
//!
//! The kernel takes the map from a user namespace. One is made for each different map by a child that does nothing
//! else and is gone at once; the namespace lives on in its descriptor.

use std::{
    fs::{self, File},
    io,
    os::fd::{AsFd, OwnedFd},
};

use nix::libc;
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Mount, Spec};

use super::options::Reach;
use crate::{
    error::{StartError, Step},
    sys,
};

type Maps<'a> = (&'a [LinuxIdMapping], &'a [LinuxIdMapping]);

/// The user namespaces made so far: many mounts have the same map.
#[derive(Default)]
pub(super) struct IdMaps {
    made: Vec<(Vec<LinuxIdMapping>, Vec<LinuxIdMapping>, OwnedFd)>,
    containers: Option<OwnedFd>,
}

impl IdMaps {
    pub(super) fn apply(&mut self, tree: &OwnedFd, reach: Reach, mount: &Mount, spec: &Spec) -> Result<(), StartError> {
        let what = || format!("map the owners of the mount on {}", mount.destination().display());
        let namespace = match own_maps(mount, spec).map_err(|reason| StartError::impossible(what(), reason))? {
            Some(maps) => self.namespace(maps).step(what)?,
            None => self.containers(spec).step(what)?,
        };
        let change = sys::MountChange { id_map: Some(namespace.as_fd()), ..sys::MountChange::default() };
        match sys::change_mount(tree, change, reach == Reach::Tree) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let reason = "the source's file system cannot do that on this kernel, or its owners are mapped already";
                Err(StartError::impossible(what(), reason))
            }
            result => result.step(what),
        }
    }

    fn namespace(&mut self, (uids, gids): Maps<'_>) -> io::Result<&OwnedFd> {
        let known = self.made.iter().position(|(known_uids, known_gids, _)| known_uids == uids && known_gids == gids);
        let index = match known {
            Some(index) => index,
            None => {
                self.made.push((uids.to_vec(), gids.to_vec(), user_namespace(uids, gids)?));
                self.made.len() - 1
            }
        };
        Ok(&self.made[index].2)
    }

    /// The existing user namespace that the container joins.
    fn containers(&mut self, spec: &Spec) -> io::Result<&OwnedFd> {
        if self.containers.is_none() {
            let path = joined_namespace(spec).ok_or(io::ErrorKind::NotFound)?;
            self.containers = Some(File::open(path)?.into());
        }
        self.containers.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

fn joined_namespace(spec: &Spec) -> Option<&std::path::Path> {
    let namespaces = spec.linux().as_ref()?.namespaces().as_ref()?;
    namespaces.iter().find(|namespace| namespace.typ() == LinuxNamespaceType::User)?.path().as_deref()
}

/// The mount's maps, or else the container's; None for those of the user namespace that it joins.
fn own_maps<'a>(mount: &'a Mount, spec: &'a Spec) -> Result<Option<Maps<'a>>, &'static str> {
    match (mount.uid_mappings(), mount.gid_mappings()) {
        (Some(uids), Some(gids)) => return Ok(Some((uids, gids))),
        (None, None) => {}
        _ => return Err("uidMappings and gidMappings must be given together"),
    }
    if joined_namespace(spec).is_some() {
        return Ok(None);
    }
    let linux = spec.linux().as_ref();
    match linux.and_then(|linux| linux.uid_mappings().as_deref().zip(linux.gid_mappings().as_deref())) {
        Some(maps) => Ok(Some(maps)),
        None => Err("it has no uidMappings and gidMappings, and there is no user namespace to take them from"),
    }
}

fn user_namespace(uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    // SAFETY: the processes of this crate that make containers have one thread.
    match unsafe { sys::fork_into(libc::CLONE_NEWUSER, None) }? {
        sys::Forked::Child => loop {
            // Killed by its maker, and should that be killed first, with it. In vain only if it is gone already.
            if sys::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL as libc::c_ulong).is_err() {
                std::process::exit(1);
            }
            nix::unistd::pause();
        },
        sys::Forked::Parent { pidfd, .. } => {
            // Not by the number that forking returned: /proc may be of another pid namespace.
            let namespace = sys::pid_of(&pidfd).and_then(|child| map(child, uids, gids));
            sys::pidfd_send_signal(&pidfd, libc::SIGKILL)?;
            sys::wait(&pidfd)?;
            namespace
        }
    }
}

fn map(child: u32, uids: &[LinuxIdMapping], gids: &[LinuxIdMapping]) -> io::Result<OwnedFd> {
    fs::write(format!("/proc/{child}/uid_map"), lines(uids))?;
    fs::write(format!("/proc/{child}/gid_map"), lines(gids))?;
    Ok(File::open(format!("/proc/{child}/ns/user"))?.into())
}

/// user_namespaces(7): an ID inside, the ID outside that it is, how many.
fn lines(mappings: &[LinuxIdMapping]) -> String {
    mappings.iter().map(|map| format!("{} {} {}\n", map.container_id(), map.host_id(), map.size())).collect()
}
