use roster_proto::{
    cause::Cause,
    id::{NodeId, Slot, Version},
    spec::{ServiceSpec, StackSpec},
    task::{StopReason, TaskReport, TaskStatus},
    time::Timestamp,
};

use super::*;
use crate::state::command::{Change, Command, Entry, Outcome};

struct Bench(ClusterState);

impl Bench {
    fn new(tasks: &[(&str, &str, u32)]) -> Self {
        let mut bench = Self(ClusterState::default());
        let node: NodeId = "vm1".parse().expect("a name");
        bench.apply(Command::RegisterNode { node: node.clone(), description: Box::default() });
        for (stack, services) in [("hello", ["web", "cache"]), ("shop", ["web", "worker"])] {
            let services = services.map(|name| (name.parse().expect("a name"), ServiceSpec::of_image("img", 3)));
            let stack = StackSpec { name: stack.parse().expect("a name"), services: services.into() };
            bench.apply(Command::PutStack { stack, prune: false, base: None });
        }
        for (id, service, slot) in tasks {
            bench.add(id, service, *slot);
        }
        bench
    }

    fn apply(&mut self, command: Command) {
        let version = Version(self.0.version.0 + 1);
        let entry = Entry::new(Timestamp(version.0), command);
        assert_eq!(self.0.apply(version, &entry).outcome, Outcome::Applied);
    }

    fn change(&mut self, changes: Vec<Change>) {
        self.apply(Command::ApplyPlan { base: self.0.plan_base, changes });
    }

    fn add(&mut self, id: &str, service: &str, slot: u32) {
        let service: ServiceId = service.parse().expect("an id");
        let task: TaskId = id.parse().expect("an id");
        let create = Change::CreateTask {
            task: task.clone(),
            spec_version: self.0.services[&service].spec_version,
            service,
            slot: Slot::Replica(slot),
            not_before: None,
            attempt: 0,
            replaces: None,
            cause: None,
        };
        self.change(vec![create, Change::AssignTask { task, node: "vm1".parse().expect("a name"), shares_with: None }]);
    }

    fn report(&mut self, id: &str, state: TaskState, cause: Option<Cause>) {
        let status = TaskStatus { cause, ..TaskStatus::new(state, Timestamp(9)) };
        let reports = vec![TaskReport { task: id.parse().expect("an id"), status }];
        self.apply(Command::Report { node: "vm1".parse().expect("a name"), reports });
    }

    fn found(&self, name: &str) -> String {
        match find(&self.0, name) {
            Ok(found) => format!("{} +{}", found.task.id, found.others),
            Err(error) => error.to_string(),
        }
    }
}

#[test]
fn a_service_means_its_lowest_replica_that_runs() {
    let mut bench = Bench::new(&[("a1", "hello/cache", 1), ("a2", "hello/cache", 2), ("a3", "hello/cache", 3)]);
    assert_eq!(
        bench.found("cache"),
        "no replica of hello/cache runs: cache.1 (a1) is Assigned; cache.2 (a2) is Assigned; cache.3 (a3) is Assigned"
    );
    bench.report("a3", TaskState::Running, None);
    assert_eq!(bench.found("cache"), "a3 +0");
    bench.report("a2", TaskState::Running, None);
    assert_eq!(bench.found("hello/cache"), "a2 +1");
    // One that is about to be stopped is the last choice.
    bench.change(vec![Change::StopTask { task: "a2".parse().expect("an id"), reason: StopReason::ScaledDown }]);
    assert_eq!(bench.found("cache"), "a3 +0");
    assert_eq!(bench.found("worker"), "no replica of shop/worker runs: it has none");
}

#[test]
fn a_replica_and_a_task_mean_themselves() {
    let mut bench = Bench::new(&[("b1", "hello/web", 1), ("b2", "hello/web", 2)]);
    bench.report("b1", TaskState::Running, None);
    assert_eq!(bench.found("hello/web.1"), "b1 +0");
    assert_eq!(bench.found("b1"), "b1 +0");
    assert_eq!(bench.found("cache.1"), "there is no task \"cache.1\": there are no tasks yet");
    bench.report("b2", TaskState::Failed, Some(Cause::Exited { code: 3 }));
    assert_eq!(bench.found("hello/web.2"), "web.2 (b2) is Failed: exited with code 3; it must be Running");
    // A replacement that does not run yet is no reason to take the one that ended.
    bench.add("b3", "hello/web", 2);
    assert_eq!(bench.found("hello/web.2"), "web.2 (b3) is Assigned; it must be Running");
    // Of two services only those count that have such a replica.
    assert_eq!(bench.found("web.1"), "b1 +0");
    assert_eq!(bench.found("web.7"), "there is no task \"web.7\"; `rctl ps` lists what there is");
    bench.add("b4", "shop/web", 1);
    assert!(
        bench.found("web.1").contains("could be any of these tasks: hello/web.1, shop/web.1"),
        "{}",
        bench.found("web.1")
    );
}

#[test]
fn what_is_not_there_is_told_by_its_likeliest_reading() {
    let mut bench = Bench::new(&[("c1x", "hello/cache", 1), ("c1y", "hello/cache", 2)]);
    bench.report("c1x", TaskState::Running, None);
    assert_eq!(bench.found("cach"), "there is no service \"cach\": did you mean \"cache\"?");
    assert!(bench.found("c1").contains("is ambiguous"), "{}", bench.found("c1"));
    assert!(bench.found("web").contains("is ambiguous"), "{}", bench.found("web"));
    assert_eq!(bench.found("c1x"), "c1x +0");
    assert!(find(&bench.0, "").is_err() && find(&bench.0, "../x").is_err() && find(&bench.0, "a.b.c").is_err());
}
