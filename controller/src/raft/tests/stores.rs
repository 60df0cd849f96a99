//! Whole stores on sled, with their threads and clocks, and channels between them.

use std::{
    collections::BTreeMap,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

use protobuf::Message as _;
use roster_proto::id::PeerId;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    super::{
        Begin, EncodedMachine, MemberChange, MembersError, Message, ProposeError, Store, StoreConfig, StoreTask,
        Transport, recover,
    },
    Words,
};

const DEADLINE: Duration = Duration::from_secs(20);
const QUEUED: usize = 1024;

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.unwrap_or_else(|_| panic!("{what} did not come"))
}

/// Who is reachable.
#[derive(Clone, Debug, Default)]
struct Network(Arc<Mutex<BTreeMap<u64, Store<Words>>>>);

impl Network {
    fn store(&self, peer: u64) -> Option<Store<Words>> {
        self.0.lock().unwrap().get(&peer).cloned()
    }
}

/// What a store sends, in order; a task delivers it.
struct Channel(mpsc::Sender<(Message, Option<Arc<EncodedMachine>>)>);

impl Transport for Channel {
    fn send(&mut self, messages: Vec<Message>) {
        for message in messages {
            // What is too much is lost.
            drop(self.0.try_send((message, None)));
        }
    }

    fn send_snapshot(&mut self, message: Message, machine: Arc<EncodedMachine>) {
        self.0.try_send((message, Some(machine))).expect("snapshots are few");
    }
}

async fn deliver(network: Network, mut queue: mpsc::Receiver<(Message, Option<Arc<EncodedMachine>>)>) {
    while let Some((message, machine)) = queue.recv().await {
        let (from, to) = (PeerId(message.from), PeerId(message.to));
        let (Some(sender), receiver) = (network.store(from.0), network.store(to.0)) else { continue };
        let bytes = message.write_to_bytes().unwrap();
        match (receiver, machine) {
            (Some(receiver), None) => drop(receiver.step(&bytes).await),
            (None, None) => sender.report_unreachable(to),
            (receiver, Some(machine)) => {
                tokio::spawn(async move {
                    let data = tokio::task::spawn_blocking(move || machine.bytes()).await.unwrap();
                    let ok = match receiver {
                        Some(receiver) => receiver.receive_snapshot(&bytes, data).await.is_ok(),
                        None => false,
                    };
                    sender.report_snapshot(to, ok).await;
                });
            }
        }
    }
}

struct Peer {
    store: Store<Words>,
    task: StoreTask,
    shutdown: CancellationToken,
}

struct Cluster {
    dir: TempDir,
    network: Network,
    peers: BTreeMap<u64, Peer>,
}

impl Cluster {
    async fn new(voters: u64) -> Self {
        let mut cluster = Self { dir: TempDir::new().unwrap(), network: Network::default(), peers: BTreeMap::new() };
        cluster.open(1, Begin::Alone).await;
        for peer in 2..=voters {
            cluster.open(peer, Begin::Joining).await;
            let id = PeerId(peer);
            cluster.store(1).change_members(vec![MemberChange::AddLearner(id)]).await.unwrap();
            let caught_up = async {
                let change = || cluster.store(1).change_members(vec![MemberChange::Promote(id)]);
                while let Err(error) = change().await {
                    assert!(matches!(error, MembersError::NotCaughtUp { .. }), "{error:?}");
                    cluster.store(1).status().changed().await.unwrap();
                }
            };
            within("promotion", caught_up).await;
        }
        cluster
    }

    fn path(&self, peer: u64) -> std::path::PathBuf {
        self.dir.path().join(peer.to_string())
    }

    async fn open(&mut self, peer: u64, begin: Begin) {
        let config = config(&self.path(peer), peer, begin);
        let (queue, sent) = mpsc::channel(QUEUED);
        let shutdown = CancellationToken::new();
        let (store, task) = Store::open(config, Channel(queue), shutdown.clone()).await.unwrap();
        self.network.0.lock().unwrap().insert(peer, store.clone());
        tokio::spawn(deliver(self.network.clone(), sent));
        self.peers.insert(peer, Peer { store, task, shutdown });
    }

    async fn stop(&mut self, peer: u64) {
        let Peer { task, shutdown, .. } = self.peers.remove(&peer).unwrap();
        self.network.0.lock().unwrap().remove(&peer);
        shutdown.cancel();
        task.ended().await.unwrap();
    }

    fn store(&self, peer: u64) -> &Store<Words> {
        &self.peers[&peer].store
    }

    /// As soon as one leads of those that run.
    async fn leader(&self) -> u64 {
        let leads = self.peers.iter().map(|(peer, running)| {
            let mut leadership = running.store.leadership();
            Box::pin(async move {
                leadership.wait_for(|now| now.is_self).await.unwrap();
                *peer
            })
        });
        within("a leader", futures::future::select_all(leads)).await.0
    }

    /// Says it to whoever leads, again and again: it may be said twice.
    async fn say(&self, word: &str) {
        let said = async {
            loop {
                let leader = self.leader().await;
                match self.store(leader).propose(word.to_owned()).await {
                    Ok(_) => return,
                    Err(ProposeError::NotLeader { .. } | ProposeError::LeadershipLost { .. }) => {}
                    Err(error) => panic!("{error:?}"),
                }
            }
        };
        within("an answer", said).await;
    }
}

fn config(dir: &Path, peer: u64, begin: Begin) -> StoreConfig {
    StoreConfig { peer: Some(PeerId(peer)), begin, snapshot_entries: 200, ..StoreConfig::new(dir) }
}

#[tokio::test]
async fn a_cluster_outlives_any_one_of_its_stores() {
    let mut cluster = Cluster::new(3).await;
    let proposals = (0..500).map(|word| {
        let store = cluster.store(1).clone();
        async move { store.propose(word.to_string()).await.unwrap() }
    });
    within("the answers", futures::future::join_all(proposals)).await;
    for round in 0..3 {
        let leader = cluster.leader().await;
        cluster.stop(leader).await;
        cluster.say(&format!("after {round}")).await;
        cluster.open(leader, Begin::Joining).await;
        for peer in 1..=3 {
            let state = within("a read", cluster.store(peer).read_index()).await.unwrap();
            let words: std::collections::BTreeSet<_> = state.list().into_iter().collect();
            assert!((0..500).all(|word| words.contains(&word.to_string())));
            assert!((0..=round).all(|round| words.contains(&format!("after {round}"))));
        }
    }
    for peer in 1..=3 {
        cluster.stop(peer).await;
    }
}

#[tokio::test]
async fn a_store_joins_by_a_snapshot_while_others_write() {
    let mut cluster = Cluster::new(3).await;
    for word in 0..30 {
        cluster.say(&format!("{word} {}", "x".repeat(100_000))).await;
    }
    let store = cluster.store(1).clone();
    let stop = CancellationToken::new();
    let writing = tokio::spawn({
        let (store, stop) = (store.clone(), stop.clone());
        async move {
            let mut said = 0;
            while !stop.is_cancelled() {
                store.propose(format!("meanwhile {said}")).await.unwrap();
                said += 1;
            }
            said
        }
    });
    cluster.open(4, Begin::Joining).await;
    store.change_members(vec![MemberChange::AddLearner(PeerId(4))]).await.unwrap();
    let mut status = store.status();
    let caught_up = |status: &super::super::RaftStatus| {
        let progress = status.progress.get(&PeerId(4));
        progress.is_some_and(|learner| !learner.snapshotting && learner.matched + 100 > status.commit)
    };
    within("the learner", status.wait_for(caught_up)).await.unwrap();
    stop.cancel();
    let said = within("the writer", writing).await.unwrap();
    let state = within("a read", cluster.store(4).read_index()).await.unwrap();
    assert_eq!(state.0.len(), 30 + said);
    assert_eq!(*state, *store.read());
    for peer in 1..=4 {
        cluster.stop(peer).await;
    }
}

#[tokio::test]
async fn the_leadership_moves_and_waiting_proposals_say_where() {
    let cluster = Cluster::new(3).await;
    assert_eq!(cluster.leader().await, 1);
    within("the transfer", cluster.store(1).transfer_leadership(PeerId(2))).await.unwrap();
    let refused = cluster.store(1).propose("refused".to_owned()).await;
    assert!(matches!(refused, Err(ProposeError::NotLeader { leader: Some(PeerId(2)) })), "{refused:?}");
    cluster.say("on").await;
    assert_eq!(cluster.leader().await, 2);
}

#[tokio::test]
async fn the_last_store_is_recovered_and_goes_on_alone() {
    let mut cluster = Cluster::new(3).await;
    for word in 0..50 {
        cluster.say(&word.to_string()).await;
    }
    for peer in 1..=3 {
        cluster.stop(peer).await;
    }
    let path = cluster.path(3);
    let (recovered, _) = recover::<Words>(&path, Box::new(|_, _, version| Ok(version))).unwrap();
    assert_eq!(recovered, PeerId(3));
    let begun = std::time::Instant::now();
    cluster.open(3, Begin::Joining).await;
    // Without an election timeout.
    assert!(cluster.store(3).leadership().borrow().is_self, "{:?}", begun.elapsed());
    cluster.say("alone").await;
    assert_eq!(cluster.store(3).read().0.len(), 51);
    assert_eq!(cluster.store(3).status().borrow().voters, [PeerId(3)]);
    cluster.stop(3).await;
}

#[tokio::test]
async fn messages_for_others_and_nonsense_are_refused() {
    let cluster = Cluster::new(1).await;
    let store = cluster.store(1);
    let message = Message { to: 2, from: 3, ..Message::default() }.write_to_bytes().unwrap();
    assert!(matches!(store.step(&message).await, Err(super::super::StepError::NotForUs { to: PeerId(2) })));
    assert!(matches!(store.step(b"\xff\xff\xff").await, Err(super::super::StepError::Malformed(_))));
    let message = Message { to: 1, from: 3, ..Message::default() }.write_to_bytes().unwrap();
    let nonsense = store.receive_snapshot(&message, bytes::Bytes::from_static(b"nonsense")).await;
    assert!(matches!(nonsense, Err(super::super::StepError::Undecodable(_))), "{nonsense:?}");
    cluster.say("on").await;
}
