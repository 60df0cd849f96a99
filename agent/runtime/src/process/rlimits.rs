//! Resource limits: getrlimit(2).
//!
//! To be set late, for they hold for the runtime too from then on, but before [`super::privileges::take_on`]: raising
//! one above the runtime's own needs CAP_SYS_RESOURCE. The kernel wants it in the first user namespace, so that a
//! container with a user namespace of its own must have the limits set before it enters that.

use std::collections::HashSet;

use nix::{
    errno::Errno,
    sys::resource::{Resource, setrlimit},
};
use oci_spec::runtime::{PosixRlimit, PosixRlimitType};

use crate::error::{StartError, Step};

/// Whether the limits can be meant as they are. Pure.
pub fn check(limits: &[PosixRlimit]) -> Result<(), StartError> {
    let mut seen = HashSet::new();
    for limit in limits {
        let impossible = |reason: &str| Err(StartError::impossible(describe(limit), reason));
        if !seen.insert(limit.typ().to_string()) {
            return impossible("process.rlimits has this limit twice");
        }
        if limit.soft() > limit.hard() {
            return impossible("the soft limit is above the hard one");
        }
    }
    Ok(())
}

pub fn set(limits: &[PosixRlimit]) -> Result<(), StartError> {
    check(limits)?;
    for limit in limits {
        match setrlimit(resource(limit.typ()), limit.soft(), limit.hard()) {
            Ok(()) => {}
            Err(Errno::EPERM) => {
                let reason = "the hard limit is above the runtime's own, which may not raise it (CAP_SYS_RESOURCE), or \
                              above the kernel's (for RLIMIT_NOFILE: sysctl fs.nr_open)";
                return Err(StartError::impossible(describe(limit), reason));
            }
            Err(error) => return Err(error).step(|| describe(limit)),
        }
    }
    Ok(())
}

fn describe(limit: &PosixRlimit) -> String {
    let words = |value: u64| if value == u64::MAX { "unlimited".to_owned() } else { value.to_string() };
    format!("setting {} to {} (soft) and {} (hard)", limit.typ(), words(limit.soft()), words(limit.hard()))
}

fn resource(kind: PosixRlimitType) -> Resource {
    match kind {
        PosixRlimitType::RlimitCpu => Resource::RLIMIT_CPU,
        PosixRlimitType::RlimitFsize => Resource::RLIMIT_FSIZE,
        PosixRlimitType::RlimitData => Resource::RLIMIT_DATA,
        PosixRlimitType::RlimitStack => Resource::RLIMIT_STACK,
        PosixRlimitType::RlimitCore => Resource::RLIMIT_CORE,
        PosixRlimitType::RlimitRss => Resource::RLIMIT_RSS,
        PosixRlimitType::RlimitNproc => Resource::RLIMIT_NPROC,
        PosixRlimitType::RlimitNofile => Resource::RLIMIT_NOFILE,
        PosixRlimitType::RlimitMemlock => Resource::RLIMIT_MEMLOCK,
        PosixRlimitType::RlimitAs => Resource::RLIMIT_AS,
        PosixRlimitType::RlimitLocks => Resource::RLIMIT_LOCKS,
        PosixRlimitType::RlimitSigpending => Resource::RLIMIT_SIGPENDING,
        PosixRlimitType::RlimitMsgqueue => Resource::RLIMIT_MSGQUEUE,
        PosixRlimitType::RlimitNice => Resource::RLIMIT_NICE,
        PosixRlimitType::RlimitRtprio => Resource::RLIMIT_RTPRIO,
        PosixRlimitType::RlimitRttime => Resource::RLIMIT_RTTIME,
    }
}

#[cfg(test)]
mod tests {
    use nix::sys::resource::getrlimit;

    use super::*;
    use crate::process::in_child::{failure, in_child};

    fn limits(limits: serde_json::Value) -> Vec<PosixRlimit> {
        serde_json::from_value(limits).unwrap()
    }

    #[test]
    fn every_limit_of_the_specification_is_set() {
        let names = [
            "CPU",
            "FSIZE",
            "DATA",
            "STACK",
            "CORE",
            "RSS",
            "NPROC",
            "NOFILE",
            "MEMLOCK",
            "AS",
            "LOCKS",
            "SIGPENDING",
            "MSGQUEUE",
            "NICE",
            "RTPRIO",
            "RTTIME",
        ];
        let seen = in_child(|| {
            // A little less than the present ones: low limits would end this test.
            let mut text = String::new();
            for name in names {
                let typ = format!("RLIMIT_{name}");
                let resource = resource(typ.parse().unwrap());
                let (_, hard) = getrlimit(resource).unwrap();
                let soft = hard - hard / 10;
                set(&limits(serde_json::json!([{"type": typ, "soft": soft, "hard": hard}]))).unwrap();
                assert_eq!(getrlimit(resource), Ok((soft, hard)), "{name}");
                text += &format!("{name} ");
            }
            text
        });
        assert_eq!(seen.trim_end(), names.join(" "));
    }

    #[test]
    fn a_limit_that_cannot_be_meant_is_refused() {
        let twice = limits(serde_json::json!([
            {"type": "RLIMIT_CORE", "soft": 0, "hard": 0},
            {"type": "RLIMIT_CORE", "soft": 1, "hard": 1},
        ]));
        assert!(
            failure(check(&twice)).contains("RLIMIT_CORE to 1 (soft) and 1 (hard): process.rlimits has this limit")
        );
        let crossed = limits(serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 2, "hard": 1}]));
        assert!(failure(check(&crossed)).contains("above the hard one"));
    }

    #[test]
    fn a_limit_above_the_kernels_own_is_refused_with_words() {
        let limit = limits(serde_json::json!([{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": u64::MAX}]));
        assert!(in_child(|| failure(set(&limit))).contains("fs.nr_open"));
    }
}
