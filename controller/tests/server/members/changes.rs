//! Controllers come, go, move, die, and change their part.

use std::time::{Duration, Instant};

use roster_proto::{
    call,
    wire::{self, controller::Role},
};
use roster_tls::{EnrollError, KeyAndRequest, Token, enroll_over};
use tokio_util::sync::CancellationToken;
use tonic::Code;

use super::{Member, free_address, leader, named, of, role, roles, three, voters};
use crate::harness::{Agent, again, stack};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn votes_are_given_and_taken_and_the_leadership_moves() {
    let ([c1, c2, c3], _) = three().await;
    let status = c1.cluster().demote(named("c3")).await.expect("demoted").into_inner();
    assert_eq!(role(&status, "c3"), Some(Role::Spare));
    let again = c1.cluster().demote(named("c3")).await.expect("it is so already").into_inner();
    assert_eq!(role(&again, "c3"), Some(Role::Spare));
    let status = c1.cluster().promote(named("c3")).await.expect("promoted").into_inner();
    assert_eq!(role(&status, "c3"), Some(Role::Voter));

    c1.cluster().transfer_leadership(named("c2")).await.expect("handed over");
    let status = c2.until("the leadership", |status| leader(status) == Some("c2")).await;
    assert!(
        status.controllers.iter().all(|one| one.reachable),
        "nobody is missed who had no time to answer: {status:?}"
    );
    // The leader loses its vote, and with it the leadership.
    c2.cluster().demote(named("c2")).await.expect("demoted");
    let status = c1.until("another leader", |status| matches!(leader(status), Some("c1" | "c3"))).await;
    assert_eq!(role(&status, "c2"), Some(Role::Spare));
    let spare = c1.cluster().transfer_leadership(named("c2")).await.expect_err("it has no vote");
    assert!(spare.message().contains("promote it first"), "{spare}");
    let unknown = c1.cluster().promote(named("c9")).await.expect_err("unknown");
    assert_eq!(unknown.code(), Code::NotFound);
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

/// The longest time between two answers to changes.
async fn longest_gap(member: &Member, until: CancellationToken) -> Duration {
    let mut control = member.control();
    let (mut answered, mut longest) = (Instant::now(), Duration::ZERO);
    while !until.is_cancelled() {
        let stack = Some(stack("hello", &[("web", 1)]).into());
        control.apply(wire::ApplyRequest { stack, prune: false, base: None }).await.expect("applied");
        longest = longest.max(answered.elapsed());
        answered = Instant::now();
    }
    longest
}

/// The shortest of several gaps: a busy machine makes them longer, but nothing makes an election that nobody called for
/// shorter than its timeout of 500 ms, less the heartbeat's 100.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_stops_hands_over_before() {
    let (members, _) = three().await;
    let mut members = Vec::from(members);
    let mut gaps = Vec::new();
    for _ in 0..3 {
        let status = members[0].until("a leader", |status| leader(status).is_some()).await;
        let leads = members.iter().position(|member| leader(&status) == Some(&member.name)).expect("one of them");
        let leads = members.remove(leads);
        let stopped = CancellationToken::new();
        let stop = async {
            let left = leads.stop().await;
            stopped.cancel();
            left
        };
        let (gap, left) = tokio::join!(longest_gap(&members[0], stopped.clone()), stop);
        gaps.push(gap);
        members.push(left.start().await);
        let status = members[2].until("a leader", |status| leader(status).is_some()).await;
        assert_ne!(leader(&status), Some(members[2].name.as_str()), "it has only just come back");
    }
    assert!(gaps.iter().any(|gap| *gap < Duration::from_millis(300)), "{gaps:?}");
    for member in members {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn root_on_one_host_has_no_name_of_an_agent_on_another() {
    let ([c1, c2, c3], founded) = three().await;
    let _agent = Agent::join_by(c1.channel.clone(), "vm1").await;
    let token: Token = founded.agent_token.parse().expect("a token");
    let key = KeyAndRequest::generate("vm1").expect("a key");
    let enroll = async |member: &Member| {
        let request = wire::EnrollRequest { name: "vm1".to_owned(), ..Default::default() };
        enroll_over(member.channel.clone(), again(&key), &token, request).await
    };
    for other in [&c2, &c3] {
        let error = enroll(other).await.expect_err("the agent is on another host");
        assert!(matches!(&error, EnrollError::Refused(status) if status.code() == Code::AlreadyExists), "{error}");
    }
    enroll(&c1).await.expect("it is this host's");
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_leaves_and_comes_back_as_another() {
    let ([c1, c2, c3], _) = three().await;
    c1.apply("hello").await.expect("applied");
    let before = of(&c1.status().await.expect("status"), "c1").map(|one| one.id);
    c1.leave(false).await.expect("left");
    c1.until_it_waits().await;
    let status = c2.until("two voters", |status| voters(status) == 2 && status.leader != 0).await;
    assert_eq!(roles(&status), [("c2", Role::Voter), ("c3", Role::Voter)]);
    assert_eq!(c3.services().await.expect("listed"), ["hello/web"]);

    // The token's address is where it was itself; the others' are known of by now.
    let token = c2.token("controller").await;
    c1.join(&token, false).await.expect("joined again");
    let status = c1.until("three voters", |status| voters(status) == 3).await;
    assert_ne!(of(&status, "c1").map(|one| one.id), before, "ids are never used again");
    assert_eq!(c1.services().await.expect("listed"), ["hello/web"]);
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_are_removed_by_others_down_to_the_last() {
    let ([c1, c2, c3], _) = three().await;
    // By the leader, of the leader.
    c2.cluster().remove_controller(named("c1")).await.expect("removed");
    let status = c2.until("two voters", |status| voters(status) == 2 && status.leader != 0).await;
    assert_eq!(roles(&status), [("c2", Role::Voter), ("c3", Role::Voter)]);
    // Whoever asks it is to ask another one.
    let elsewhere = c1.apply("late").await.expect_err("removed");
    assert!(elsewhere.message().contains("was removed from the cluster: ask another one"), "{elsewhere}");
    assert_eq!(elsewhere.metadata().get(call::RETRY).expect("a hint"), call::RETRY_ELSEWHERE);
    // It finds out and needs no force.
    c1.leave(false).await.expect("left");
    c1.until_it_waits().await;
    c2.cluster().remove_controller(named("c3")).await.expect("removed");
    let last = c2.cluster().remove_controller(named("c2")).await.expect_err("the last one");
    assert!(last.message().contains("only controller with a vote"), "{last}");
    let last = c2.leave(false).await.expect_err("the last one");
    assert!(last.message().contains("--force"), "{last}");
    c2.apply("on").await.expect("it goes on alone");
    c2.leave(true).await.expect("given up");
    c2.until_it_waits().await;
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dead_controller_is_reported_and_removed_and_the_rest_not() {
    let ([c1, c2, c3], _) = three().await;
    let dead = c3.stop().await;
    c1.until("c3 to be missed", |status| of(status, "c3").is_some_and(|one| !one.reachable)).await;
    let refused = c1.cluster().remove_controller(named("c2")).await.expect_err("one of two would be left");
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert!(refused.message().contains("2 voters of which 1 answer"), "{refused}");
    let refused = c1.cluster().demote(named("c2")).await.expect_err("one of two would be left");
    assert!(refused.message().contains("too few to decide anything"), "{refused}");
    // Also where another one leads.
    c2.until("c3 to be missed", |status| of(status, "c3").is_some_and(|one| !one.reachable)).await;
    c2.until_event("controller c3 does not answer").await;

    c1.cluster().remove_controller(named("c3")).await.expect("removed");
    let status = c2.until("two voters", |status| voters(status) == 2).await;
    assert_eq!(roles(&status), [("c1", Role::Voter), ("c2", Role::Voter)]);
    c1.apply("hello").await.expect("applied");
    // It comes back, is told, and is emptied.
    let c3 = dead.start().await;
    c3.leave(false).await.expect("it is told that it was removed");
    c3.until_it_waits().await;
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_spare_stands_in_for_a_dead_voter() {
    let ([c1, c2, c3], _) = three().await;
    let spare = Member::start("c4").await;
    let token = c1.token("controller").await;
    spare.join(&token, true).await.expect("joined");
    c1.configure(|settings| settings.replace_controller_after = 1_000_000).await;
    let status = c1.until("the spare to keep up", |status| of(status, "c4").is_some_and(|one| one.matched > 0)).await;
    assert_eq!(role(&status, "c4"), Some(Role::Spare), "it gets no vote by itself");

    let dead = c3.stop().await;
    c1.until_event("controller c4 is to be a voter").await;
    c1.configure(|settings| settings.replace_controller_after = 0).await;
    let stands_in = |status: &wire::ClusterStatus| {
        role(status, "c4") == Some(Role::Voter) && role(status, "c3") == Some(Role::Spare)
    };
    c1.until("the spare to stand in", stands_in).await;
    // Two of the three voters are enough: c2 and the former spare.
    let gone = c1.stop().await;
    let status = c2.until("a leader", |status| matches!(leader(status), Some("c2" | "c4"))).await;
    assert!(stands_in(&status), "{status:#?}");
    c2.apply("hello").await.expect("applied");
    // The dead one is the spare when it comes back.
    let c3 = dead.start().await;
    let status = c2.until("c3 to answer", |status| of(status, "c3").is_some_and(|one| one.reachable)).await;
    assert_eq!(role(&status, "c3"), Some(Role::Spare));
    assert_eq!(c3.services().await.expect("listed"), ["hello/web"]);
    let c1 = gone.start().await;
    for member in [c1, c2, c3, spare] {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_that_comes_back_elsewhere_is_found_again() {
    let ([c1, c2, c3], _) = three().await;
    let address = free_address();
    let c3 = c3.stop().await.start_at(&address, |_| {}).await;
    let here =
        |status: &wire::ClusterStatus| of(status, "c3").is_some_and(|one| one.address == address && one.reachable);
    c1.until("the new address", here).await;
    // The leader, too, and at once: it has not noted for good where c3 is, and c3 does not know where c1 is. c2 does.
    let c1 = c1.stop().await;
    c2.until("another leader", |status| matches!(leader(status), Some("c2" | "c3"))).await;
    let elsewhere = free_address();
    let c1 = c1.start_at(&elsewhere, |_| {}).await;
    let there =
        |status: &wire::ClusterStatus| of(status, "c1").is_some_and(|one| one.address == elsewhere && one.reachable);
    c2.until("the new address", there).await;
    c2.until_event(&format!("controller c1 is at {elsewhere}")).await;
    c2.apply("hello").await.expect("applied");
    assert_eq!(c1.services().await.expect("listed"), ["hello/web"]);
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}
