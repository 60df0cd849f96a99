//! Becoming the user of a process, with its capabilities and no others: credentials(7), capabilities(7),
//! user_namespaces(7).
//!
//! In two phases, because loading a seccomp filter needs either CAP_SYS_ADMIN or that new privileges are forbidden.
//! With `noNewPrivileges` the filter may come last: [`take_on`], [`forbid_new_privileges`], filter. Without, it must
//! come before [`take_on`] and let that through.

use nix::{
    errno::Errno,
    libc,
    sys::stat::{Mode, umask},
    unistd::{Gid, Uid, getgroups, setgroups, setresgid, setresuid},
};
use oci_spec::runtime::{Capability, Process};

use super::{
    capabilities::{LeftOut, Sets, left_out, number},
    user::Ids,
};
use crate::{
    error::{StartError, Step},
    sys::{self, CapabilitySets},
};

/// More than any kernel has; the kernel says where its own end.
const MOST_CAPABILITIES: u32 = 64;

/// Identity, umask and capabilities, for good. Answers what the process should have had and cannot have: for the log.
///
/// The process may become undumpable by this, and forgets its parent-death signal: prctl(2).
pub fn take_on(ids: &Ids, process: &Process) -> Result<Vec<LeftOut>, StartError> {
    let asked = process.capabilities().as_ref();
    let held = held()?;
    let granted = Sets::wanted(asked).granted_to(held);
    // While there still is CAP_SETPCAP, which dropping needs.
    bound(held.bounding & !granted.bounding)?;
    become_user(ids)?;
    let Sets { effective, permitted, inheritable, .. } = granted;
    sys::set_capabilities(CapabilitySets { effective, permitted, inheritable })
        .step(|| "set the capabilities".to_owned())?;
    // Last, for these must be permitted and inheritable already.
    set_ambient(granted.ambient)?;
    Ok(left_out(asked, granted))
}

/// Afterwards the process can gain nothing, not even by executing a set-user-id program.
pub fn forbid_new_privileges() -> Result<(), StartError> {
    sys::prctl(libc::PR_SET_NO_NEW_PRIVS, 1).step(|| "forbid new privileges".to_owned())
}

/// The ambient set is not asked for: it is replaced whatever it is.
fn held() -> Result<Sets, StartError> {
    let step = || "read the runtime's own capabilities".to_owned();
    let CapabilitySets { effective, permitted, inheritable } = sys::capabilities().step(step)?;
    let mut bounding = 0;
    // By number, so that a capability newer than this program is seen, and dropped, too.
    for number in 0..MOST_CAPABILITIES {
        match sys::in_bounding_set(number) {
            Ok(held) => bounding |= u64::from(held) << number,
            Err(error) if error.raw_os_error() == Some(Errno::EINVAL as i32) => break,
            Err(error) => return Err(error).step(step),
        }
    }
    Ok(Sets { bounding, permitted, effective, inheritable, ambient: 0 })
}

fn bound(drop: u64) -> Result<(), StartError> {
    for number in numbers(drop) {
        sys::prctl(libc::PR_CAPBSET_DROP, number.into())
            .step(|| format!("drop capability {number} from the bounding set"))?;
    }
    Ok(())
}

fn set_ambient(mask: u64) -> Result<(), StartError> {
    let step = || "set the ambient capabilities".to_owned();
    sys::clear_ambient_set().step(step)?;
    numbers(mask).try_for_each(sys::raise_ambient).step(step)
}

fn numbers(mask: u64) -> impl Iterator<Item = u32> {
    (0..MOST_CAPABILITIES).filter(move |number| mask & 1 << number != 0)
}

/// Groups before the user: another user may not set them.
fn become_user(ids: &Ids) -> Result<(), StartError> {
    umask(Mode::from_bits_truncate(ids.umask));
    set_groups(&ids.groups)?;
    let gid = Gid::from_raw(ids.gid);
    setresgid(gid, gid, gid).map_err(|error| cannot_become("group", ids.gid, error))?;
    let uid = Uid::from_raw(ids.uid);
    // Without this the kernel empties the permitted set of who leaves root, and there is nothing left to keep.
    let keep = |keep| sys::prctl(libc::PR_SET_KEEPCAPS, keep).step(|| "keep capabilities".to_owned());
    keep(1)?;
    setresuid(uid, uid, uid).map_err(|error| cannot_become("user", ids.uid, error))?;
    // Only exec would end it otherwise, and an init goes on without one.
    keep(0)
}

/// A user namespace may deny setgroups(2) to all. Then there are no groups to be had, which is not told to who wants
/// none: those the runtime came with stay, as whoever made the namespace has them anyway.
fn set_groups(groups: &[u32]) -> Result<(), StartError> {
    let gids: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
    match setgroups(&gids) {
        Ok(()) => Ok(()),
        Err(Errno::EPERM) if gids.is_empty() && nothing_to_drop()? => Ok(()),
        Err(error @ (Errno::EPERM | Errno::EINVAL)) => Err(StartError::impossible(
            format!("setting the supplementary groups {groups:?}"),
            format!(
                "the kernel says {:?}: a user namespace must have each of them in linux.gidMappings, and must not deny \
                 setgroups, as one made by an unprivileged user does",
                error.desc()
            ),
        )),
        Err(error) => Err(error).step(|| "set the supplementary groups".to_owned()),
    }
}

/// With CAP_SETGID it is the namespace that denies: whoever is without must really have no groups.
fn nothing_to_drop() -> Result<bool, StartError> {
    let step = || "look at the supplementary groups".to_owned();
    let may_set = sys::capabilities().step(step)?.effective & 1 << number(Capability::Setgid) != 0;
    Ok(may_set || getgroups().step(step)?.is_empty())
}

fn cannot_become(kind: &str, id: u32, error: Errno) -> StartError {
    let what = format!("becoming {kind} {id}");
    match error {
        Errno::EINVAL => {
            let mappings = if kind == "user" { "uidMappings" } else { "gidMappings" };
            StartError::impossible(
                what,
                format!("the container's user namespace has no such {kind}: see linux.{mappings}"),
            )
        }
        error => StartError::Step { step: what, error: std::io::Error::from(error).to_string() },
    }
}

#[cfg(test)]
mod tests;
