//! Names and ids as types of their own.
//!
//! Every one of them ends up in file names, cgroup names or interface names, so each is checked where it enters
//! and cannot hold a slash, a dot-dot or an empty string afterwards.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A name or an id that may not be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} {value:?} is not allowed: {rule}")]
pub struct InvalidId {
    pub what: &'static str,
    pub value: String,
    pub rule: &'static str,
}

const NAME_RULE: &str = "use 1 to 63 lower-case letters, digits, '-' or '_', beginning with a letter or digit";

const CLUSTER_RULE: &str = "it is 16 letters a to z and digits 2 to 7";

fn is_name(value: &str) -> bool {
    (1..=63).contains(&value.len())
        && value.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
        && value.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_')
}

/// Base 32: 80 random bits.
fn is_cluster(value: &str) -> bool {
    value.len() == 16 && value.bytes().all(|c| matches!(c, b'a'..=b'z' | b'2'..=b'7'))
}

macro_rules! name {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        name!($(#[$doc])* $name, $what, is_name, NAME_RULE);
    };
    ($(#[$doc:meta])* $name:ident, $what:literal, $is:ident, $rule:ident) => {
        $(#[$doc])*
        #[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            pub fn new(value: impl Into<String>) -> Result<Self, InvalidId> {
                let value = value.into();
                if $is(&value) {
                    Ok(Self(value))
                } else {
                    Err(InvalidId { what: $what, value, rule: $rule })
                }
            }

            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(&self.0)
            }
        }

        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }

        impl TryFrom<String> for $name {
            type Error = InvalidId;
            fn try_from(value: String) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl std::str::FromStr for $name {
            type Err = InvalidId;
            fn from_str(value: &str) -> Result<Self, InvalidId> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(value: $name) -> String {
                value.0
            }
        }
    };
}

name!(
    /// A host: stable over restarts of its agent, chosen by the agent (by default the host's name).
    NodeId, "node name"
);
impl NodeId {
    /// What a host is called by default: the first label of its name in lower case, with what a node's name may not
    /// hold made a hyphen.
    pub fn of_host(hostname: &str) -> Self {
        let first = hostname.split('.').next().unwrap_or_default().to_ascii_lowercase();
        let allowed = |c: char| if c.is_ascii_alphanumeric() || c == '-' || c == '_' { c } else { '-' };
        let name: String = first.chars().map(allowed).take(63).collect();
        let name = name.trim_start_matches(['-', '_']);
        Self(if name.is_empty() { "node".to_owned() } else { name.to_owned() })
    }
}

name!(
    /// A controller, as people call it: the host's name by default. Its id in raft is a [`PeerId`].
    ControllerName, "controller name"
);
name!(
    /// A Compose project.
    StackName, "stack name"
);
name!(
    /// A service within its stack.
    ServiceName, "service name"
);
name!(
    /// One attempt to run a slot. Minted at random by the leader and never used twice.
    TaskId, "task id"
);

name!(
    /// A cluster, in every certificate of its members: random, made when it is founded.
    ClusterId, "cluster id", is_cluster, CLUSTER_RULE
);

/// A service of the cluster: `stack/service`.
///
/// Removing a service and applying it again brings back the same id; what tells the runs apart is the task id.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ServiceId {
    pub stack: StackName,
    pub name: ServiceName,
}

impl ServiceId {
    pub fn new(stack: StackName, name: ServiceName) -> Self {
        Self { stack, name }
    }
}

impl fmt::Display for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{}/{}", self.stack, self.name))
    }
}

impl fmt::Debug for ServiceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for ServiceId {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let (stack, name) = value.split_once('/').ok_or_else(|| InvalidId {
            what: "service id",
            value: value.to_owned(),
            rule: "write it as STACK/SERVICE",
        })?;
        Ok(Self { stack: stack.parse()?, name: name.parse()? })
    }
}

impl TryFrom<String> for ServiceId {
    type Error = InvalidId;
    fn try_from(value: String) -> Result<Self, InvalidId> {
        value.parse()
    }
}

impl From<ServiceId> for String {
    fn from(value: ServiceId) -> String {
        value.to_string()
    }
}

/// The numbered position of one replica, or, in global mode, a service's place on one node.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Slot {
    /// Counted from 1.
    Replica(u32),
    Node(NodeId),
}

impl fmt::Display for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Slot::Replica(number) => write!(f, "{number}"),
            Slot::Node(node) => write!(f, "{node}"),
        }
    }
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// The position of a command in the replicated log; also the version of what that command wrote.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Version(pub u64);

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A controller as raft knows it: random, never 0, and never used again once its holder has left.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PeerId(pub u64);

impl fmt::Display for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:016x}", self.0))
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl std::str::FromStr for PeerId {
    type Err = InvalidId;
    fn from_str(value: &str) -> Result<Self, InvalidId> {
        let digits = value.len() == 16 && value.bytes().all(|digit| digit.is_ascii_hexdigit());
        match u64::from_str_radix(value, 16) {
            Ok(id) if digits && id != 0 => Ok(Self(id)),
            _ => Err(InvalidId {
                what: "controller id",
                value: value.to_owned(),
                rule: "it is 16 hexadecimal digits, not all of them 0",
            }),
        }
    }
}
