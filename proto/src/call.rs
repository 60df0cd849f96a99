//! What both sides know of a call besides its messages: the names of its metadata, and what kind of call it is.

/// Made by the caller of a change: the same change sent again under it is answered, not repeated.
pub const REQUEST_ID: &str = "roster-request-id";
/// [`STALE`]: a read is answered from what the controller has, without asking the others.
pub const CONSISTENCY: &str = "roster-consistency";
pub const STALE: &str = "stale";
/// Whom a controller speaks for, as `role/name`. Believed only of a controller.
pub const FORWARDED_FOR: &str = "roster-forwarded-for";
/// Beside a refusal: where the leader is, as HOST:PORT.
pub const LEADER: &str = "roster-leader";
/// Of an agent that looks for the leader: which one it has lost, as HOST:PORT. Not to be named again until it is elected
/// anew.
pub const LOST: &str = "roster-lost";
/// Beside UNAVAILABLE: how the call may be made again, [`RETRY_SAFE`] or [`RETRY_SAME_ID`]. See also
/// [`RETRY_ELSEWHERE`].
pub const RETRY: &str = "roster-retry";
/// Nothing was done.
pub const RETRY_SAFE: &str = "safe";
/// Beside FAILED_PRECONDITION: it is this controller that cannot, another one may.
pub const RETRY_ELSEWHERE: &str = "elsewhere";
/// It may have been done: only under the same request id.
pub const RETRY_SAME_ID: &str = "same-id";

/// Beside UNAUTHENTICATED: whose certificate it is was removed from the cluster.
pub const REMOVED: &str = "roster-removed";

/// The longest request id.
pub const MAX_REQUEST_ID: usize = 64;

/// What a call needs of the controllers, and what repeating it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Any controller answers, once it knows that it has all that was acknowledged.
    Read,
    /// The leader knows most of it; without one, any controller tells what it knows.
    Overview,
    /// The leader proposes it. Under one request id it happens once.
    Change,
    /// The leader proposes it and answers with a secret that is kept nowhere: not to be had a second time.
    Secret,
    /// The leader passes it on to agents. Done twice, it has the effect of once.
    Agents,
    /// The leader passes it on to agents, who must not do it twice.
    Once,
    /// Meant for the controller it reached.
    Own,
}

impl Kind {
    /// Of a method's path, as in `/roster.v1.Control/Apply`. What is not of the contract is for whom it reached.
    pub fn of(path: &str) -> Self {
        let Some((service, method)) = path.strip_prefix("/roster.v1.").and_then(|name| name.split_once('/')) else {
            return Self::Own;
        };
        match (service, method) {
            ("Control", "Plan" | "ListServices" | "ListTasks" | "ListNodes" | "Watch" | "Events") => Self::Read,
            ("Cluster", "ListTokens" | "ListUsers" | "Backup") => Self::Read,
            ("Cluster", "Status") => Self::Overview,
            ("Control", "Apply" | "RemoveStack" | "RemoveService" | "Scale") => Self::Change,
            ("Control", "SetAvailability" | "SetNodeLabels" | "RemoveNode") => Self::Change,
            ("Cluster", "Promote" | "Demote" | "RemoveController" | "TransferLeadership") => Self::Change,
            ("Cluster", "Configure" | "ReleaseBrake" | "RevokeToken" | "AddUser" | "RemoveUser") => Self::Change,
            ("Cluster", "RotateAuthority") => Self::Change,
            ("Containers", "Restart" | "SetPaused" | "Run") => Self::Change,
            ("Enroll", _) => Self::Change,
            ("Cluster", "CreateToken") => Self::Secret,
            ("Control", "Logs" | "LoadImage" | "PullImage" | "ListImages" | "RemoveImage") => Self::Agents,
            ("Containers", "Top" | "Stats" | "Diff" | "Export" | "Commit" | "Kept") => Self::Agents,
            ("Containers", "Kill") => Self::Once,
            ("Live", _) => Self::Once,
            _ => Self::Own,
        }
    }

    /// Only the leader can do it.
    pub fn needs_leader(self) -> bool {
        matches!(self, Self::Change | Self::Secret | Self::Agents | Self::Once)
    }

    /// Whether it may be sent again although it may have been done: a change, under the same request id.
    pub fn repeats(self) -> bool {
        !matches!(self, Self::Secret | Self::Once | Self::Own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A method that is added to the contract is thought about here.
    #[test]
    fn every_method_has_its_kind() {
        use prost::Message;
        let files = prost_types::FileDescriptorSet::decode(crate::wire::DESCRIPTORS).expect("our own descriptors");
        let own = ["/roster.v1.Control/Version", "/roster.v1.Local/", "/roster.v1.Raft/", "/roster.v1.Dispatch/"];
        let mut methods = 0;
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let meant_here = own.iter().any(|own| path.starts_with(own));
                    assert_eq!(Kind::of(&path) == Kind::Own, meant_here, "{path}");
                    methods += 1;
                }
            }
        }
        assert!(methods > 30, "{methods} methods");
        assert_eq!(Kind::of("/grpc.health.v1.Health/Check"), Kind::Own);
        assert_eq!(Kind::of("/roster.v1.Control"), Kind::Own);
    }
}
