//! Controllers: what is known of them, and a cluster that goes on with one of them.

use roster_proto::{
    id::{PeerId, Version},
    time::Timestamp,
};

use super::apply;
use crate::state::{
    AuthorityRecord, ClusterState, Holder, Secret,
    command::{Command, Outcome, Refusal},
};

const NOW: Timestamp = Timestamp(1_800_000_000_000_000);

fn controller(id: u64) -> Command {
    Command::PutController {
        id: PeerId(id),
        name: format!("c{id}").parse().expect("a name"),
        address: format!("10.0.0.{id}:7640"),
        release: "0.1.0".to_owned(),
        protocol: 1,
        spare: false,
    }
}

/// Of three controllers, with a node.
fn three() -> ClusterState {
    let mut state = ClusterState::default();
    let authority =
        AuthorityRecord { certificate: vec![1], key: Some(Secret::new(*b"key")), since: Timestamp(1), cross: None };
    let cluster = "abcdefghij234567".parse().expect("a cluster's id");
    apply(&mut state, Command::InitCluster { cluster, authority });
    for id in 1..=3 {
        assert_eq!(apply(&mut state, controller(id)), Outcome::Applied);
    }
    let node: roster_proto::id::NodeId = "vm1".parse().expect("a node");
    apply(&mut state, Command::RegisterNode { node: node.clone(), description: Box::default() });
    let generation = state.nodes[&node].generation;
    apply(&mut state, Command::SettleNode { node, generation });
    state
}

fn events(state: &ClusterState) -> Vec<&str> {
    state.events().map(|event| event.message.as_str()).collect()
}

#[test]
fn a_controller_that_falls_silent_is_told_of_once() {
    let mut state = three();
    let silent = |silent| Command::SetControllerSilent { id: PeerId(2), silent };
    assert_eq!(apply(&mut state, silent(false)), Outcome::Unchanged);
    assert_eq!(apply(&mut state, silent(true)), Outcome::Applied);
    assert_eq!(apply(&mut state, silent(true)), Outcome::Unchanged);
    assert!(state.controllers[&PeerId(2)].silent_since.is_some());
    assert_eq!(events(&state).last(), Some(&"controller c2 does not answer"));
    assert_eq!(apply(&mut state, silent(false)), Outcome::Applied);
    assert_eq!(events(&state).last(), Some(&"controller c2 answers again"));
    let unknown = Command::SetControllerSilent { id: PeerId(9), silent: true };
    assert_eq!(apply(&mut state, unknown), Outcome::Refused(Refusal::NoSuchController(PeerId(9))));
}

#[test]
fn one_that_goes_on_alone_forgets_the_others_and_outruns_them() {
    let mut state = three();
    apply(&mut state, Command::SetSpares { spares: [(PeerId(3), true)].into() });
    // It was about to leave when the others were lost.
    apply(&mut state, Command::DismissController { id: PeerId(3) });
    let next = state.recovered(PeerId(3), NOW).expect("recovered");
    assert_eq!(next.controllers.keys().copied().collect::<Vec<_>>(), [PeerId(3)]);
    assert!(next.controllers[&PeerId(3)].votes(), "somebody has to");
    for name in ["c1", "c2"] {
        assert!(next.security.is_revoked(&Holder::Controller(name.to_owned()), NOW), "{name} is not believed");
    }
    assert!(!next.security.is_revoked(&Holder::Controller("c3".to_owned()), Timestamp(0)));
    // A million commands a second, ever since the clock began, were fewer.
    assert!(next.version > Version(NOW.0) && next.version > state.version);
    let generation = |state: &ClusterState| state.nodes.values().next().map(|node| node.generation);
    assert!(generation(&next) > generation(&state) && generation(&next) <= Some(next.version));
    assert!(events(&next).contains(&"controller c1 has left the cluster"));
    assert_eq!(state.controllers.len(), 3, "the one before is as it was");

    // By a clock that is wrong: versions never go back all the same.
    let again = next.recovered(PeerId(3), Timestamp(5)).expect("recovered");
    assert!(again.version > next.version);
}
