//! Hosts, shims and leaders in a simulated world with a seed: links are cut and healed, hosts lose power, messages are
//! late or lost, leaders come and go, the brake engages and is released, people drain and change. At no moment do two
//! hosts run the singleton, and once the world is quiet everything runs as wanted.
//!
//! The state, the planner and the judgement over silent nodes are the real ones. The hosts here do what agents and
//! shims promise: a singleton runs only under a lease, which counts from when its heartbeat was sent.
//!
//! `ROSTER_SINGLETON_SEEDS=7` runs that seed alone, `0..5000` a range.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rand::{Rng, SeedableRng, rngs::StdRng};
use roster_proto::{
    assignment::AssignmentSet,
    cause::Cause,
    id::{NodeId, TaskId, Version},
    node::{Availability, Capacity, NodeDescription, NodeState},
    spec::{Mode, ServiceSpec},
    task::{Desired, TaskReport, TaskState, TaskStatus},
    time::Timestamp,
};
use tokio::time::Instant;

use super::{Liveness, Watched};
use crate::{
    plan::{
        service_view,
        tests::world::{World, node_id, service_id},
    },
    state::command::Command,
};

const SEEDS: std::ops::Range<u64> = 0..48;
const PERIOD: Duration = Duration::from_secs(1);
const STEP: Duration = Duration::from_millis(50);
/// Of each seed, with trouble and then without.
const TROUBLE: Duration = Duration::from_secs(120);
const QUIET: Duration = Duration::from_secs(90);
const HOSTS: [&str; 4] = ["a", "b", "c", "d"];
const ONLY: &str = "only";
const GRACE: Duration = Duration::from_secs(2);
const CAPACITY: Capacity = Capacity { nano_cpus: 4_000_000_000, memory: 1 << 30 };

/// On its way between a host and the leader, in one session.
#[derive(Debug)]
enum Message {
    Beat { sent: Instant },
    Ack { sent: Instant, lease: Duration },
    Set(AssignmentSet),
    Settled { generation: Version },
    Report(Vec<TaskReport>),
}

struct Parcel {
    host: usize,
    session: u64,
    leader: u64,
    message: Message,
}

#[derive(Debug)]
struct Container {
    singleton: bool,
    /// It was told to stop and will be gone then.
    gone_at: Option<(Instant, TaskState)>,
}

struct Host {
    id: NodeId,
    linked: bool,
    session: Option<u64>,
    set: AssignmentSet,
    /// The set of this session has come.
    knows: bool,
    lease: Instant,
    containers: BTreeMap<TaskId, Container>,
    ended: BTreeMap<TaskId, TaskState>,
    /// In this session.
    reported: BTreeMap<TaskId, TaskState>,
    settled: Option<Version>,
    next_beat: Instant,
}

struct Leader {
    number: u64,
    liveness: Liveness,
    since: Instant,
    /// By host: the session, and the generation of the set that was sent last.
    sent: BTreeMap<usize, (u64, Version)>,
    /// By host: the state of its node when last looked at.
    seen: BTreeMap<usize, NodeState>,
    planned: Option<Version>,
    wake: Option<Timestamp>,
}

struct Trial {
    dice: StdRng,
    world: World,
    begun: Instant,
    hosts: Vec<Host>,
    leader: Option<Leader>,
    elected_at: Instant,
    leaders: u64,
    sessions: u64,
    post: BTreeMap<(Instant, u64), Parcel>,
    parcels: u64,
    /// No more trouble, nor slow messages.
    quiet: bool,
    /// How often the singleton began somewhere.
    begins: usize,
    story: Vec<String>,
}

impl Trial {
    fn new(seed: u64) -> Self {
        let now = Instant::now();
        let mut dice = StdRng::seed_from_u64(seed);
        let host = |name: &&str, dice: &mut StdRng| Host {
            id: node_id(name),
            linked: true,
            session: None,
            set: AssignmentSet::default(),
            knows: false,
            lease: now,
            containers: BTreeMap::new(),
            ended: BTreeMap::new(),
            reported: BTreeMap::new(),
            settled: None,
            next_beat: now + PERIOD.mul_f64(dice.random::<f64>()),
        };
        let hosts = HOSTS.iter().map(|name| host(name, &mut dice)).collect();
        let mut trial = Self {
            dice,
            world: World::default(),
            begun: now,
            hosts,
            leader: None,
            elected_at: now,
            leaders: 0,
            sessions: 0,
            post: BTreeMap::new(),
            parcels: 0,
            quiet: false,
            begins: 0,
            story: Vec::new(),
        };
        trial.put(1);
        trial
    }

    fn put(&mut self, image: u32) {
        let mut only = ServiceSpec::of_image(format!("only:{image}"), 1);
        (only.task.singleton, only.task.stop_grace_period) = (true, GRACE);
        let mut all = ServiceSpec::of_image("all:1", 1);
        all.mode = Mode::Global;
        self.world.put(&[(ONLY, only), ("web", ServiceSpec::of_image(format!("web:{image}"), 3)), ("all", all)], false);
    }

    fn tell(&mut self, what: String) {
        let at = self.begun.elapsed();
        self.story.push(format!("{at:>9.2?}  {what}"));
    }

    fn send(&mut self, host: usize, session: u64, message: Message) {
        let Some(leader) = self.leader.as_ref().map(|leader| leader.number) else { return };
        // Mostly quick, now and then as slow as a connection may be before it counts as broken.
        let most = if !self.quiet && self.dice.random_ratio(1, 20) { 2_500 } else { 60 };
        let mut at = Instant::now() + Duration::from_millis(self.dice.random_range(0..most));
        // One connection keeps the order of what goes the same way.
        let up = |message: &Message| !matches!(message, Message::Ack { .. } | Message::Set(_));
        let same = self.post.iter().filter(|(_, p)| p.session == session && up(&p.message) == up(&message));
        at = same.map(|((at, _), _)| *at).max().map_or(at, |last| last.max(at));
        self.parcels += 1;
        self.post.insert((at, self.parcels), Parcel { host, session, leader, message });
    }

    fn step(&mut self) {
        self.world.now = self.world.now.plus(STEP);
        let now = Instant::now();
        if self.leader.is_none() && self.elected_at <= now {
            self.leaders += 1;
            self.leader = Some(Leader {
                number: self.leaders,
                liveness: Liveness::new(PERIOD),
                since: now,
                sent: BTreeMap::new(),
                seen: BTreeMap::new(),
                planned: None,
                wake: None,
            });
        }
        while let Some(parcel) =
            self.post.first_entry().filter(|first| first.key().0 <= now).map(|first| first.remove())
        {
            self.deliver(parcel);
        }
        for host in 0..self.hosts.len() {
            self.connect(host);
            self.beat(host);
            self.reconcile(host);
            self.speak(host);
        }
        self.lead();
        self.assert_one();
    }

    fn deliver(&mut self, Parcel { host, session, leader, message }: Parcel) {
        let id = self.hosts[host].id.clone();
        let current = self.hosts[host].session == Some(session);
        let Some(leading) = self.leader.as_ref().filter(|now| now.number == leader) else {
            // What its leader had sent may yet come.
            if let (true, Message::Ack { sent, lease }) = (current, message) {
                self.lease(host, sent, lease);
            }
            return;
        };
        match message {
            Message::Beat { sent } => {
                leading.liveness.heard(&id);
                let lease = if self.world.state.node_is_ready(&id) { leading.liveness.grace() } else { Duration::ZERO };
                self.send(host, session, Message::Ack { sent, lease });
            }
            Message::Ack { sent, lease } if current => self.lease(host, sent, lease),
            Message::Set(set) if current => (self.hosts[host].set, self.hosts[host].knows) = (set, true),
            Message::Settled { generation } if current => {
                leading.liveness.heard(&id);
                self.world.apply(Command::SettleNode { node: id, generation });
            }
            Message::Report(reports) if current => {
                leading.liveness.heard(&id);
                self.world.apply(Command::Report { node: id, reports });
            }
            Message::Ack { .. } | Message::Set(_) | Message::Settled { .. } | Message::Report(_) => {}
        }
    }

    fn lease(&mut self, host: usize, sent: Instant, lease: Duration) {
        self.hosts[host].lease = self.hosts[host].lease.max(sent + lease);
    }

    /// A session is begun wherever there can be one.
    fn connect(&mut self, host: usize) {
        if self.hosts[host].session.is_some() || !self.hosts[host].linked || self.leader.is_none() {
            return;
        }
        self.sessions += 1;
        let session = self.sessions;
        let here = &mut self.hosts[host];
        (here.session, here.knows, here.settled) = (Some(session), false, None);
        here.reported.clear();
        let node = here.id.clone();
        let description = NodeDescription { capacity: CAPACITY, ..NodeDescription::default() };
        self.world.apply(Command::RegisterNode { node: node.clone(), description: description.into() });
        if let Some(leader) = &mut self.leader {
            leader.liveness.heard(&node);
            leader.sent.remove(&host);
            leader.seen.remove(&host);
        }
    }

    fn disconnect(&mut self, host: usize) {
        self.hosts[host].session = None;
    }

    fn beat(&mut self, host: usize) {
        let now = Instant::now();
        if self.hosts[host].next_beat > now {
            return;
        }
        self.hosts[host].next_beat = now + PERIOD;
        if let Some(session) = self.hosts[host].session {
            self.send(host, session, Message::Beat { sent: now });
        }
    }

    /// What the agent and its shims do, with or without a leader.
    fn reconcile(&mut self, host: usize) {
        let now = Instant::now();
        let patience = GRACE.mul_f64(self.dice.random::<f64>());
        let here = &mut self.hosts[host];
        let leased = here.lease > now;
        let mut begun = 0;
        for (task, assignment) in &here.set.tasks {
            let wanted = assignment.desired == Desired::Run && !here.ended.contains_key(task);
            let singleton = assignment.spec.singleton;
            if wanted && !here.containers.contains_key(task) && (leased || !singleton) {
                here.containers.insert(task.clone(), Container { singleton, gone_at: None });
                begun += usize::from(singleton);
            }
        }
        let wanted = |task: &TaskId| here.set.tasks.get(task).is_some_and(|told| told.desired == Desired::Run);
        for (task, container) in &mut here.containers {
            if container.gone_at.is_some() {
                continue;
            }
            if !wanted(task) {
                container.gone_at = Some((now + patience, TaskState::Shutdown));
            } else if container.singleton && !leased {
                container.gone_at = Some((now + patience, TaskState::Failed));
            }
        }
        here.containers.retain(|task, container| {
            let gone = container.gone_at.filter(|(at, _)| *at <= now);
            here.ended.extend(gone.map(|(_, state)| (task.clone(), state)));
            gone.is_none()
        });
        // Told to stop before it ever ran.
        for (task, assignment) in &here.set.tasks {
            let stopped = assignment.desired != Desired::Run && !here.containers.contains_key(task);
            if stopped && !here.ended.contains_key(task) {
                here.ended.insert(task.clone(), TaskState::Shutdown);
            }
        }
        self.begins += begun;
    }

    /// Reports, and says that it has settled.
    fn speak(&mut self, host: usize) {
        let at = self.world.now;
        let here = &mut self.hosts[host];
        let Some(session) = here.session.filter(|_| here.knows) else { return };
        let mut reports = Vec::new();
        for task in here.set.tasks.keys() {
            let running = here.containers.contains_key(task).then_some(TaskState::Running);
            let Some(state) = here.ended.get(task).copied().or(running) else { continue };
            if here.reported.insert(task.clone(), state) != Some(state) {
                let mut status = TaskStatus::new(state, at);
                status.cause = (state == TaskState::Failed).then_some(Cause::LeaseLost);
                reports.push(TaskReport { task: task.clone(), status });
            }
        }
        let generation = here.set.generation;
        let idle = here
            .containers
            .keys()
            .all(|task| here.set.tasks.get(task).is_some_and(|assignment| assignment.desired == Desired::Run));
        let settles = idle && here.settled != Some(generation);
        if settles {
            here.settled = Some(generation);
        }
        if !reports.is_empty() {
            self.send(host, session, Message::Report(reports));
        }
        if settles {
            self.send(host, session, Message::Settled { generation });
        }
    }

    fn lead(&mut self) {
        let Some(mut leader) = self.leader.take() else { return };
        let now = Instant::now();
        let state = self.world.state.clone();
        let watched = state.nodes.values().map(|node| Watched::of(&state, node));
        let judgement = leader.liveness.judge(watched, leader.since, now);
        for command in judgement.commands() {
            self.tell(format!("{command:?}"));
            self.world.apply(command);
        }
        let wakes = leader.wake.is_some_and(|wake| wake <= self.world.now);
        if leader.planned != Some(self.world.state.version) || wakes {
            self.world.plan();
            leader.planned = Some(self.world.state.version);
            leader.wake = self.world.think().next_wake;
        }
        self.leader = Some(leader);
        for host in 0..self.hosts.len() {
            self.assign(host);
        }
    }

    /// As the leader's side of a session does: the set whenever it changes, and an end when the node turns Down.
    fn assign(&mut self, host: usize) {
        let (Some(session), Some(leader)) = (self.hosts[host].session, &mut self.leader) else { return };
        let Some(node) = self.world.state.nodes.get(&self.hosts[host].id) else { return };
        let before = leader.seen.insert(host, node.state);
        if before == Some(NodeState::Ready) && node.state == NodeState::Down {
            return self.disconnect(host);
        }
        if leader.sent.get(&host) != Some(&(session, node.generation)) {
            leader.sent.insert(host, (session, node.generation));
            let set = self.world.state.assignment_set(&self.hosts[host].id);
            self.send(host, session, Message::Set(set));
        }
    }

    fn assert_one(&self) {
        let runs = |host: &&Host| host.containers.values().any(|container| container.singleton);
        let hosts: Vec<&NodeId> = self.hosts.iter().filter(runs).map(|host| &host.id).collect();
        assert!(hosts.len() <= 1, "the singleton runs on {hosts:?}\n{}", self.story.join("\n"));
    }

    fn trouble(&mut self) {
        let host = self.dice.random_range(0..self.hosts.len());
        let name = HOSTS[host];
        match self.dice.random_range(0..100) {
            0..25 => {
                self.hosts[host].linked = false;
                self.disconnect(host);
                self.tell(format!("{name} is cut off"));
            }
            25..60 => {
                self.hosts[host].linked = true;
                self.tell(format!("{name} is linked"));
            }
            60..66 => {
                self.disconnect(host);
                self.tell(format!("{name} connects anew"));
            }
            66..71 => {
                let here = &mut self.hosts[host];
                let lost = std::mem::take(&mut here.containers).into_keys().map(|task| (task, TaskState::Shutdown));
                here.ended.extend(lost);
                (here.session, here.lease) = (None, Instant::now());
                self.tell(format!("{name} loses power"));
            }
            71..86 => {
                let silent = Duration::from_millis(self.dice.random_range(100..2_500));
                (self.leader, self.elected_at) = (None, Instant::now() + silent);
                (0..self.hosts.len()).for_each(|host| self.disconnect(host));
                self.tell(format!("nobody leads for {silent:?}"));
            }
            86..90 => {
                self.world.apply(Command::ReleaseBrake);
                self.tell("the brake is released".to_owned());
            }
            90..95 => {
                let all = [Availability::Active, Availability::Pause, Availability::Drain];
                let availability = all[self.dice.random_range(0..all.len())];
                self.world.set_availability(name, availability);
                self.tell(format!("{name}: {availability}"));
            }
            _ => {
                let image = self.dice.random_range(0..3);
                self.put(image);
                self.tell(format!("image {image}"));
            }
        }
    }

    async fn run(&mut self) {
        while self.begun.elapsed() < TROUBLE {
            if self.dice.random_ratio(1, 30) {
                self.trouble();
            }
            self.step();
            tokio::time::advance(STEP).await;
        }
        self.tell("from here on all is quiet".to_owned());
        self.quiet = true;
        for (host, name) in self.hosts.iter_mut().zip(HOSTS) {
            host.linked = true;
            self.world.set_availability(name, Availability::Active);
        }
        while self.begun.elapsed() < TROUBLE + QUIET {
            self.step();
            tokio::time::advance(STEP).await;
        }
        self.assert_as_wanted();
    }

    fn assert_as_wanted(&mut self) {
        let story = self.story.join("\n");
        for service in [ONLY, "web", "all"] {
            let view = service_view(&self.world.state, &service_id(service), self.world.now).expect("it is there");
            assert!(view.converged, "{service} is not as wanted: {view:#?}\n{story}");
        }
        let wanted: BTreeSet<&TaskId> = self
            .world
            .state
            .tasks
            .values()
            .filter(|task| !task.status.state.is_terminal())
            .map(|task| &task.id)
            .collect();
        let running: BTreeSet<&TaskId> = self.hosts.iter().flat_map(|host| host.containers.keys()).collect();
        assert_eq!(running, wanted, "what runs and what should\n{story}");
    }
}

fn seeds() -> std::ops::Range<u64> {
    let Ok(wanted) = std::env::var("ROSTER_SINGLETON_SEEDS") else { return SEEDS };
    let number = |text: &str| text.parse::<u64>().expect("ROSTER_SINGLETON_SEEDS is a seed, or FROM..TO");
    match wanted.split_once("..") {
        Some((from, to)) => number(from)..number(to),
        None => number(&wanted)..number(&wanted) + 1,
    }
}

#[tokio::test(start_paused = true)]
async fn never_two_singletons_whatever_happens_to_hosts_and_leaders() {
    let mut begins = 0;
    let seeds = seeds();
    let count = seeds.clone().count();
    for seed in seeds {
        println!("seed {seed}");
        let mut trial = Trial::new(seed);
        trial.run().await;
        begins += trial.begins;
    }
    assert!(begins > 2 * count, "the singleton hardly ever moved: it began {begins} times in {count} worlds");
}
