//! Controllers of different releases.

use roster_controller::{config::Config, peers::PROTOCOLS};
use roster_proto::wire::controller::Role;
use tonic::Code;

use super::{Member, of, role, three, voters};

fn speaks(oldest: u32, newest: u32) -> impl FnOnce(&mut Config) {
    move |config| config.protocols = oldest..=newest
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn controllers_are_upgraded_one_after_the_other() {
    let ([c1, c2, c3], _) = three().await;
    let ours = *PROTOCOLS.end();
    c1.apply("before").await.expect("applied");
    let mut members = vec![c1, c2, c3];
    for at in 0..3 {
        let old = members.remove(at).stop().await;
        let address = old.address.to_string();
        let upgraded = old.start_at(&address, speaks(ours, ours + 1)).await;
        let name = upgraded.name.clone();
        let known = |status: &roster_proto::wire::ClusterStatus| {
            status.leader != 0 && of(status, &name).is_some_and(|one| one.protocol == ours + 1 && one.reachable)
        };
        upgraded.until("its version to be known", known).await;
        members.insert(at, upgraded);
        members[at].apply(&format!("step{at}")).await.expect("applied");
    }
    // The one after that needs the first one no more.
    let old = members.remove(2).stop().await;
    let address = old.address.to_string();
    let newest = old.start_at(&address, speaks(ours + 1, ours + 2)).await;
    newest
        .until("its version to be known", |status| of(status, "c3").is_some_and(|one| one.protocol == ours + 2))
        .await;
    assert_eq!(newest.services().await.expect("listed").len(), 4);
    for member in members.into_iter().chain([newest]) {
        member.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_of_a_release_too_far_away_is_refused_with_words() {
    let ours = *PROTOCOLS.end();
    let c1 = Member::start("c1").await;
    let founded = c1.init().await.expect("founded");
    let strange = Member::start_with("c2", speaks(ours + 1, ours + 2)).await;
    let refused = strange.join(&founded.controller_token, false).await.expect_err("it speaks another protocol");
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    let words = format!("speaks versions {} to {} of the controllers' protocol", ours + 1, ours + 2);
    let own = format!("versions {} to {ours}:", PROTOCOLS.start());
    assert!(refused.message().contains(&words) && refused.message().contains(&own), "{refused}");
    assert!(refused.message().contains("upgrade the older controllers first"), "{refused}");
    strange.until_it_waits().await;
    assert_eq!(c1.status().await.expect("status").controllers.len(), 1, "nobody was admitted");

    // Its release fits now; one that is a member and does not fit any more is kept out.
    let c2 = strange.stop().await.start_at("127.0.0.1:0", |_| {}).await;
    c2.join(&founded.controller_token, false).await.expect("joined");
    c1.until("two voters", |status| voters(status) == 2).await;
    let c3 = Member::start("c3").await;
    c3.join(&founded.controller_token, false).await.expect("joined");
    c1.until("three voters", |status| voters(status) == 3).await;
    let c2 = c2.stop().await;
    let address = c2.address.to_string();
    let c2 = c2.start_at(&address, speaks(ours + 1, ours + 1)).await;
    c1.until("c2 to be missed", |status| of(status, "c2").is_some_and(|one| !one.reachable)).await;
    assert_eq!(c2.status().await.expect("status").leader, 0);
    assert_eq!(role(&c1.status().await.expect("status"), "c2"), Some(Role::Voter));
    c1.apply("hello").await.expect("the others go on");
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}
