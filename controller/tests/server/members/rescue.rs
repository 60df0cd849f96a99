//! Backups, what they are restored to, and going on alone after the majority is lost.

use roster_proto::wire::{self, controller::Role};
use tonic::{Code, Status};

use super::{Member, of, roles, three, voters};
use crate::harness::{Agent, stack, within};

pub(super) async fn backup(member: &Member) -> Result<Vec<u8>, Status> {
    let mut pieces = member.cluster().backup(wire::BackupRequest {}).await?.into_inner();
    let mut bytes = Vec::new();
    while let Some(piece) = within("a piece", pieces.message()).await? {
        bytes.extend_from_slice(&piece.data);
    }
    Ok(bytes)
}

pub(super) async fn restore(member: &Member, bytes: &[u8], force: bool) -> Result<wire::RestoreResponse, Status> {
    let first = wire::RestoreRequest {
        force,
        name: member.name.clone(),
        address: member.address.to_string(),
        ..wire::RestoreRequest::default()
    };
    let data = |data: &[u8]| wire::RestoreRequest { data: data.to_vec().into(), ..wire::RestoreRequest::default() };
    let parts: Vec<_> = std::iter::once(first).chain(bytes.chunks(1000).map(data)).collect();
    member.local().restore(tokio_stream::iter(parts)).await.map(tonic::Response::into_inner)
}

/// Three controllers; an agent that runs a service, by the first of them.
async fn three_and_an_agent() -> ([Member; 3], Agent) {
    let (members, _) = three().await;
    let mut agent = Agent::join_by(members[0].channel.clone(), "vm1").await;
    let request = wire::ApplyRequest { stack: Some(stack("hello", &[("web", 2)]).into()), prune: false, base: None };
    members[0].control().apply(request).await.expect("applied");
    agent.until("its tasks", |agent| agent.set.tasks.len() == 2).await;
    agent.carry_out().await;
    (members, agent)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_becomes_the_cluster_it_was_taken_of() {
    let ([c1, c2, c3], agent) = three_and_an_agent().await;
    // A follower's is as good: it holds all that was acknowledged.
    let saved = backup(&c2).await.expect("backed up");
    let before = c1.status().await.expect("status");
    c1.apply("later").await.expect("applied");

    let new = Member::start("c9").await;
    for at in [10, saved.len() / 2, saved.len() - 1] {
        let mut damaged = saved.clone();
        damaged[at] ^= 1;
        let refused = restore(&new, &damaged, false).await.expect_err("damaged");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        let refused = restore(&new, &saved[..at], false).await.expect_err("cut off");
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    }
    new.until_it_waits().await;
    let running = restore(&c3, &saved, true).await.expect_err("its cluster goes on");
    assert!(running.message().contains("`rctl cluster leave`"), "{running}");
    for member in [c1, c2, c3] {
        member.stop().await;
    }

    let told = restore(&new, &saved, false).await.expect("restored");
    assert_eq!((told.cluster.as_str(), told.services, told.nodes), (before.cluster.as_str(), 1, 1));
    assert_eq!((told.forgotten, told.release.as_str()), (names(&["c1", "c2", "c3"]), env!("CARGO_PKG_VERSION")));
    assert!(told.backed_up_version <= before.version && told.version > before.version);
    let new = new.until_leading().await;
    let status = new.status().await.expect("status");
    assert_eq!((status.cluster.as_str(), roles(&status)), (before.cluster.as_str(), vec![("c9", Role::Voter)]));
    assert_eq!(status.authorities, before.authorities, "what its members hold is still believed");
    assert_eq!(new.services().await.expect("listed"), ["hello/web"], "what came later is lost");
    keeps_its_tasks(&new, agent).await;

    // And it grows again.
    let second = Member::start("c2").await;
    second.join(&new.token("controller").await, false).await.expect("joined");
    new.until("two voters", |status| voters(status) == 2).await;
    new.stop().await;
    second.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_restored_over_what_is_there_unless_forced() {
    let c1 = Member::start("c1").await;
    let founded = c1.init().await.expect("founded");
    let c1 = c1.until_leading().await;
    c1.apply("hello").await.expect("applied");
    let saved = backup(&c1).await.expect("backed up");
    c1.apply("later").await.expect("applied");
    let refused = restore(&c1, &saved, false).await.expect_err("it holds something");
    assert!(refused.message().contains(&founded.cluster), "{refused}");
    let told = restore(&c1, &saved, true).await.expect("forced");
    let c1 = c1.until_leading().await;
    assert_eq!(c1.services().await.expect("listed"), ["hello/web"]);
    assert!(c1.apply("on").await.expect("applied").version > told.version);
    c1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_of_three_goes_on_alone_and_the_cluster_grows_again() {
    let ([c1, c2, c3], agent) = three_and_an_agent().await;
    let before = c1.status().await.expect("status");
    let lost = |lost: &[&str]| wire::RecoverRequest { lost: names(lost) };
    let well = c3.local().recover(lost(&["c1", "c2"])).await.expect_err("the cluster is well");
    assert!(well.message().contains("the cluster has a leader, c1"), "{well}");
    let c1 = c1.stop().await;
    let c2 = c2.stop().await;
    c3.until("no leader", |status| status.leader == 0).await;
    let refused = c3.local().recover(lost(&["c1"])).await.expect_err("c2 is not named");
    assert!(refused.message().contains("c1, c2"), "{refused}");
    let refused = c3.local().recover(lost(&["c1", "c2", "c7"])).await.expect_err("there is no c7");
    assert_eq!(refused.code(), Code::InvalidArgument);

    // What can be saved, is, before.
    let mut stale = tonic::Request::new(wire::BackupRequest {});
    let metadata = roster_proto::call::STALE.parse().expect("a word");
    stale.metadata_mut().insert(roster_proto::call::CONSISTENCY, metadata);
    c3.cluster().backup(stale).await.expect("although nobody leads");

    let recovered = c3.local().recover(lost(&["c1", "c2"])).await.expect("recovered").into_inner();
    let c3 = c3.until_leading().await;
    let status = c3.status().await.expect("status");
    assert_eq!(roles(&status), [("c3", Role::Voter)]);
    assert!(recovered.version > before.version && status.version >= recovered.version);
    assert_eq!(c3.services().await.expect("listed"), ["hello/web"]);
    keeps_its_tasks(&c3, agent).await;
    c3.apply("on").await.expect("applied");

    let new = [Member::start("c4").await, Member::start("c5").await];
    let token = c3.token("controller").await;
    for member in &new {
        member.join(&token, false).await.expect("joined");
    }
    c3.until("three voters", |status| voters(status) == 3).await;
    // The lost ones are not believed, also when they come back: with what they had they would be a majority.
    let lost = c1.start().await;
    let other = c2.start().await;
    c3.until("the others to be left alone", |status| of(status, "c1").is_none() && of(status, "c2").is_none()).await;
    new[0].apply("after").await.expect("applied");
    let [c4, c5] = new;
    for member in [lost, other, c3, c4, c5] {
        member.stop().await;
    }
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

/// The agent finds the controller and is sent the same tasks, under a generation that it has not seen.
async fn keeps_its_tasks(member: &Member, agent: Agent) {
    let again = Agent::join_by(member.channel.clone(), "vm1").await;
    assert!(again.set.generation > agent.set.generation);
    assert_eq!(again.set.tasks, agent.set.tasks, "nothing is started anew");
}
