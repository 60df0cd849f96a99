//! What people do with nodes, over the whole way.

use roster_proto::wire::{self, node::Availability, node::State};
use tonic::{Code, Status};

use crate::harness::{self, Agent, Controller, converged, stack};

async fn set(controller: &Controller, node: &str, availability: Availability) -> Result<u64, Status> {
    let request = wire::SetAvailabilityRequest { node: node.to_owned(), availability: availability.into() };
    controller.control().set_availability(request).await.map(|answer| answer.into_inner().version)
}

async fn label(controller: &Controller, node: &str, put: &[(&str, &str)], remove: &[&str]) -> Result<(), Status> {
    let put = put.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let remove = remove.iter().map(|key| (*key).to_owned()).collect();
    let request = wire::SetNodeLabelsRequest { node: node.to_owned(), put, remove };
    controller.control().set_node_labels(request).await.map(|_| ())
}

async fn remove(controller: &Controller, node: &str, force: bool) -> Result<(), Status> {
    let request = wire::RemoveNodeRequest { node: node.to_owned(), force };
    controller.control().remove_node(request).await.map(|_| ())
}

async fn nodes(controller: &Controller) -> wire::ListNodesResponse {
    harness::nodes(&controller.control()).await.expect("a list")
}

fn reasons(seen: &wire::WatchResponse) -> Vec<String> {
    let task = |task: &wire::Task| roster_proto::task::Task::try_from(task.clone()).expect("a task");
    seen.tasks.iter().filter_map(|t| task(t).status.cause).map(|cause| cause.to_string()).collect()
}

#[tokio::test]
async fn a_node_is_drained_labelled_and_removed() {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 2)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;
    let listed = nodes(&controller).await;
    assert_eq!((listed.load["vm1"].tasks, listed.brake), (2, None));
    assert!(listed.nodes[0].joined > 0);

    let refused = remove(&controller, "vm1", false).await.expect_err("it is in use");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let words = "node vm1 is Ready and has 2 tasks: `rctl node drain vm1` first; --force removes it all the same";
    assert!(refused.message().starts_with(words), "{refused}");

    set(&controller, "vm1", Availability::Drain).await.expect("draining");
    let why = "no node can take it: vm1 is being drained";
    let told = |seen: &wire::WatchResponse| reasons(seen) == [why, why];
    agent.work_until(controller.watch("why the tasks stay", told)).await;
    set(&controller, "vm1", Availability::Pause).await.expect("paused");
    let quiet = |seen: &wire::WatchResponse| reasons(seen).is_empty();
    agent.work_until(controller.watch("nothing to be said any more", quiet)).await;

    let mut other = Agent::join(&controller, "vm2").await;
    set(&controller, "vm1", Availability::Drain).await.expect("draining");
    let moved = |seen: &wire::WatchResponse| converged(seen) && seen.tasks.iter().all(|task| task.node() == "vm2");
    tokio::select! {
        () = agent.work_until(std::future::pending()) => {}
        _ = other.work_until(controller.watch("the tasks on vm2", moved)) => {}
    }
    remove(&controller, "vm1", false).await.expect("it is drained and empty");
    assert_eq!(nodes(&controller).await.nodes.len(), 1);
    let ended = loop {
        if let Err(status) = agent.step().await {
            break status;
        }
    };
    assert_eq!(ended.code(), Code::FailedPrecondition);
    assert!(ended.message().contains("removed from the cluster"), "{ended}");
    remove(&controller, "vm2", true).await.expect("by force");
    controller.stop().await;
}

#[tokio::test]
async fn labels_are_merged_and_checked() {
    let controller = Controller::start().await;
    let _agent = Agent::join(&controller, "vm1").await;
    label(&controller, "vm1", &[("zone", "a"), ("disk", "ssd")], &[]).await.expect("two labels");
    label(&controller, "vm1", &[("disk", "hdd")], &["zone"]).await.expect("one is left");
    let labels = nodes(&controller).await.nodes[0].labels.clone();
    assert_eq!(labels.into_iter().collect::<Vec<_>>(), [("disk".to_owned(), "hdd".to_owned())]);

    let nothing = label(&controller, "vm1", &[], &[]).await.expect_err("nothing asked");
    assert_eq!(nothing.code(), Code::InvalidArgument);
    let gone = label(&controller, "vm1", &[], &["zone"]).await.expect_err("it is gone");
    assert_eq!((gone.code(), gone.message()), (Code::NotFound, "node vm1 was given no label zone"));
    let wrong = label(&controller, "vm1", &[("a b", "")], &[]).await.expect_err("not a name");
    assert_eq!(wrong.code(), Code::InvalidArgument);
    assert!(wrong.message().starts_with("a label's name \"a b\" is not allowed"), "{wrong}");
    controller.stop().await;
}

#[tokio::test]
async fn what_is_asked_of_a_node_must_make_sense() {
    let controller = Controller::start().await;
    let away = "there is no node vm9: `rctl node ls` lists what there is";
    let unknown = [
        set(&controller, "vm9", Availability::Drain).await.map(|_| ()),
        label(&controller, "vm9", &[("a", "b")], &[]).await,
        remove(&controller, "vm9", true).await,
    ];
    for refused in unknown {
        let refused = refused.expect_err("there is none");
        assert_eq!((refused.code(), refused.message()), (Code::NotFound, away));
    }
    let _agent = Agent::join(&controller, "vm1").await;
    let unspecified = set(&controller, "vm1", Availability::Unspecified).await.expect_err("what then?");
    assert_eq!(unspecified.code(), Code::InvalidArgument);
    let spelt = remove(&controller, "../vm1", false).await.expect_err("not a name");
    assert_eq!(spelt.code(), Code::InvalidArgument);
    controller.node_becomes("vm1", State::Ready).await;
    controller.stop().await;
}
