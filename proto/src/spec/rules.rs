//! What single values of a spec may be, the same for `rctl`, which tells it with the value's place, and for the
//! controller, whom others may ask too.

use std::{fmt, path::Path};

use super::{IpcMode, NetworkMode, Ulimit};

/// Of linux/capability.h, without `CAP_`.
pub const CAPABILITIES: [&str; 41] = [
    "AUDIT_CONTROL",
    "AUDIT_READ",
    "AUDIT_WRITE",
    "BLOCK_SUSPEND",
    "BPF",
    "CHECKPOINT_RESTORE",
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "IPC_LOCK",
    "IPC_OWNER",
    "KILL",
    "LEASE",
    "LINUX_IMMUTABLE",
    "MAC_ADMIN",
    "MAC_OVERRIDE",
    "MKNOD",
    "NET_ADMIN",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_RAW",
    "PERFMON",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYSLOG",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_CHROOT",
    "SYS_MODULE",
    "SYS_NICE",
    "SYS_PACCT",
    "SYS_PTRACE",
    "SYS_RAWIO",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "WAKE_ALARM",
];
pub const ALL_CAPABILITIES: &str = "ALL";

/// Of setrlimit(2), in lower case without `RLIMIT_`.
pub const ULIMITS: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// Those of `/proc/sys/kernel` that each IPC namespace has for itself: ipc_namespaces(7).
const IPC_SYSCTLS: [&str; 8] = ["msgmax", "msgmnb", "msgmni", "sem", "shm_rmid_forced", "shmall", "shmmax", "shmmni"];
/// A name or value of a sysctl, a device rule, a set of processors and the like.
const MAX_WORD: usize = 512;
/// More than any machine has.
const MAX_PROCESSOR: u32 = 8191;
pub const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;
pub const OOM_SCORES: std::ops::RangeInclusive<i32> = -1000..=1000;
/// Microseconds; the kernel takes no others.
pub const CPU_PERIODS: std::ops::RangeInclusive<u64> = 1_000..=1_000_000;
pub const MIN_CPU_QUOTA: u64 = 1_000;
/// The kernel clamps others.
pub const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;
/// Smaller ones hold not even one page.
pub const MIN_SHM: u64 = 4096;
/// Bytes: a file system needs some for itself, and the bigger it is the longer it takes to make.
const DISKS: std::ops::RangeInclusive<u64> = 8 << 20..=1 << 40;

/// What is wrong with a value, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{what}: {help}")]
pub struct Unfit {
    pub what: String,
    pub help: String,
}

impl Unfit {
    pub fn new(what: impl fmt::Display, help: impl fmt::Display) -> Self {
        Self { what: what.to_string(), help: help.to_string() }
    }
}

/// The beginning of what somebody sent, fit for a message.
fn shown(text: &str) -> String {
    format!("{:?}", text.chars().take(60).collect::<String>())
}

/// As the spec holds it: in capitals, without `CAP_`.
pub fn capability(text: &str) -> Result<String, Unfit> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
    if name == ALL_CAPABILITIES || CAPABILITIES.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(Unfit::new(
        format_args!("{} is not a capability", shown(text)),
        "write a name of capabilities(7), like NET_ADMIN, or ALL",
    ))
}

/// Bytes of disk that a container may fill.
pub fn disk(bytes: u64) -> Result<(), Unfit> {
    if DISKS.contains(&bytes) {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("a container cannot be limited to {bytes} bytes of disk"),
        "write a size from 8m to 1t",
    ))
}

/// A group by its name or number.
pub fn group(text: &str) -> Result<(), Unfit> {
    let bad = |c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ':' | ',');
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    // The last id means "unchanged" to the kernel.
    let out_of_range = is_number && text.parse::<u32>().map_or(true, |id| id == u32::MAX);
    if text.is_empty() || text.len() > MAX_WORD || text.contains(bad) || out_of_range {
        return Err(Unfit::new(
            format_args!("{} is not a group", shown(text)),
            "write a name of the container's /etc/group, or a number below 4294967295",
        ));
    }
    Ok(())
}

pub fn ulimit(name: &str, limit: Ulimit) -> Result<(), Unfit> {
    if !ULIMITS.contains(&name) {
        let help = format!("write one of {}", ULIMITS.join(", "));
        return Err(Unfit::new(format_args!("{} is not a ulimit", shown(name)), help));
    }
    let most = |limit: Option<u64>| limit.unwrap_or(u64::MAX);
    if most(limit.soft) > most(limit.hard) {
        let what = format!("the ulimit {name} has a soft limit above its hard one");
        return Err(Unfit::new(what, "write a soft limit of at most the hard one"));
    }
    Ok(())
}

/// Only what a namespace of the container's own has for itself.
pub fn sysctl(name: &str, value: &str, network: NetworkMode, ipc: &IpcMode) -> Result<(), Unfit> {
    let shown_name = shown(name);
    let refused = |why: &str, help: &str| Err(Unfit::new(format_args!("the sysctl {shown_name} {why}"), help));
    // As sysctl.d(5): the first separator is the one that separates.
    let separator = name.chars().find(|c| matches!(c, '.' | '/')).unwrap_or('.');
    let parts: Vec<&str> = name.split(separator).collect();
    let is_name = |part: &&str| {
        !matches!(*part, "" | "." | "..") && !part.contains(|c: char| c.is_whitespace() || c.is_control())
    };
    if name.len() > MAX_WORD || parts.len() < 2 || !parts.iter().all(is_name) {
        return refused("has no valid name", "write a name below /proc/sys with dots, like net.core.somaxconn");
    }
    if value.len() > MAX_WORD || value.contains(|c: char| c.is_control() && c != '\t') {
        return refused("has a value that no sysctl takes", "write one line of at most 512 characters");
    }
    match parts[..] {
        ["net", _, ..] if network == NetworkMode::Host => refused(
            "belongs to the network, which with `network_mode: host` is the host's",
            "remove it and set it on the host, or give the service a network of its own",
        ),
        ["net", _, ..] => Ok(()),
        ["kernel", key] if IPC_SYSCTLS.contains(&key) => ipc_sysctl(&shown_name, ipc),
        ["fs", "mqueue", _] => ipc_sysctl(&shown_name, ipc),
        ["kernel", "domainname"] => Ok(()),
        ["kernel", "hostname"] => refused("is the container's name", "set `hostname`"),
        _ => refused(
            "is the host's: no namespace of a container has it for itself",
            "remove it and set it on the host; net.*, kernel.shm*, kernel.msg*, kernel.sem and fs.mqueue.* can be set",
        ),
    }
}

fn ipc_sysctl(shown_name: &str, ipc: &IpcMode) -> Result<(), Unfit> {
    match ipc {
        IpcMode::Host => Err(Unfit::new(
            format_args!("the sysctl {shown_name} belongs to the IPC namespace, which with `ipc: host` is the host's"),
            "remove it and set it on the host, or remove `ipc: host`",
        )),
        IpcMode::Service(service) => Err(Unfit::new(
            format_args!(
                "the sysctl {shown_name} belongs to the IPC namespace, which with `ipc: service:{service}` is that service's"
            ),
            format_args!("move it to the service {service}"),
        )),
        IpcMode::Private | IpcMode::None => Ok(()),
    }
}

/// The part after the last colon of `devices`.
pub fn device_access(text: &str) -> Result<(), Unfit> {
    let once = ['r', 'w', 'm'].iter().all(|letter| text.matches(*letter).count() <= 1);
    if (1..=3).contains(&text.len()) && text.chars().all(|c| matches!(c, 'r' | 'w' | 'm')) && once {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not an access to a device", shown(text)),
        "write some of r (read), w (write) and m (make nodes), like rwm",
    ))
}

/// `c 189:* rmw`.
pub fn device_rule(text: &str) -> Result<(), Unfit> {
    let number = |text: &str| text == "*" || text.parse::<u32>().is_ok();
    let fits = match text.split(' ').collect::<Vec<_>>()[..] {
        [kind, numbers, access] => {
            matches!(kind, "a" | "b" | "c")
                && numbers.split_once(':').is_some_and(|(major, minor)| number(major) && number(minor))
                && device_access(access).is_ok()
        }
        _ => false,
    };
    if fits {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not a rule for devices", shown(text)),
        "write TYPE MAJOR:MINOR ACCESS, like \"c 189:* rwm\"",
    ))
}

/// A list of processors as cpuset(7) has it.
pub fn cpuset(text: &str) -> Result<(), Unfit> {
    let number = |text: &str| text.parse::<u32>().ok().filter(|number| *number <= MAX_PROCESSOR);
    let range = |part: &str| match part.split_once('-') {
        Some((first, last)) => number(first).zip(number(last)).is_some_and(|(first, last)| first <= last),
        None => number(part).is_some(),
    };
    if text.len() <= MAX_WORD && text.split(',').all(range) {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not a set of processors", shown(text)),
        "write numbers and ranges from 0, like 0-2,4",
    ))
}

/// A path of the node, as a spec may name one.
pub fn host_path(path: &Path) -> Result<(), Unfit> {
    let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
    let text = path.to_string_lossy();
    if path.is_absolute() && !climbs && path.file_name().is_some() && text.len() <= 4096 && !text.contains('\0') {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not the path of a device", shown(&text)),
        "write an absolute path, like /dev/sda",
    ))
}

pub fn apparmor(profile: &str) -> Result<(), Unfit> {
    if !profile.is_empty()
        && profile.len() <= MAX_WORD
        && !profile.contains(|c: char| c.is_whitespace() || c.is_control())
    {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not the name of an AppArmor profile", shown(profile)),
        "write the name of one that the nodes have loaded, or unconfined",
    ))
}

/// The name that an agent knows an OCI runtime by.
pub fn runtime(name: &str) -> Result<(), Unfit> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if (1..=63).contains(&name.len()) && name.chars().all(fits) && name.starts_with(|c: char| c.is_ascii_alphanumeric())
    {
        return Ok(());
    }
    Err(Unfit::new(
        format_args!("{} is not the name of a runtime", shown(name)),
        "write the name that the nodes' agents were given by --runtime NAME=PROGRAM",
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all<T>(values: &[T], check: impl Fn(&T) -> bool) -> bool {
        values.iter().all(check)
    }

    #[test]
    fn capabilities_lose_their_prefix() {
        assert_eq!(capability("cap_net_admin").as_deref(), Ok("NET_ADMIN"));
        assert_eq!(capability("all").as_deref(), Ok("ALL"));
        assert!(all(&["", "CAP_", "NET", "CAP_CAP_CHOWN"], |text| capability(text).is_err()));
    }

    #[test]
    fn sysctls_are_the_containers_own() {
        let check = |name: &str, network, ipc: IpcMode| sysctl(name, "1", network, &ipc).map_err(|unfit| unfit.what);
        let bridge = |name: &str| check(name, NetworkMode::Bridge, IpcMode::Private);
        let own = [
            "net.core.somaxconn",
            "net/ipv4/conf/eth0.1/forwarding",
            "kernel.shmmax",
            "fs.mqueue.msg_max",
            "kernel.sem",
        ];
        assert!(all(&own, |name| bridge(name).is_ok()));
        let hosts = ["kernel.panic", "vm.swappiness", "fs.file-max", "kernel.shmmax.x", "user.max_user_namespaces"];
        assert!(all(&hosts, |name| bridge(name).is_err_and(|what| what.contains("is the host's"))));
        let names =
            ["", "net", "net..x", "net/../kernel/panic", "net.a b", "x".repeat(600).as_str()].map(str::to_owned);
        assert!(all(&names, |name| bridge(name).is_err_and(|what| what.contains("no valid name"))));
        assert!(check("net.core.somaxconn", NetworkMode::Host, IpcMode::Private).unwrap_err().contains("network_mode"));
        assert!(check("kernel.sem", NetworkMode::Bridge, IpcMode::Host).unwrap_err().contains("ipc: host"));
        assert!(sysctl("kernel.sem", "1\n2", NetworkMode::None, &IpcMode::Private).is_err());
    }

    #[test]
    fn small_words_have_their_forms() {
        assert!(all(&["r", "rw", "rwm", "mw"], |text| device_access(text).is_ok()));
        assert!(all(&["", "x", "rr", "rwmr", "r w"], |text| device_access(text).is_err()));
        assert!(all(&["c 1:3 r", "a *:* rwm", "b 8:* m"], |text| device_rule(text).is_ok()));
        assert!(
            all(&["", "c", "d 1:3 r", "c 1 r", "c 1:x r", "c 1:3 q", "c  1:3 r"], |text| device_rule(text).is_err())
        );
        assert!(all(&["0", "0-3", "0-1,3,5-6"], |text| cpuset(text).is_ok()));
        assert!(all(&["", "a", "3-1", "-1", "1-", "0,,1", "0;1", "99999"], |text| cpuset(text).is_err()));
        assert!(all(&["0", "adm", "docker-users"], |text| group(text).is_ok()));
        assert!(all(&["", "a:b", "a,b", "4294967295", "99999999999", "a b"], |text| group(text).is_err()));
        assert!(all(&["runsc", "io.x_1-2"], |text| runtime(text).is_ok()));
        assert!(all(&["", "-x", "a/b", "../x", "a b"], |text| runtime(text).is_err()));
        assert!(all(&["/dev/sda", "/dev/snd/"], |path| host_path(Path::new(path)).is_ok()));
        assert!(all(&["/", "dev/sda", "/dev/../x", ""], |path| host_path(Path::new(path)).is_err()));
    }

    #[test]
    fn a_soft_limit_is_at_most_the_hard_one() {
        let limit = |soft, hard| ulimit("nofile", Ulimit { soft, hard });
        assert!(limit(Some(1), Some(2)).is_ok() && limit(Some(1), None).is_ok() && limit(None, None).is_ok());
        assert!(limit(Some(2), Some(1)).is_err() && limit(None, Some(1)).is_err());
        assert!(ulimit("files", Ulimit { soft: None, hard: None }).is_err());
    }
}
