//! Identity and capabilities of the container's program: credentials(7), capabilities(7).

use std::collections::HashSet;

use caps::{CapSet, Capability, CapsHashSet};
use nix::{
    errno::Errno,
    libc,
    unistd::{Gid, Uid, setgroups, setresgid, setresuid},
};
use oci_spec::runtime::{Capability as OciCapability, Process};

use super::{sys, user::Ids};
use crate::runtime::linux::report::{StartError, Step};

/// More than any kernel has; the kernel says where its own end.
const MOST_CAPABILITIES: libc::c_ulong = 64;

/// For good: afterwards the process can gain nothing, not even by executing a set-user-id program.
pub(super) fn take_on(ids: &Ids, process: &Process) -> Result<(), StartError> {
    let wanted = process.capabilities().as_ref();
    let set = |choose: fn(&oci_spec::runtime::LinuxCapabilities) -> &Option<HashSet<OciCapability>>| {
        capabilities(wanted.and_then(|wanted| choose(wanted).as_ref()))
    };
    bound(&set(|c| c.bounding())?)?;
    become_user(ids)?;
    if ids.uid == 0 {
        // In this order: no set may reach beyond the permitted one.
        replace(CapSet::Effective, &set(|c| c.effective())?)?;
        replace(CapSet::Permitted, &set(|c| c.permitted())?)?;
    }
    replace(CapSet::Inheritable, &set(|c| c.inheritable())?)?;
    replace(CapSet::Ambient, &set(|c| c.ambient())?)?;
    if process.no_new_privileges() == Some(true) {
        sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step(|| "forbid new privileges".to_owned())?;
    }
    Ok(())
}

/// Another user than root loses its effective and permitted capabilities here, by the kernel's own rule.
fn become_user(ids: &Ids) -> Result<(), StartError> {
    let groups: Vec<Gid> = ids.groups.iter().copied().map(Gid::from_raw).collect();
    setgroups(&groups).step(|| "set supplementary groups".to_owned())?;
    let gid = Gid::from_raw(ids.gid);
    setresgid(gid, gid, gid).step(|| format!("become group {gid}"))?;
    let uid = Uid::from_raw(ids.uid);
    setresuid(uid, uid, uid).step(|| format!("become user {uid}"))
}

/// Drops by number, so that a capability newer than this program goes too.
fn bound(keep: &CapsHashSet) -> Result<(), StartError> {
    let keep: HashSet<libc::c_ulong> = keep.iter().map(|capability| capability.index().into()).collect();
    for number in (0..MOST_CAPABILITIES).filter(|number| !keep.contains(number)) {
        match sys::prctl(libc::PR_CAPBSET_DROP, number) {
            Ok(()) => {}
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => break,
            Err(error) => return Err(error).step(|| format!("drop capability {number}")),
        }
    }
    Ok(())
}

fn replace(set: CapSet, capabilities: &CapsHashSet) -> Result<(), StartError> {
    caps::set(None, set, capabilities).map_err(std::io::Error::other).step(|| format!("set the {set:?} capabilities"))
}

fn capabilities(names: Option<&HashSet<OciCapability>>) -> Result<CapsHashSet, StartError> {
    let parse = |name: &OciCapability| {
        format!("CAP_{name}").parse::<Capability>().map_err(|error| StartError::Step {
            step: "read the bundle's capabilities".to_owned(),
            error: error.to_string(),
        })
    };
    names.into_iter().flatten().map(parse).collect()
}
