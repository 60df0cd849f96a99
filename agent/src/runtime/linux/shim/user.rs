//! `user[:group]` by the container's own passwd and group files.
//!
//! Runs with the container's root as its root, so that links in `/etc` lead nowhere else. The files are the image's
//! and may be anything: only regular ones of a bounded size are read.

use std::{
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use nix::libc;

use crate::runtime::linux::report::{StartError, Step};

/// Bytes of a passwd or group file that are looked at.
const LARGEST_FILE: u64 = 8 << 20;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Ids {
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) groups: Vec<u32>,
    pub(super) home: String,
}

pub(super) fn look_up(user: Option<&str>) -> Result<Ids, StartError> {
    let read = |path: &str| read_regular(path).step(|| format!("read the container's {path}"));
    resolve(user.unwrap_or("0"), &read("/etc/passwd")?, &read("/etc/group")?)
}

fn read_regular(path: &str) -> io::Result<String> {
    // O_NONBLOCK: a FIFO must not hold us.
    let file = match OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY).open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(String::new()),
        Err(error) => return Err(error),
    };
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LARGEST_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

struct Account<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: &'a str,
}

/// Docker's rules: a number needs no entry; without a group the user's own and all it is a member of.
fn resolve(user: &str, passwd: &str, group: &str) -> Result<Ids, StartError> {
    let impossible = |reason: String| StartError::impossible(format!("running as user {user:?}"), reason);
    let (name, group_name) = match user.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (user, None),
    };
    let number = number(name);
    let account = passwd.lines().filter_map(account).find(|account| match number {
        Some(uid) => account.uid == uid,
        None => account.name == name,
    });
    let uid = account
        .as_ref()
        .map(|account| account.uid)
        .or(number)
        .ok_or_else(|| impossible(format!("the container's /etc/passwd has no user {name:?}")))?;
    let gid = match group_name {
        Some(name) => group_id(name, group)
            .ok_or_else(|| impossible(format!("the container's /etc/group has no group {name:?}")))?,
        None => account.as_ref().map_or(0, |account| account.gid),
    };
    let groups = match (&account, group_name) {
        (Some(account), None) => memberships(account.name, group),
        _ => Vec::new(),
    };
    let home = account.map_or("/", |account| account.home).to_owned();
    Ok(Ids { uid, gid, groups, home })
}

/// An id; the highest one means "unchanged" to the kernel and is none.
fn number(text: &str) -> Option<u32> {
    text.parse().ok().filter(|id| *id != u32::MAX)
}

/// `name:password:uid:gid:gecos:home:shell`, passwd(5).
fn account(line: &str) -> Option<Account<'_>> {
    let mut fields = line.split(':');
    let name = fields.next().filter(|name| !name.is_empty())?;
    let uid = number(fields.nth(1)?)?;
    let gid = number(fields.next()?)?;
    let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
    Some(Account { name, uid, gid, home })
}

/// `name:password:gid:member,member`, group(5).
fn groups(text: &str) -> impl Iterator<Item = (&str, u32, &str)> {
    text.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next().filter(|name| !name.is_empty())?;
        let gid = number(fields.nth(1)?)?;
        Some((name, gid, fields.next().unwrap_or_default()))
    })
}

fn group_id(name: &str, text: &str) -> Option<u32> {
    number(name).or_else(|| groups(text).find(|(found, ..)| *found == name).map(|(_, gid, _)| gid))
}

fn memberships(user: &str, text: &str) -> Vec<u32> {
    groups(text)
        .filter(|(.., members)| members.split(',').any(|member| member == user))
        .map(|(_, gid, _)| gid)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34::/var/www:\nmax:x:4294967295:0::/:\n";
    const GROUP: &str = "root:x:0:\nwww:x:34:\nadm:x:4:syslog,www\nlog:x:5:www\n";

    fn ids(user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        resolve(user, PASSWD, GROUP)
            .map(|ids| (ids.uid, ids.gid, ids.groups, ids.home))
            .map_err(|error| error.to_string())
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids("0"), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(ids("www"), Ok((33, 34, vec![4, 5], "/var/www".into())));
        assert_eq!(ids("33"), Ok((33, 34, vec![4, 5], "/var/www".into())));
        assert_eq!(ids("www:adm"), Ok((33, 4, vec![], "/var/www".into())));
        assert_eq!(ids("www:77"), Ok((33, 77, vec![], "/var/www".into())));
        assert_eq!(ids("1234"), Ok((1234, 0, vec![], "/".into())));
        assert!(ids("nobody").is_err_and(|error| error.contains("has no user \"nobody\"")));
        assert!(ids("www:none").is_err_and(|error| error.contains("has no group \"none\"")));
        assert!(ids("4294967295").is_err());
        assert!(ids("max").is_err());
    }
}
