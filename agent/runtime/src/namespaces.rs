//! Namespaces new, by path, and absent: namespaces(7), user_namespaces(7), time_namespaces(7).

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
};

use nix::{
    libc,
    sched::{CloneFlags, setns, unshare},
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use oci_spec::runtime::{LinuxIdMapping, LinuxNamespaceType, Spec};

use crate::{
    cgroup::Door,
    error::{StartError, Step},
    sys,
};

/// What the bundle says of namespaces.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// The pid and the user namespace are cloned into; the rest is unshared.
    new: libc::c_int,
    joined: Vec<(LinuxNamespaceType, PathBuf)>,
}

impl Namespaces {
    pub fn of(spec: &Spec) -> Result<Self, StartError> {
        let mut all = Self::default();
        let mut seen = Vec::new();
        for namespace in spec.linux().as_ref().and_then(|linux| linux.namespaces().as_ref()).into_iter().flatten() {
            let typ = namespace.typ();
            if seen.contains(&typ) {
                return Err(StartError::impossible(
                    format!("config.json, linux.namespaces: {typ}"),
                    "it is there twice",
                ));
            }
            seen.push(typ);
            match namespace.path() {
                // Written by some as "a new one".
                Some(path) if !path.as_os_str().is_empty() => all.joined.push((typ, path.clone())),
                _ => all.new |= flag(typ),
            }
        }
        // The user namespace first: it gives the right to enter the others.
        all.joined.sort_by_key(|(typ, _)| *typ != LinuxNamespaceType::User);
        all.check(spec)?;
        Ok(all)
    }

    fn check(&self, spec: &Spec) -> Result<(), StartError> {
        let linux = spec.linux().as_ref();
        let needs = |what: &str, typ: LinuxNamespaceType| {
            let reason = format!("without a {typ} namespace of the container's own it would be the host's");
            if self.has(typ) { Ok(()) } else { Err(StartError::impossible(format!("config.json, {what}"), reason)) }
        };
        if spec.hostname().as_ref().is_some_and(|name| !name.is_empty()) {
            needs("hostname", LinuxNamespaceType::Uts)?;
        }
        if spec.domainname().as_ref().is_some_and(|name| !name.is_empty()) {
            needs("domainname", LinuxNamespaceType::Uts)?;
        }
        if linux.is_some_and(|linux| linux.time_offsets().as_ref().is_some_and(|offsets| !offsets.is_empty())) {
            needs("linux.timeOffsets", LinuxNamespaceType::Time)?;
        }
        if self.is_new(LinuxNamespaceType::User) {
            let mapped = linux.is_some_and(|linux| {
                [linux.uid_mappings(), linux.gid_mappings()]
                    .iter()
                    .all(|ids| ids.as_ref().is_some_and(|ids| !ids.is_empty()))
            });
            if !mapped {
                let reason = "a new user namespace needs linux.uidMappings and linux.gidMappings";
                return Err(StartError::impossible("config.json, linux.namespaces", reason));
            }
        }
        if !self.has(LinuxNamespaceType::Mount) && self.has(LinuxNamespaceType::User) {
            let reason = "in a user namespace nothing can be mounted without a mount namespace of its own";
            return Err(StartError::impossible("config.json, linux.namespaces", reason));
        }
        Ok(())
    }

    pub fn has(&self, typ: LinuxNamespaceType) -> bool {
        self.is_new(typ) || self.path(typ).is_some()
    }

    pub fn is_new(&self, typ: LinuxNamespaceType) -> bool {
        self.new & flag(typ) != 0
    }

    pub fn path(&self, typ: LinuxNamespaceType) -> Option<&Path> {
        self.joined.iter().find(|(joined, _)| *joined == typ).map(|(_, path)| path.as_path())
    }

    /// Who the root of the container's own user namespace is on the host.
    pub fn host_root(&self, spec: &Spec) -> Option<u32> {
        let ids = spec.linux().as_ref().and_then(|linux| linux.uid_mappings().as_deref());
        let root = ids.filter(|_| self.is_new(LinuxNamespaceType::User))?.iter().find(|map| map.container_id() == 0)?;
        Some(root.host_id())
    }

    /// What the first process is cloned with.
    pub fn clone_flags(&self) -> libc::c_int {
        self.new & (libc::CLONE_NEWPID | libc::CLONE_NEWUSER)
    }

    /// All that a later process of the container has to enter.
    pub fn flags(&self) -> libc::c_int {
        self.joined.iter().fold(self.new, |flags, (typ, _)| flags | flag(*typ))
    }

    /// Called by the first process. The cgroup is joined before its namespace is made, whose root is then the
    /// container's own group.
    pub(crate) fn enter(&self, door: Door) -> Result<(), StartError> {
        if self.is_new(LinuxNamespaceType::User) {
            become_root()?;
        }
        for (typ, path) in self.joined.iter().filter(|(typ, _)| *typ != LinuxNamespaceType::Pid) {
            let step = || format!("enter the {typ} namespace {}", path.display());
            let file = File::open(path).step(step)?;
            if *typ == LinuxNamespaceType::Mount && is_ours(*typ, path).step(step)? {
                return Err(StartError::impossible(step(), "it is the runtime's own, whose root would be changed"));
            }
            setns(file, CloneFlags::from_bits_retain(flag(*typ))).step(step)?;
            if *typ == LinuxNamespaceType::User {
                become_root()?;
            }
        }
        door.enter().step(|| "join the cgroup".to_owned())?;
        let new = CloneFlags::from_bits_retain(self.new & !self.clone_flags());
        unshare(new).step(|| "make namespaces".to_owned())?;
        if self.is_new(LinuxNamespaceType::Network) {
            sys::raise_loopback().step(|| "bring loopback up".to_owned())?;
        }
        Ok(())
    }

    /// Moves into the new time namespace, whose clocks must be set before anybody is in it.
    pub(crate) fn set_clocks(&self, spec: &Spec) -> Result<(), StartError> {
        if !self.is_new(LinuxNamespaceType::Time) {
            return Ok(());
        }
        let offsets = spec.linux().as_ref().and_then(|linux| linux.time_offsets().as_ref());
        for (clock, offset) in offsets.into_iter().flatten() {
            let line = format!("{clock} {} {}", offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            fs::write("/proc/self/timens_offsets", line).step(|| format!("set the clock {clock}"))?;
        }
        let step = || "enter the time namespace".to_owned();
        let file = File::open("/proc/self/ns/time_for_children").step(step)?;
        setns(file, CloneFlags::from_bits_retain(flag(LinuxNamespaceType::Time))).step(step)
    }
}

/// Whether the calling process is in the namespace behind a path.
pub(crate) fn is_ours(kind: LinuxNamespaceType, path: &Path) -> io::Result<bool> {
    let ours = nix::sys::stat::stat(&*format!("/proc/self/ns/{kind}"))?;
    let theirs = nix::sys::stat::stat(path)?;
    Ok((ours.st_dev, ours.st_ino) == (theirs.st_dev, theirs.st_ino))
}

/// In a user namespace whose ids have just been mapped, or that was just entered.
pub(crate) fn become_root() -> Result<(), StartError> {
    let step = || "become the user namespace's root".to_owned();
    let (uid, gid) = (Uid::from_raw(0), Gid::from_raw(0));
    setresgid(gid, gid, gid).step(step)?;
    setresuid(uid, uid, uid).step(step)?;
    // Where the namespace forbids it, there is nothing to give up that the maker did not have there.
    match setgroups(&[]) {
        Ok(()) | Err(nix::Error::EPERM) => Ok(()),
        Err(error) => Err(error).step(step),
    }
}

/// Gives ids to a new user namespace; called by the maker, user_namespaces(7).
pub fn map_ids(pid: u32, spec: &Spec) -> Result<(), StartError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    for (file, mappings) in [("uid_map", linux.uid_mappings()), ("gid_map", linux.gid_mappings())] {
        let path = format!("/proc/{pid}/{file}");
        fs::write(&path, id_map(mappings.iter().flatten())).step(|| format!("write {path}"))?;
    }
    Ok(())
}

/// As the kernel reads it: one line for each range.
pub fn id_map<'a>(mappings: impl Iterator<Item = &'a LinuxIdMapping>) -> String {
    mappings.map(|range| format!("{} {} {}\n", range.container_id(), range.host_id(), range.size())).collect()
}

/// Its number is the flag of clone(2).
fn flag(typ: LinuxNamespaceType) -> libc::c_int {
    typ as libc::c_int
}
