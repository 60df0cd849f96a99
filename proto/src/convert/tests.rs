//! Every domain value survives the wire; what is malformed is named.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::Ipv4Addr,
    sync::Arc,
    time::Duration,
};

use prost::Message;

use super::ConvertError;
use crate::{
    assignment::{Assignment, AssignmentSet, PublishedPort},
    cause::{Cause, RejectReason, Rejection},
    id::{NodeId, ServiceId, Slot, TaskId, Version},
    spec::*,
    task::{Desired, Health, StopReason, Task, TaskState, TaskStatus},
    time::Timestamp,
    wire,
};

fn node() -> NodeId {
    "vm-1".parse().unwrap()
}

fn service() -> ServiceId {
    "hello/web".parse().unwrap()
}

fn full_spec() -> ServiceSpec {
    let second = Some(Duration::from_secs(1));
    ServiceSpec {
        mode: Mode::Replicated { replicas: 3 },
        restart: RestartPolicy {
            condition: RestartCondition::OnFailure,
            delay: Some(Duration::ZERO),
            max_attempts: Some(3),
            window: second,
        },
        update: UpdatePolicy { parallelism: 2, order: UpdateOrder::StartFirst, ..UpdatePolicy::default() },
        labels: BTreeMap::from([("a".into(), "b".into())]),
        extensions: BTreeMap::from([("x-team".into(), "\"lab\"".into())]),
        task: TaskSpec {
            entrypoint: Some(vec![]),
            command: Some(vec!["httpd".into(), "-f".into()]),
            environment: BTreeMap::from([("MODE".into(), "test".into())]),
            working_dir: Some("/srv".into()),
            user: Some("www:www".into()),
            hostname: Some("web".into()),
            network: NetworkMode::Bridge,
            ports: vec![Port {
                target: 80,
                published: Some(8080),
                host_ip: Some(Ipv4Addr::LOCALHOST),
                protocol: Protocol::Udp,
            }],
            mounts: vec![
                Mount::Bind {
                    source: "/data".into(),
                    target: "/srv/data".into(),
                    read_only: true,
                    create_source: false,
                    propagation: Propagation::Rslave,
                },
                Mount::Tmpfs {
                    target: "/tmp".into(),
                    size: Some(1 << 20),
                    mode: Some(0o1777),
                    read_only: false,
                    options: TmpfsOptions { uid: Some(1), gid: Some(2), inodes: Some(3), exec: true, suid: true },
                },
            ],
            read_only: true,
            init: true,
            tty: true,
            stdin_open: true,
            attended: true,
            stop_signal: Some("SIGQUIT".into()),
            healthcheck: Some(Healthcheck {
                test: HealthTest::Shell("true".into()),
                interval: second,
                timeout: second,
                retries: Some(1),
                start_period: second,
                start_interval: second,
            }),
            resources: Resources {
                limits: Limits { nano_cpus: Some(5), memory: Some(6), pids: Some(7), disk: Some(8) },
                reservations: Reservations { nano_cpus: Some(1), memory: Some(2) },
                controls: full_controls(),
            },
            singleton: true,
            rights: full_rights(),
            kernel: KernelSettings {
                ulimits: BTreeMap::from([("nofile".into(), Ulimit { soft: Some(1), hard: None })]),
                sysctls: BTreeMap::from([("net.core.somaxconn".into(), "5".into())]),
                shm_size: Some(1 << 20),
                oom_score_adj: Some(-5),
            },
            runtime: Some("runsc".into()),
            ..TaskSpec::of_image("hello:1")
        },
    }
}

fn full_rights() -> Rights {
    Rights {
        privileged: true,
        group_add: vec!["adm".into(), "5".into()],
        cap_add: ["ALL".into()].into(),
        cap_drop: ["CHOWN".into()].into(),
        no_new_privileges: Some(false),
        seccomp: Seccomp::Profile("{}".into()),
        apparmor: Some("mine".into()),
        unmasked: true,
        devices: vec![Device { source: "/dev/a".into(), target: "/dev/b".into(), access: "rw".into() }],
        device_rules: vec!["c 1:3 r".into()],
        ipc: IpcMode::Service("db".parse().expect("a name")),
        pid: PidMode::Service("db".parse().expect("a name")),
    }
}

fn full_controls() -> Controls {
    Controls {
        memory_swap: Some(MemorySwap::Bytes(7)),
        swappiness: Some(0),
        oom_kill_disable: true,
        cpu_shares: Some(1024),
        cpu_period: Some(50_000),
        cpu_quota: Some(25_000),
        cpuset: Some("0-1".into()),
        block: BlockIo {
            weight: Some(10),
            device_weights: BTreeMap::from([("/dev/a".into(), 20)]),
            read_bps: BTreeMap::from([("/dev/a".into(), 1)]),
            write_bps: BTreeMap::from([("/dev/a".into(), 2)]),
            read_iops: BTreeMap::from([("/dev/a".into(), 3)]),
            write_iops: BTreeMap::from([("/dev/a".into(), 4)]),
        },
    }
}

fn causes() -> Vec<Cause> {
    let at = Timestamp(7);
    let exited = Cause::Exited { code: 3 };
    vec![
        Cause::Backoff { until: at, failures: 2, last: Box::new(exited.clone()) },
        Cause::NoNode {
            rejections: [
                RejectReason::Down,
                RejectReason::Paused,
                RejectReason::Draining,
                RejectReason::Cpu { wanted: 2, free: 1 },
                RejectReason::Memory { wanted: 2, free: 1 },
                RejectReason::HostPort { port: 80, protocol: Protocol::Tcp, holder: "a/b".into() },
                RejectReason::NoRuntime { runtime: "runsc".into() },
            ]
            .map(|reason| Rejection { node: node(), reason })
            .to_vec(),
        },
        Cause::Predecessor { task: "web.1".into() },
        Cause::NodeDown { node: node(), since: at },
        Cause::Pulling { image: "a".into() },
        Cause::Stopping { reason: StopReason::Updated, kill_at: at },
        exited.clone(),
        Cause::Signaled { signal: 9 },
        Cause::OomKilled { limit: Some(1) },
        Cause::OomKilled { limit: None },
        Cause::Unhealthy { failures: 3, output: "no".into() },
        Cause::Stopped { reason: StopReason::ScaledDown },
        Cause::ImageUnavailable { image: "a".into(), reason: "b".into() },
        Cause::Impossible { what: "a".into(), reason: "b".into() },
        Cause::StartFailed { step: "a".into(), error: "b".into() },
        Cause::ShimLost,
        Cause::LeaseLost,
        Cause::AwaitsAttach { until: Timestamp(9) },
        Cause::Unattended,
        Cause::Partner { task: "db.1".to_owned() },
        Cause::Stopped { reason: StopReason::Severed },
        Cause::NotRun { what: "a".into(), reason: "b".into(), code: 127 },
        Cause::Braked { node: node(), since: Timestamp(7), until: Some(Timestamp(8)) },
        Cause::Braked { node: node(), since: Timestamp(7), until: None },
        Cause::WaitsForLease { node: node(), since: Timestamp(7) },
        Cause::NodeLost { node: node() },
        Cause::GaveUp { attempts: 3, last: Box::new(exited) },
    ]
}

/// To bytes and back, as a peer would see it.
fn over_the_wire<D, W>(value: D) -> Result<D, ConvertError>
where
    W: Message + Default + From<D>,
    D: TryFrom<W, Error = ConvertError>,
{
    let bytes = W::from(value).encode_to_vec();
    D::try_from(W::decode(bytes.as_slice()).unwrap())
}

#[test]
fn a_full_spec_survives() {
    let stack =
        StackSpec { name: "hello".parse().unwrap(), services: BTreeMap::from([("web".parse().unwrap(), full_spec())]) };
    assert_eq!(over_the_wire::<_, wire::StackSpec>(stack.clone()), Ok(stack));
}

#[test]
fn every_filter_of_system_calls_and_unlimited_swap_survive() {
    for seccomp in [Seccomp::Default, Seccomp::Unconfined, Seccomp::Profile(String::new())] {
        let mut spec = TaskSpec::of_image("a");
        spec.rights.seccomp = seccomp;
        spec.resources.controls.memory_swap = Some(MemorySwap::Unlimited);
        assert_eq!(over_the_wire::<_, wire::TaskSpec>(spec.clone()), Ok(spec));
    }
}

#[test]
fn an_absent_and_an_empty_entrypoint_stay_apart() {
    for entrypoint in [None, Some(vec![]), Some(vec!["sh".to_owned()])] {
        let spec = TaskSpec { entrypoint, ..TaskSpec::of_image("a") };
        assert_eq!(over_the_wire::<_, wire::TaskSpec>(spec.clone()), Ok(spec));
    }
}

#[test]
fn every_cause_survives() {
    for cause in causes() {
        assert_eq!(over_the_wire::<_, wire::Cause>(cause.clone()), Ok(cause));
    }
}

#[test]
fn every_task_state_survives() {
    for slot in [Slot::Replica(1), Slot::Node(node())] {
        for (state, health) in [
            (TaskState::New, Health::None),
            (TaskState::Pending, Health::Starting),
            (TaskState::Running, Health::Healthy),
            (TaskState::Failed, Health::Unhealthy),
            (TaskState::Orphaned, Health::None),
        ] {
            let task = Task {
                id: "k3x9".parse().unwrap(),
                service: service(),
                slot: slot.clone(),
                spec_version: Version(4),
                node: Some(node()),
                desired: Desired::Stop(StopReason::Moved),
                status: TaskStatus {
                    health,
                    cause: Some(Cause::ShimLost),
                    pid: Some(12),
                    address: Some(Ipv4Addr::new(10, 209, 0, 2)),
                    started: Some(Timestamp(1)),
                    finished: Some(Timestamp(2)),
                    ..TaskStatus::new(state, Timestamp(5))
                },
                created: Timestamp(1),
                not_before: Some(Timestamp(2)),
                attempt: 3,
                replaces: Some("k3x8".parse().unwrap()),
                paused: true,
                shares_with: Some("t9".parse().expect("a name")),
            };
            assert_eq!(over_the_wire::<_, wire::Task>(task.clone()), Ok(task));
        }
    }
}

#[test]
fn a_diff_turns_one_set_into_the_other() {
    let assignment = |id: &str, desired| Assignment {
        task: id.parse::<TaskId>().unwrap(),
        service: service(),
        slot: Slot::Replica(1),
        desired,
        spec: Arc::new(full_spec().task),
        ports: vec![PublishedPort { published: 8080, target: 80, protocol: Protocol::Tcp, host_ip: None }],
        paused: false,
        shares_with: Some("t9".parse().expect("a name")),
    };
    let set = |generation, assignments: Vec<Assignment>| AssignmentSet {
        generation: Version(generation),
        tasks: assignments.into_iter().map(|a| (a.task.clone(), a)).collect(),
        kept: BTreeSet::from([format!("k{generation}").parse().unwrap(), "k".parse().unwrap()]),
    };
    let old = set(1, vec![assignment("a", Desired::Run), assignment("b", Desired::Run)]);
    let new = set(2, vec![assignment("b", Desired::Stop(StopReason::Updated)), assignment("c", Desired::Run)]);
    let diff = over_the_wire::<_, wire::AssignmentDiff>(old.diff_to(&new)).unwrap();
    assert_eq!((diff.put.len(), diff.remove.len(), diff.keep.len(), diff.drop.len()), (2, 1, 1, 1));

    let mut moved = over_the_wire::<_, wire::AssignmentSet>(old).unwrap();
    moved.apply(diff.clone()).unwrap();
    assert_eq!(moved, new);
    assert!(moved.apply(diff).is_err(), "an increment fits once");
}

#[test]
fn what_is_malformed_is_named() {
    let mut spec = wire::ServiceSpec::from(full_spec());
    spec.task.as_mut().unwrap().ports[0].target = 70_000;
    let stack = wire::StackSpec { name: "hello".into(), services: BTreeMap::from([("web".into(), spec)]) };
    let error = StackSpec::try_from(stack).unwrap_err();
    assert_eq!(error.to_string(), "field services.web.task.ports[0].target: 70000 is not a port: use 1 to 65535");

    for bad in ["", "../x", "A", "-a", "a.b", &"a".repeat(64)] {
        assert!(bad.parse::<TaskId>().is_err(), "{bad:?} must not become a task id");
    }
    let status = wire::TaskStatus { state: 99, ..TaskStatus::new(TaskState::Running, Timestamp(1)).into() };
    assert_eq!(
        TaskStatus::try_from(status).unwrap_err().to_string(),
        "field state: value 99 is not known to this version of Roster"
    );
}

#[test]
fn causes_nested_without_end_are_refused() {
    let mut cause = wire::Cause::from(Cause::ShimLost);
    for _ in 0..10 {
        cause = wire::Cause {
            kind: Some(wire::cause::Kind::GaveUp(Box::new(wire::cause::GaveUp {
                attempts: 1,
                last: Some(Box::new(cause)),
            }))),
        };
    }
    assert!(Cause::try_from(cause).is_err());
}
