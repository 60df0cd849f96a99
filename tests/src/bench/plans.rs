//! How long one plan takes, by the number of nodes: pure, in this process.

use std::{collections::BTreeMap, time::Instant};

use roster_controller::{
    plan::plan,
    state::{
        ClusterState,
        command::{Change, Command, Entry},
    },
};
use roster_proto::{
    id::{NodeId, Version},
    node::{Capacity, NodeDescription},
    spec::{ServiceSpec, StackSpec},
    task::{TaskReport, TaskState, TaskStatus},
    time::Timestamp,
};

use super::median;

/// Nodes, and the tasks on each: as many as a cluster may have at most.
pub const SIZES: [(usize, usize); 6] = [(10, 20), (100, 20), (500, 20), (1_000, 20), (2_500, 20), (5_000, 10)];
const ROUNDS: usize = 9;

/// Milliseconds.
#[derive(Clone, Copy, Debug)]
pub struct Took {
    /// Nothing is to be done.
    pub at_rest: f64,
    /// A node is lost and its tasks are placed elsewhere.
    pub node_lost: f64,
}

#[derive(Debug, Default)]
struct World {
    state: ClusterState,
    seed: u64,
}

impl World {
    const NOW: Timestamp = Timestamp(1_000_000_000_000);

    fn apply(&mut self, command: Command) {
        let version = Version(self.state.version.0 + 1);
        self.state.apply(version, &Entry::new(Self::NOW, command));
    }

    fn plan(&mut self) -> (Vec<Change>, Version, f64) {
        self.seed += 1;
        let began = Instant::now();
        let plan = plan(&self.state, Self::NOW, self.seed);
        (plan.changes, plan.base, began.elapsed().as_secs_f64() * 1000.0)
    }

    /// Until there is nothing to do, with agents that carry everything out at once.
    fn settle(&mut self) -> Result<(), String> {
        // A plan is cut short at some thousand changes.
        for _ in 0..1_000 {
            let (changes, base, _) = self.plan();
            if changes.is_empty() {
                return Ok(());
            }
            self.apply(Command::ApplyPlan { base, changes });
            self.report();
        }
        Err("the plans never came to an end".to_owned())
    }

    fn report(&mut self) {
        let waiting = self.state.tasks.values().filter(|task| task.status.state < TaskState::Running);
        let mut by_node: BTreeMap<NodeId, Vec<TaskReport>> = BTreeMap::new();
        for task in waiting {
            if let Some(node) = &task.node {
                let mut status = TaskStatus::new(TaskState::Running, Self::NOW);
                status.started = Some(Self::NOW);
                by_node.entry(node.clone()).or_default().push(TaskReport { task: task.id.clone(), status });
            }
        }
        for (node, reports) in by_node {
            self.apply(Command::Report { node, reports });
        }
    }
}

fn node_id(number: usize) -> NodeId {
    NodeId::new(format!("n{number}")).expect("a name")
}

/// More nodes than a cluster may have are put beside each other by hand.
fn world(nodes: usize, tasks_per_node: usize) -> Result<World, String> {
    let mut world = World::default();
    let capacity = Capacity { nano_cpus: 8_000_000_000, memory: 16 << 30 };
    let description = NodeDescription { hostname: "n".to_owned(), capacity, ..NodeDescription::default() };
    world.apply(Command::RegisterNode { node: node_id(0), description: description.into() });
    let generation = world.state.nodes.get(&node_id(0)).map_or(Version(0), |node| node.generation);
    world.apply(Command::SettleNode { node: node_id(0), generation });
    let first = world.state.nodes.get(&node_id(0)).cloned().ok_or("the first node was not taken")?;
    for number in 1..nodes {
        let mut node = (*first).clone();
        node.id = node_id(number);
        world.state.nodes.insert(node.id.clone(), node.into());
    }
    // Several services, as a cluster of that size has.
    let replicas = tasks_per_node * nodes;
    let each = u32::try_from(replicas.div_ceil(10)).map_err(|error| error.to_string())?;
    let services = (0..10).map(|number| {
        let name = format!("s{number}").parse().expect("a name");
        (name, ServiceSpec::of_image("image", each))
    });
    let stack = StackSpec { name: "bench".parse().expect("a name"), services: services.collect() };
    world.apply(Command::PutStack { stack, prune: false, base: None });
    world.settle()?;
    let running = world.state.tasks.values().filter(|task| task.status.state == TaskState::Running).count();
    if running == replicas { Ok(world) } else { Err(format!("{running} of {replicas} tasks run")) }
}

pub fn measure(nodes: usize, tasks_per_node: usize) -> Result<Took, String> {
    let mut world = world(nodes, tasks_per_node)?;
    let at_rest: Vec<f64> = (0..ROUNDS).map(|_| world.plan().2).collect();
    let mut lost = Vec::new();
    for number in 0..ROUNDS.min(nodes / 4) {
        world.apply(Command::SetNodesDown { nodes: vec![node_id(number)] });
        let (changes, _, took) = world.plan();
        let placed = changes.iter().filter(|change| matches!(change, Change::CreateTask { .. })).count();
        if placed < tasks_per_node {
            return Err(format!("only {placed} tasks of a lost node are placed anew"));
        }
        lost.push(took);
        world.settle()?;
    }
    let middle = |values| median(values).ok_or_else(|| "no rounds".to_owned());
    Ok(Took { at_rest: middle(at_rest)?, node_lost: middle(lost)? })
}

/// The exponent of growth between two sizes: 1 is linear.
pub fn growth((small, took_small): (usize, f64), (large, took_large): (usize, f64)) -> f64 {
    (took_large / took_small).ln() / (large as f64 / small as f64).ln()
}
