//! Nodes.

use super::{ConvertError, enumeration, name, required, twin_enum};
use crate::{
    id::Version,
    node::{Availability, Capacity, Node, NodeDescription, NodeState},
    time::Timestamp,
    wire,
};

twin_enum!(wire::node::State, NodeState, "state", { Ready <=> Ready, Down <=> Down });
twin_enum!(wire::node::Availability, Availability, "availability", {
    Active <=> Active, Pause <=> Pause, Drain <=> Drain,
});

impl From<Node> for wire::Node {
    fn from(node: Node) -> Self {
        Self {
            id: node.id.into(),
            description: Some(node.description.into()),
            state: wire::node::State::from(node.state).into(),
            availability: wire::node::Availability::from(node.availability).into(),
            since: node.since.into(),
            generation: node.generation.into(),
            labels: node.labels,
            fenced: node.fenced,
            joined: node.joined.into(),
        }
    }
}

impl TryFrom<wire::Node> for Node {
    type Error = ConvertError;
    fn try_from(node: wire::Node) -> Result<Self, ConvertError> {
        Ok(Self {
            id: name("id", &node.id)?,
            description: required("description", node.description)?,
            state: enumeration::<wire::node::State, _>("state", node.state)?,
            availability: enumeration::<wire::node::Availability, _>("availability", node.availability)?,
            since: Timestamp(node.since),
            generation: Version(node.generation),
            labels: node.labels,
            fenced: node.fenced,
            joined: Timestamp(node.joined),
        })
    }
}

impl From<NodeDescription> for wire::NodeDescription {
    fn from(description: NodeDescription) -> Self {
        Self {
            hostname: description.hostname,
            addresses: description.addresses,
            nano_cpus: description.capacity.nano_cpus,
            memory: description.capacity.memory,
            labels: description.labels,
            agent_version: description.agent_version,
            kernel: description.kernel,
            cgroups: description.cgroups,
            architecture: description.architecture,
            runtimes: description.runtimes,
        }
    }
}

impl TryFrom<wire::NodeDescription> for NodeDescription {
    type Error = ConvertError;
    fn try_from(description: wire::NodeDescription) -> Result<Self, ConvertError> {
        Ok(Self {
            hostname: description.hostname,
            addresses: description.addresses,
            capacity: Capacity { nano_cpus: description.nano_cpus, memory: description.memory },
            labels: description.labels,
            agent_version: description.agent_version,
            kernel: description.kernel,
            cgroups: description.cgroups,
            architecture: description.architecture,
            runtimes: description.runtimes,
        })
    }
}
