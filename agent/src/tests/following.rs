//! Several controllers, of which one leads.

use roster_proto::task::TaskState;
use roster_tls::{Authority, Identity, Role};
use tokio::time::Instant;

use super::{
    cluster::{HOUR, authority, identity},
    controller::{HEARTBEAT, Leader, elsewhere, until},
    *,
};
use crate::membership;

/// Three controllers, the first of which leads; the agent `vm1` has joined them.
struct Cluster {
    bench: Bench,
    authority: Arc<Authority>,
    controllers: Vec<Controller>,
}

impl Cluster {
    async fn new() -> Self {
        let (bench, authority) = (Bench::new(), authority());
        let mut controllers = Vec::new();
        for _ in 0..3 {
            controllers.push(Controller::of_cluster(&authority).await);
        }
        let leader = Leader::At(controllers[0].address().to_owned());
        controllers[1..].iter().for_each(|follower| follower.know_leader(leader.clone()));
        let cluster = Self { bench, authority, controllers };
        cluster.join(Duration::ZERO);
        cluster
    }

    fn addresses(&self) -> Vec<&str> {
        self.controllers.iter().map(Controller::address).collect()
    }

    /// As `rctl cluster join --agent` does, so long ago.
    fn join(&self, ago: Duration) {
        let controllers = self.addresses().into_iter().map(str::to_owned).collect();
        let identity = Identity { controllers, ..identity(&self.authority, Role::Agent, "vm1", ago) };
        membership::directory(&self.bench.path().join("data")).save(&identity).unwrap();
    }

    fn on_disk(&self) -> Identity {
        membership::directory(&self.bench.path().join("data")).load().unwrap().unwrap()
    }
}

#[tokio::test]
async fn whoever_is_asked_first_the_leader_is_found() {
    for _ in 0..5 {
        let cluster = Cluster::new().await;
        let agent = cluster.bench.agent();
        cluster.controllers[0].want(set(1, [run_task("a", spec())]));
        cluster.controllers[0].until_task(&id("a"), |status| status.state == TaskState::Running).await;
        assert_eq!(cluster.controllers[1].heard().sessions + cluster.controllers[2].heard().sessions, 0);
        agent.stop().await;
    }
}

#[tokio::test]
async fn a_new_leader_is_found_as_soon_as_it_leads() {
    let mut cluster = Cluster::new().await;
    let agent = cluster.bench.agent();
    cluster.controllers[0].until("a session", |heard| heard.sessions == 1).await;
    let dead = cluster.controllers[0].address().to_owned();
    // It dies, and the others do not know yet who is next.
    for other in &cluster.controllers[1..] {
        other.know_leader(Leader::Unknown);
    }
    drop(cluster.controllers.remove(0));
    for other in &cluster.controllers {
        // Who may have been asked before.
        other.until("to hear whom it has lost", |heard| heard.lost.contains(&Some(dead.clone()))).await;
    }
    let elected = Instant::now();
    cluster.controllers[0].know_leader(Leader::At(cluster.controllers[1].address().to_owned()));
    cluster.controllers[1].know_leader(Leader::Me);
    cluster.controllers[1].until("a session", |heard| heard.sessions == 1).await;
    let took = elected.elapsed();
    assert!(took < Duration::from_secs(1), "{took:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_deposed_leader_tells_where_to_go() {
    let cluster = Cluster::new().await;
    let agent = cluster.bench.agent();
    cluster.controllers[0].until("a session", |heard| heard.sessions == 1).await;
    let next = cluster.controllers[2].address();
    cluster.controllers[2].know_leader(Leader::Me);
    cluster.controllers[0].know_leader(Leader::At(next.to_owned()));
    // The other follower knows nobody, and would be waited for in vain.
    cluster.controllers[1].know_leader(Leader::Unknown);
    cluster.controllers[0].hang_up_with(elsewhere(next));
    cluster.controllers[2].until("a session", |heard| heard.sessions == 1).await;
    agent.stop().await;
}

#[tokio::test]
async fn controllers_that_name_each_other_are_not_asked_without_end() {
    let cluster = Cluster::new().await;
    let addresses: Vec<String> = cluster.addresses().into_iter().map(str::to_owned).collect();
    for (index, controller) in cluster.controllers.iter().enumerate() {
        controller.know_leader(Leader::At(addresses[(index + 1) % 3].clone()));
    }
    let agent = cluster.bench.agent();
    let begun = Instant::now();
    cluster.controllers[2].until("asked", |heard| heard.lost.len() >= 5).await;
    assert!(begun.elapsed() > Duration::from_millis(150), "{:?}", begun.elapsed());
    cluster.controllers[1].know_leader(Leader::Me);
    cluster.controllers[1].until("a session", |heard| heard.sessions == 1).await;
    agent.stop().await;
}

#[tokio::test]
async fn a_leader_that_does_not_answer_heartbeats_is_left() {
    let cluster = Cluster::new().await;
    let agent = cluster.bench.agent();
    cluster.controllers[0].until("heartbeats", |heard| heard.heartbeats > 1).await;
    // Cut off from the others, which have elected another; its connections stand.
    cluster.controllers[2].know_leader(Leader::Me);
    cluster.controllers[1].know_leader(Leader::At(cluster.controllers[2].address().to_owned()));
    cluster.controllers[0].know_leader(Leader::Unknown);
    cluster.controllers[0].deafen(true);
    let deaf = Instant::now();
    cluster.controllers[2].until("a session", |heard| heard.sessions == 1).await;
    assert!(deaf.elapsed() >= HEARTBEAT / 2, "left too early: {:?}", deaf.elapsed());
    agent.stop().await;
}

#[tokio::test]
async fn joining_takes_effect_without_a_restart() {
    let cluster = Cluster::new().await;
    let directory = membership::directory(&cluster.bench.path().join("data"));
    directory.remove().unwrap();
    let agent = cluster.bench.agent();
    cluster.bench.controller.want(set(1, [run_task("a", spec())]));
    cluster.bench.controller.until_task(&id("a"), |status| status.state == TaskState::Running).await;

    cluster.controllers[0].want(set(7, [run_task("a", spec())]));
    cluster.join(Duration::ZERO);
    let heard = cluster.controllers[0].until("settled", |heard| heard.settled == [7]).await;
    assert_eq!(heard.lost, [None], "the controller of this machine is not lost");
    assert_eq!((cluster.bench.calls("start"), cluster.bench.calls("stop")), (vec!["start a".to_owned()], vec![]));
    agent.stop().await;
}

#[tokio::test]
async fn another_nodes_certificate_is_not_used() {
    let cluster = Cluster::new().await;
    let controllers = cluster.addresses().into_iter().map(str::to_owned).collect();
    let other = Identity { controllers, ..identity(&cluster.authority, Role::Agent, "vm2", Duration::ZERO) };
    membership::directory(&cluster.bench.path().join("data")).save(&other).unwrap();
    let agent = cluster.bench.agent();
    // Not by the socket either, to which it belongs no longer. Time is the subject: long enough to have asked.
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(cluster.bench.controller.heard().sessions, 0);
    cluster.join(Duration::ZERO);
    cluster.controllers[0].until("a session", |heard| heard.sessions == 1).await;
    let all = cluster.controllers.iter().chain([&cluster.bench.controller]);
    assert_eq!(all.map(|controller| controller.heard().sessions).sum::<u32>(), 1);
    agent.stop().await;
}

#[tokio::test]
async fn a_certificate_is_renewed_in_time_and_used_at_once() {
    let cluster = Cluster::new().await;
    cluster.join(HOUR * 3 / 4);
    let old = cluster.on_disk();
    cluster.controllers[0].introduce(&cluster.addresses(), &[]);
    let agent = cluster.bench.agent();
    let heard = cluster.controllers[0].until("a second session", |heard| heard.sessions == 2).await;
    assert_eq!(heard.renewals, 1);
    let new = cluster.on_disk();
    assert!(new.certificate().unwrap().issued > old.certificate().unwrap().issued);
    assert_eq!((new.controllers, new.authorities), (old.controllers, old.authorities));
    agent.stop().await;
}

#[tokio::test]
async fn what_the_leader_says_of_the_cluster_is_kept() {
    let cluster = Cluster::new().await;
    let agent = cluster.bench.agent();
    cluster.controllers[0].until("a session", |heard| heard.sessions == 1).await;
    let (now, next) = (cluster.authority.certificate(), authority());
    let addresses = [cluster.controllers[0].address(), "192.0.2.9:7640"];
    cluster.controllers[0].introduce(&addresses, &[now, next.certificate()]);
    until("it is on disk", || {
        let known = cluster.on_disk();
        let as_told = known.controllers == addresses && known.authorities == [now, next.certificate()];
        if as_told { Ok(()) } else { Err(known.controllers) }
    })
    .await;
    // Neither is a reason for a new session, nor for a new certificate.
    let heard = cluster.controllers[0].until("heartbeats", |heard| heard.heartbeats > 2).await;
    assert_eq!((heard.sessions, heard.renewals), (1, 0));

    // A new authority signs: the certificate follows, and until then the old one stays trusted.
    cluster.controllers[0].introduce(&addresses, &[next.certificate()]);
    cluster.controllers[0].until("a renewal", |heard| heard.renewals == 1).await;
    until("both are trusted", || {
        let trusts = cluster.on_disk().authorities;
        if trusts.contains(&now.to_vec()) { Ok(()) } else { Err(trusts) }
    })
    .await;
    agent.stop().await;
}
