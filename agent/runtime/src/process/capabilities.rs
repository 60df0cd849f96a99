//! Capabilities as numbers and sets: which of those asked for a process can be given. Pure; capabilities(7).
//!
//! A capability that the kernel does not know, or that the runtime does not have itself, is left out and told of: the
//! specification wants a warning and no failure. Names that no kernel has are refused when the configuration is read.

use std::{collections::HashSet, fmt};

use oci_spec::runtime::{Capability, LinuxCapabilities};

/// The five sets of a process; bit N is capability number N.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sets {
    pub bounding: u64,
    pub permitted: u64,
    pub effective: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Sets {
    /// No capabilities in the configuration are none for the process.
    pub fn wanted(capabilities: Option<&LinuxCapabilities>) -> Self {
        let mask = |choose| names(capabilities, choose).fold(0, |mask, name| mask | 1 << number(name));
        Self {
            bounding: mask(|sets| sets.bounding()),
            permitted: mask(|sets| sets.permitted()),
            effective: mask(|sets| sets.effective()),
            inheritable: mask(|sets| sets.inheritable()),
            ambient: mask(|sets| sets.ambient()),
        }
    }

    /// The most of `self` that the kernel lets a process with the sets `held` give itself.
    pub fn granted_to(self, held: Self) -> Self {
        let bounding = self.bounding & held.bounding;
        let permitted = self.permitted & held.permitted;
        let inheritable = self.inheritable & (held.inheritable | held.permitted & bounding);
        Self {
            bounding,
            permitted,
            effective: self.effective & permitted,
            inheritable,
            ambient: self.ambient & permitted & inheritable,
        }
    }
}

/// Capabilities that were asked for in one set and cannot be given: for the log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    set: &'static str,
    why: &'static str,
    capabilities: Vec<String>,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { set, why, capabilities } = self;
        write!(f, "left out of the {set} capabilities: {} ({why})", capabilities.join(", "))
    }
}

/// What of the sets asked for is not in those granted.
pub fn left_out(wanted: Option<&LinuxCapabilities>, granted: Sets) -> Vec<LeftOut> {
    const NOT_OURS: &str = "the kernel does not know them, or the runtime does not have them itself";
    let left_out = |set, choose, granted: u64, why| {
        let missing = names(wanted, choose).filter(|name| granted & 1 << number(*name) == 0);
        let mut capabilities: Vec<_> = missing.map(|name| format!("CAP_{name}")).collect();
        capabilities.sort_unstable();
        LeftOut { set, why, capabilities }
    };
    [
        left_out("bounding", |sets| sets.bounding(), granted.bounding, NOT_OURS),
        left_out("permitted", |sets| sets.permitted(), granted.permitted, NOT_OURS),
        left_out("effective", |sets| sets.effective(), granted.effective, "not in the permitted set"),
        left_out("inheritable", |sets| sets.inheritable(), granted.inheritable, "not in the bounding set"),
        left_out("ambient", |sets| sets.ambient(), granted.ambient, "not in both the permitted and inheritable sets"),
    ]
    .into_iter()
    .filter(|left_out| !left_out.capabilities.is_empty())
    .collect()
}

type Choose = fn(&LinuxCapabilities) -> &Option<HashSet<Capability>>;

fn names(capabilities: Option<&LinuxCapabilities>, choose: Choose) -> impl Iterator<Item = Capability> {
    capabilities.and_then(|capabilities| choose(capabilities).as_ref()).into_iter().flatten().copied()
}

/// Every one that is known, in the order of their numbers.
pub const ALL: [Capability; 41] = [
    Capability::Chown,
    Capability::DacOverride,
    Capability::DacReadSearch,
    Capability::Fowner,
    Capability::Fsetid,
    Capability::Kill,
    Capability::Setgid,
    Capability::Setuid,
    Capability::Setpcap,
    Capability::LinuxImmutable,
    Capability::NetBindService,
    Capability::NetBroadcast,
    Capability::NetAdmin,
    Capability::NetRaw,
    Capability::IpcLock,
    Capability::IpcOwner,
    Capability::SysModule,
    Capability::SysRawio,
    Capability::SysChroot,
    Capability::SysPtrace,
    Capability::SysPacct,
    Capability::SysAdmin,
    Capability::SysBoot,
    Capability::SysNice,
    Capability::SysResource,
    Capability::SysTime,
    Capability::SysTtyConfig,
    Capability::Mknod,
    Capability::Lease,
    Capability::AuditWrite,
    Capability::AuditControl,
    Capability::Setfcap,
    Capability::MacOverride,
    Capability::MacAdmin,
    Capability::Syslog,
    Capability::WakeAlarm,
    Capability::BlockSuspend,
    Capability::AuditRead,
    Capability::Perfmon,
    Capability::Bpf,
    Capability::CheckpointRestore,
];

/// As in the kernel's `linux/capability.h`.
pub fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use oci_spec::runtime::LinuxCapabilitiesBuilder;

    use super::*;

    const CHOWN: u64 = 1 << 0;
    const KILL: u64 = 1 << 5;
    const SETPCAP: u64 = 1 << 8;

    fn all(mask: u64) -> Sets {
        Sets { bounding: mask, permitted: mask, effective: mask, inheritable: mask, ambient: mask }
    }

    #[test]
    fn numbers_are_those_that_another_list_has_too() {
        for capability in caps::all() {
            let name = capability.to_string();
            let ours: Capability = serde_json::from_value(name.clone().into()).unwrap();
            assert_eq!(number(ours), u32::from(capability.index()), "{name}");
            assert_eq!(ALL[usize::from(capability.index())], ours);
        }
    }

    #[test]
    fn what_the_runtime_has_is_granted_as_asked() {
        let wanted = Sets { bounding: CHOWN | KILL, permitted: KILL, effective: KILL, ..Sets::default() };
        let held = Sets { inheritable: 0, ambient: 0, ..all(CHOWN | KILL | SETPCAP) };
        assert_eq!(wanted.granted_to(held), wanted);
        assert_eq!(all(KILL).granted_to(held), all(KILL));
    }

    #[test]
    fn no_set_reaches_beyond_those_that_bound_it() {
        let held = Sets { permitted: CHOWN, inheritable: SETPCAP, ..all(CHOWN | KILL) };
        let granted = all(CHOWN | KILL | SETPCAP).granted_to(held);
        let expected = Sets { bounding: CHOWN | KILL, inheritable: CHOWN | SETPCAP, ..all(CHOWN) };
        assert_eq!(granted, expected);
        // Ambient needs both, effective needs permitted, inheritable needs bounding.
        let lone = Sets { ambient: CHOWN, effective: CHOWN, inheritable: CHOWN, ..Sets::default() };
        assert_eq!(lone.granted_to(Sets { inheritable: 0, ..held }), Sets::default());
    }

    #[test]
    fn what_is_left_out_is_told_by_name_and_set() {
        let two: HashSet<_> = [Capability::Kill, Capability::Chown].into();
        let none = HashSet::new();
        let wanted = LinuxCapabilitiesBuilder::default()
            .bounding(two.clone())
            .permitted(two)
            .effective(none.clone())
            .inheritable(none.clone())
            .ambient(none)
            .build()
            .unwrap();
        assert_eq!(left_out(Some(&wanted), all(CHOWN | KILL)), []);
        let told = left_out(Some(&wanted), Sets { bounding: CHOWN | KILL, ..Sets::default() });
        assert_eq!(told.len(), 1);
        assert!(told[0].to_string().starts_with("left out of the permitted capabilities: CAP_CHOWN, CAP_KILL ("));
        assert_eq!(left_out(None, Sets::default()), []);
    }
}
