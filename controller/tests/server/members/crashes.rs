//! Whatever founds, joins, leaves, restores or recovers is cut off at each of its steps. Started again, and told again
//! where the first call was not answered, the controller is what it was to be.

use roster_controller::{Step, config::Config};
use roster_proto::wire::{self, controller::Role};
use tonic::Status;

use super::{
    Member, Stopped,
    rescue::{backup, restore},
    role, three, voters,
};

fn cut_off_at(step: Step) -> impl FnOnce(&mut Config) {
    move |config| config.cut_off_at = Some(step)
}

/// A controller that waits, and will not get past the step.
async fn start(name: &str, step: Step) -> Member {
    Member::start_with(name, cut_off_at(step)).await
}

/// The call must have been cut off, or what follows it; then the controller is stopped, and started with what it left.
async fn crash<T: std::fmt::Debug>(member: Member, step: Step, answer: Result<T, Status>, in_the_call: bool) -> Member {
    let words = format!("cut off at {step:?}");
    match answer {
        Err(status) => assert!(in_the_call && status.message().contains(&words), "{step:?}: {status}"),
        Ok(answer) => assert!(!in_the_call, "{step:?} was not passed: {answer:?}"),
    }
    let (stopped, ended) = match in_the_call {
        true => member.end().await,
        // By itself: what follows the call is done when the controller begins anew.
        false => member.broken().await,
    };
    assert_eq!(ended.is_ok(), in_the_call, "{step:?}: {ended:?}");
    restart(stopped).await
}

async fn restart(stopped: Stopped) -> Member {
    stopped.start().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_founded_whenever_it_was_cut_off() {
    for step in [Step::ControllerWritten, Step::ClusterFounded, Step::ControllersToken] {
        let c1 = start("c1", step).await;
        let answer = c1.init().await;
        let c1 = crash(c1, step, answer, true).await;
        let founded = c1.init().await.unwrap_or_else(|status| panic!("{step:?}: {status}"));
        let c1 = c1.until_leading().await;
        assert_eq!(c1.status().await.expect("status").cluster, founded.cluster, "{step:?}");
        let c2 = Member::start("c2").await;
        c2.join(&founded.controller_token, false).await.expect("joined");
        c1.until("two voters", |status| voters(status) == 2).await;
        c1.init().await.expect_err("it is not alone any more");
        c1.stop().await;
        c2.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_joins_whenever_it_was_cut_off() {
    const STEPS: [(Step, bool); 7] = [
        (Step::JoinKeyKept, true),
        (Step::JoinAdmitted, true),
        (Step::JoinWritten, true),
        (Step::JoinStoreGone, false),
        (Step::JoinIdentityTaken, false),
        (Step::JoinEmptied, false),
        (Step::JoinLogBegun, false),
    ];
    let c1 = Member::start("c1").await;
    let founded = c1.init().await.expect("founded");
    for (step, in_the_call) in STEPS {
        let name = format!("c-{step:?}").to_lowercase();
        let joiner = start(&name, step).await;
        let answer = joiner.join(&founded.controller_token, true).await;
        let joiner = crash(joiner, step, answer, in_the_call).await;
        if matches!(step, Step::JoinKeyKept | Step::JoinAdmitted) {
            joiner.until_it_waits().await;
            joiner.join(&founded.controller_token, true).await.unwrap_or_else(|status| panic!("{step:?}: {status}"));
        }
        let what = format!("{name} to be a spare that keeps up");
        let status = c1.until(&what, |status| super::of(status, &name).is_some_and(|one| one.matched > 0)).await;
        assert_eq!(role(&status, &name), Some(Role::Spare));
        assert_eq!(status.controllers.len(), 2, "admitted once: {status:#?}");
        joiner.leave(false).await.unwrap_or_else(|status| panic!("{step:?}: {status}"));
        joiner.stop().await;
    }
    c1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_leaves_whenever_it_was_cut_off() {
    let c1 = Member::start("c1").await;
    c1.init().await.expect("founded");
    for step in [Step::LeaveTold, Step::EmptyingBegun, Step::EmptyingIdentityGone] {
        let name = format!("c-{step:?}").to_lowercase();
        let c2 = start(&name, step).await;
        c2.join(&c1.token("controller").await, false).await.expect("joined");
        c1.until("two voters", |status| voters(status) == 2).await;
        let answer = c2.leave(false).await;
        let c2 = match step {
            Step::LeaveTold => crash(c2, step, answer, true).await,
            // The controller begins anew, and fails at once at the same place.
            _ => {
                assert!(answer.expect_err("cut off").message().contains("cut off at"));
                c2.broken().await.0.start().await
            }
        };
        if step == Step::LeaveTold {
            c2.leave(false).await.expect("it finds out that it was removed");
        }
        c2.until_it_waits().await;
        c1.until("one voter", |status| voters(status) == 1 && status.controllers.len() == 1).await;
        c2.stop().await;
    }
    c1.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_is_restored_whenever_it_was_cut_off() {
    let c1 = Member::start("c1").await;
    let founded = c1.init().await.expect("founded");
    let c1 = c1.until_leading().await;
    c1.apply("hello").await.expect("applied");
    let saved = backup(&c1).await.expect("backed up");
    c1.stop().await;
    for step in [Step::RestoreEmptied, Step::RestoreWritten] {
        let new = start("c1", step).await;
        let answer = restore(&new, &saved, false).await;
        let new = crash(new, step, answer, true).await;
        if step == Step::RestoreEmptied {
            new.until_it_waits().await;
            restore(&new, &saved, false).await.expect("restored");
        }
        let new = new.until_leading().await;
        assert_eq!(new.status().await.expect("status").cluster, founded.cluster);
        assert_eq!(new.services().await.expect("listed"), ["hello/web"]);
        new.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_is_recovered_whenever_it_was_cut_off() {
    let ([c1, c2, c3], _) = three().await;
    c1.apply("hello").await.expect("applied");
    let c3 = c3.stop().await;
    let address = c3.address.to_string();
    let c3 = c3.start_at(&address, cut_off_at(Step::Recovered)).await;
    c3.until("the others", |status| status.leader != 0).await;
    c1.stop().await;
    c2.stop().await;
    c3.until("no leader", |status| status.leader == 0).await;
    let lost = || wire::RecoverRequest { lost: vec!["c1".to_owned(), "c2".to_owned()] };
    let answer = c3.local().recover(lost()).await;
    let c3 = crash(c3, Step::Recovered, answer, true).await;
    let c3 = c3.until_leading().await;
    c3.local().recover(lost()).await.expect("it is so already");
    let status = c3.status().await.expect("status");
    assert_eq!(super::roles(&status), [("c3", Role::Voter)]);
    assert_eq!(c3.services().await.expect("listed"), ["hello/web"]);
    c3.stop().await;
}
