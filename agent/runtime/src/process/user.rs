//! Who a process runs as: by numbers, or as `user[:[group][,group...]]` by the container's own passwd and group files.
//!
//! Names are not in the specification for Linux; an engine that sets `process.user.username` leaves the looking up to
//! us. It needs the container's root as the process's root, so that links in `/etc` lead nowhere else. The files are
//! the image's and may be anything: only regular ones of a bounded size are read.

use std::{
    borrow::Cow,
    fs::OpenOptions,
    io::{self, Read},
    os::unix::fs::OpenOptionsExt,
};

use nix::libc;
use oci_spec::runtime::User;

use crate::error::{StartError, Step};

/// Bytes of a passwd or group file that are looked at.
const LARGEST_FILE: u64 = 8 << 20;
const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";

/// The usual one, whatever the runtime was started with.
const UMASK: u32 = 0o022;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ids {
    pub uid: u32,
    pub gid: u32,
    pub groups: Vec<u32>,
    pub umask: u32,
    home: Option<String>,
}

impl Ids {
    /// Reads files only where there is a name to look up.
    pub fn of(user: &User) -> Result<Self, StartError> {
        let mut ids = match user.username().as_deref().filter(|name| !name.is_empty()) {
            Some(name) => look_up(name)?,
            None => Self { uid: user.uid(), gid: user.gid(), groups: Vec::new(), umask: UMASK, home: None },
        };
        ids.groups.extend(user.additional_gids().iter().flatten());
        ids.umask = user.umask().unwrap_or(UMASK);
        ids.checked()
    }

    /// For `HOME`, where the environment has none. That is a courtesy: a passwd file that cannot be read is as good as
    /// one without the user.
    pub fn home(&self) -> Cow<'_, str> {
        match &self.home {
            Some(home) => Cow::Borrowed(home),
            None => Cow::Owned(home_of(self.uid, &read_regular(PASSWD).unwrap_or_default())),
        }
    }

    /// The highest id is "leave it as it is" to the kernel: asked for by mistake, it would leave the runtime's own.
    fn checked(self) -> Result<Self, StartError> {
        let mut ids = [self.uid, self.gid].into_iter().chain(self.groups.iter().copied());
        if ids.any(|id| id == u32::MAX) {
            return Err(StartError::impossible(
                format!("running as user or group {}", u32::MAX),
                "it is not a valid id",
            ));
        }
        if self.umask > 0o777 {
            let reason = "it has more than the nine permission bits (JSON knows decimal numbers only: 0022 is 18)";
            return Err(StartError::impossible(format!("setting the umask {}", self.umask), reason));
        }
        Ok(self)
    }
}

fn look_up(user: &str) -> Result<Ids, StartError> {
    let read = |path: &str| read_regular(path).step(|| format!("read the container's {path}"));
    resolve(user, &read(PASSWD)?, &read(GROUP)?)
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
    let (name, all) = user.split_once(':').unwrap_or((user, ""));
    // The first is the user's own, those after it are added.
    let mut names = all.split(',');
    let group_name = names.next().filter(|group| !group.is_empty());
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
    let mut groups = match (&account, group_name) {
        (Some(account), None) => memberships(account.name, group),
        _ => Vec::new(),
    };
    for name in names {
        let missing = || impossible(format!("the container's /etc/group has no group {name:?}"));
        let added = group_id(name, group).ok_or_else(missing)?;
        if !groups.contains(&added) {
            groups.push(added);
        }
    }
    let home = Some(account.map_or("/", |account| account.home).to_owned());
    Ok(Ids { uid, gid, groups, umask: UMASK, home })
}

fn home_of(uid: u32, passwd: &str) -> String {
    let account = passwd.lines().filter_map(account).find(|account| account.uid == uid);
    account.map_or("/", |account| account.home).to_owned()
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

    const ACCOUNTS: &str = "root:x:0:0:root:/root:/bin/sh\nbroken\nwww:x:33:34::/var/www:\nmax:x:4294967295:0::/:\n";
    const GROUPS: &str = "root:x:0:\nwww:x:34:\nadm:x:4:syslog,www\nlog:x:5:www\n";

    fn ids(user: &str) -> Result<(u32, u32, Vec<u32>, String), String> {
        resolve(user, ACCOUNTS, GROUPS)
            .map(|ids| (ids.uid, ids.gid, ids.groups.clone(), ids.home().into_owned()))
            .map_err(|error| error.to_string())
    }

    fn of(user: serde_json::Value) -> Result<Ids, String> {
        Ids::of(&serde_json::from_value(user).unwrap()).map_err(|error| error.to_string())
    }

    #[test]
    fn users_are_found_as_docker_finds_them() {
        assert_eq!(ids("0"), Ok((0, 0, vec![], "/root".into())));
        assert_eq!(ids("www"), Ok((33, 34, vec![4, 5], "/var/www".into())));
        assert_eq!(ids("33"), Ok((33, 34, vec![4, 5], "/var/www".into())));
        assert_eq!(ids("www:adm"), Ok((33, 4, vec![], "/var/www".into())));
        assert_eq!(ids("www:77"), Ok((33, 77, vec![], "/var/www".into())));
        assert_eq!(ids("1234"), Ok((1234, 0, vec![], "/".into())));
        assert_eq!(ids("www:,adm,77"), Ok((33, 34, vec![4, 5, 77], "/var/www".into())));
        assert_eq!(ids("1234:adm,www"), Ok((1234, 4, vec![34], "/".into())));
        assert!(ids("www:,none").is_err_and(|error| error.contains("has no group \"none\"")));
        assert!(ids("nobody").is_err_and(|error| error.contains("has no user \"nobody\"")));
        assert!(ids("www:none").is_err_and(|error| error.contains("has no group \"none\"")));
        assert!(ids("4294967295").is_err());
        assert!(ids("max").is_err());
    }

    #[test]
    fn a_user_by_number_is_taken_as_it_is() {
        let user = of(serde_json::json!({"uid": 7, "gid": 8, "additionalGids": [9, 8], "umask": 0o077})).unwrap();
        assert_eq!((user.uid, user.gid, user.groups, user.umask), (7, 8, vec![9, 8], 0o077));
        let user = of(serde_json::json!({"uid": 7, "username": ""})).unwrap();
        assert_eq!((user.uid, user.gid, user.groups, user.umask), (7, 0, vec![], 0o022));
    }

    #[test]
    fn additional_groups_are_added_to_those_of_a_name() {
        // Every machine's files have root, which is all that is looked up here.
        let user = of(serde_json::json!({"uid": 7, "username": "root:123", "additionalGids": [9]})).unwrap();
        assert_eq!((user.uid, user.gid, user.groups), (0, 123, vec![9]));
    }

    #[test]
    fn an_id_that_means_unchanged_to_the_kernel_is_refused() {
        for user in [
            serde_json::json!({"uid": u32::MAX}),
            serde_json::json!({"gid": u32::MAX}),
            serde_json::json!({"additionalGids": [1, u32::MAX]}),
        ] {
            assert!(of(user).is_err_and(|error| error.contains("not a valid id")));
        }
        assert!(of(serde_json::json!({"umask": 1022})).is_err_and(|error| error.contains("umask 1022")));
    }

    #[test]
    fn the_home_of_a_number_is_that_of_its_account() {
        assert_eq!(home_of(33, ACCOUNTS), "/var/www");
        assert_eq!(home_of(1234, ACCOUNTS), "/");
    }
}
