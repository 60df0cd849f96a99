//! `roster-shim kept`: a program of the host's in a failed container that is kept, for somebody who watches it.
//!
//! Its files are as the container left them, and what is written stays. Everything else is made anew for as long as the
//! program runs, and ends with it: the namespaces, all of its own, with a network of nothing but loopback; an init; the
//! container's limits. What was mounted from the host is there read-only: by now it is its replacement's.

use std::{borrow::Cow, path::Path};

use nix::{libc, unistd::Pid};
use oci_spec::runtime::{LinuxNamespaceBuilder, LinuxNamespaceType, Mount, Spec};
use roster_runtime::{
    cgroup::CgroupDirs,
    channel::Channel,
    container::{self, ANNOTATION_CREATE, ANNOTATION_INIT, Birth},
    enter::Entered,
    error::{StartError, Step},
    rootfs::toolbox::Toolbox,
    sys,
};

use super::live::{Agent, serve, streams, take_over, watch};
use crate::runtime::linux::record::BundleDir;

pub(super) fn kept(bundle: &BundleDir, cgroup: &CgroupDirs) -> Result<(), StartError> {
    serve(|agent| begin(agent, bundle, cgroup))
}

fn begin(agent: &Agent, bundle: &BundleDir, cgroup: &CgroupDirs) -> Result<Option<i32>, StartError> {
    let order = agent.order().step(|| "read the order".to_owned())?;
    let mut spec = bundle.spec()?;
    seclude(&mut spec, &bundle.0)?;
    take_over(&mut spec, &order)?;
    let toolbox = order.tools.then(|| Toolbox::of_host(&bundle.rootfs())).transpose()?;
    let (stdio, ours) = streams(&order)?;
    let (channel, process) = Channel::pair().step(|| "make a pair of sockets".to_owned())?;
    let door = cgroup.door().step(|| "open the container's cgroup".to_owned())?;
    // SAFETY: the shim never starts a thread.
    match unsafe { container::fork(libc::CLONE_NEWPID, &door) }? {
        sys::Forked::Child => {
            drop((channel, ours));
            let birth = Birth {
                id: bundle.id(),
                bundle: &bundle.0,
                mapped: None,
                door,
                cgroup,
                stdio,
                channel: process,
                dies_with_maker: true,
                start: None,
                ended: None,
                preserved: 0,
                no_pivot: false,
                keep_keyring: false,
                hears_filter: false,
                toolbox,
            };
            container::become_container(birth, || Ok(Cow::Owned(spec)))
        }
        sys::Forked::Parent { child, pidfd } => {
            drop((process, door, stdio, toolbox));
            let init = i32::try_from(child).map_err(std::io::Error::other);
            let init = Pid::from_raw(init.step(|| "read a process id".to_owned())?);
            watch(agent, &Entered { pid: child, pidfd, channel }, init, ours)
        }
    }
}

/// From the host, from its service's network, and from what its replacement uses. `own`: where its files are kept.
fn seclude(spec: &mut Spec, own: &Path) -> Result<(), StartError> {
    use LinuxNamespaceType::{Cgroup, Ipc, Mount as Mounts, Network, Pid as Pids, Uts};
    let namespaces: Result<Vec<_>, _> = [Mounts, Uts, Cgroup, Pids, Ipc, Network]
        .map(|typ| LinuxNamespaceBuilder::default().typ(typ).build())
        .into_iter()
        .collect();
    let namespaces = namespaces.map_err(std::io::Error::other).step(|| "name the namespaces".to_owned())?;
    let missing = || StartError::impossible("looking into the container", "config.json has no `linux`");
    spec.linux_mut().as_mut().ok_or_else(missing)?.set_namespaces(Some(namespaces));
    let is_there = |mount: &Mount| !is_bind(mount) || mount.source().as_ref().is_some_and(|source| source.exists());
    let mut mounts: Vec<Mount> = spec.mounts().iter().flatten().filter(|mount| is_there(mount)).cloned().collect();
    let foreign =
        |mount: &&mut Mount| is_bind(mount) && !mount.source().as_ref().is_some_and(|source| source.starts_with(own));
    for mount in mounts.iter_mut().filter(foreign) {
        let words = ["rbind", "rprivate", "rro", "rnosuid", "rnodev"].map(str::to_owned);
        mount.set_options(Some(words.to_vec()));
    }
    spec.set_mounts(Some(mounts));
    let mut annotations = spec.annotations().clone().unwrap_or_default();
    annotations.remove(ANNOTATION_CREATE);
    annotations.insert(ANNOTATION_INIT.to_owned(), "true".to_owned());
    spec.set_annotations(Some(annotations));
    Ok(())
}

fn is_bind(mount: &Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
}
