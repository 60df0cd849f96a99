//! Who may call what: the one table.

use roster_tls::Role;

/// Whom a method is open to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Access {
    /// Also to strangers.
    Everybody,
    /// To those roles; and to root on the controller's own host, who may call everything.
    Roles(&'static [Role]),
    /// To root on the controller's own host alone.
    Local,
}

const CONTROLLERS: Access = Access::Roles(&[Role::Controller]);
const AGENTS: Access = Access::Roles(&[Role::Agent]);
const MEMBERS: Access = Access::Roles(&Role::ALL);
const VIEWERS: Access = Access::Roles(&[Role::Viewer, Role::Operator, Role::Admin]);
const OPERATORS: Access = Access::Roles(&[Role::Operator, Role::Admin]);
const ADMINS: Access = Access::Roles(&[Role::Admin]);

/// Of a method's path, as in `/roster.v1.Control/Apply`. What is not in the table is root's.
pub(super) fn access(path: &str) -> Access {
    let Some((service, method)) = path.strip_prefix('/').and_then(|path| path.split_once('/')) else {
        return Access::Local;
    };
    match service {
        "roster.v1.Control" => control(method),
        "roster.v1.Containers" => containers(method),
        "roster.v1.Cluster" => cluster(method),
        "roster.v1.Live" => match method {
            "Open" => OPERATORS,
            _ => Access::Local,
        },
        "roster.v1.Dispatch" => AGENTS,
        "roster.v1.Raft" => CONTROLLERS,
        "roster.v1.Enroll" => match method {
            "Enroll" => Access::Everybody,
            "Renew" => MEMBERS,
            _ => Access::Local,
        },
        "grpc.health.v1.Health" => Access::Everybody,
        "grpc.reflection.v1.ServerReflection" => VIEWERS,
        _ => Access::Local,
    }
}

fn control(method: &str) -> Access {
    match method {
        "Plan" | "ListServices" | "ListTasks" | "ListNodes" | "Watch" | "Events" | "Logs" | "ListImages"
        | "Version" => VIEWERS,
        "Apply" | "RemoveStack" | "RemoveService" | "Scale" | "SetAvailability" | "SetNodeLabels" | "LoadImage"
        | "PullImage" | "RemoveImage" => OPERATORS,
        // Its certificate is refused from then on.
        "RemoveNode" => ADMINS,
        _ => Access::Local,
    }
}

fn containers(method: &str) -> Access {
    match method {
        "Top" | "Stats" | "Diff" | "Kept" => VIEWERS,
        // Files may hold secrets.
        "Kill" | "Restart" | "SetPaused" | "Export" | "Run" | "Commit" => OPERATORS,
        _ => Access::Local,
    }
}

fn cluster(method: &str) -> Access {
    match method {
        "Status" => VIEWERS,
        "ReleaseBrake" => OPERATORS,
        "Promote" | "Demote" | "RemoveController" | "TransferLeadership" | "Configure" => ADMINS,
        "CreateToken" | "ListTokens" | "RevokeToken" | "AddUser" | "ListUsers" | "RemoveUser" => ADMINS,
        "RotateAuthority" | "Backup" => ADMINS,
        _ => Access::Local,
    }
}

impl Access {
    /// To whom it is open, for a refusal.
    pub(super) fn words(self) -> String {
        match self {
            Access::Everybody => "everybody".to_owned(),
            Access::Local => "root on the controller's own host, by its socket".to_owned(),
            Access::Roles(roles) => {
                let roles: Vec<&str> = roles.iter().map(|role| role.as_str()).collect();
                roles.join(", ")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// A method that is added to the contract is thought about here.
    #[test]
    fn every_method_has_its_place() {
        let files = prost_types::FileDescriptorSet::decode(roster_proto::wire::DESCRIPTORS).expect("our own");
        let mut table = String::new();
        for file in &files.file {
            for service in &file.service {
                for method in &service.method {
                    let path = format!("/{}.{}/{}", file.package(), service.name(), method.name());
                    let open_to = access(&path);
                    assert_eq!(open_to == Access::Local, service.name() == "Local", "{path} is not in the table");
                    table.push_str(&format!("{}.{}: {}\n", service.name(), method.name(), open_to.words()));
                }
            }
        }
        insta::assert_snapshot!(table);
    }

    #[test]
    fn what_is_unknown_is_roots() {
        for path in [
            "",
            "/",
            "x",
            "/roster.v1.Control",
            "/roster.v1.Control/",
            "/roster.v1.Control/apply",
            "/a/b",
            "//roster.v1.Enroll/Enroll",
            "/roster.v1.Enroll/Enroll/",
            "/roster.v2.Enroll/Enroll",
        ] {
            assert_eq!(access(path), Access::Local, "{path}");
        }
    }
}
