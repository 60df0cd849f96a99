//! Whole outputs.

use roster_proto::{
    cause::{Cause, RejectReason, Rejection},
    id::{ServiceId, Slot, Version},
    node::{Availability, Capacity, Node, NodeDescription, NodeState},
    report::{
        Event, FieldChange, ImageInfo, ServiceAction, ServicePlan, ServiceView, SlotAction, SlotPlan, StackPlan,
        Subject,
    },
    spec::{Protocol, ServiceSpec},
    task::{Desired, Health, StopReason, Task, TaskState, TaskStatus},
    time::Timestamp,
    wire,
};

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000_000);

fn before(seconds: u64) -> Timestamp {
    Timestamp(NOW.0 - seconds * 1_000_000)
}

fn web() -> ServiceId {
    "hello/web".parse().unwrap()
}

fn task(slot: u32, id: &str, state: TaskState, cause: Option<Cause>) -> Task {
    Task {
        id: id.parse().unwrap(),
        service: web(),
        slot: Slot::Replica(slot),
        spec_version: Version(4),
        node: (state > TaskState::Pending).then(|| "vm1".parse().unwrap()),
        desired: Desired::Run,
        status: TaskStatus {
            cause,
            health: if state == TaskState::Running { Health::Healthy } else { Health::None },
            pid: (state == TaskState::Running).then_some(4711),
            address: (state == TaskState::Running).then(|| "10.209.0.2".parse().unwrap()),
            started: (state >= TaskState::Running).then(|| before(90)),
            finished: state.is_terminal().then(|| before(3)),
            ..TaskStatus::new(state, before(3))
        },
        created: before(100 - u64::from(slot)),
        not_before: None,
        attempt: u32::from(state == TaskState::Pending),
        replaces: None,
        shares_with: None,
        paused: false,
    }
}

fn trouble() -> Vec<Task> {
    let exited = Box::new(Cause::Exited { code: 3 });
    let until = NOW.plus(std::time::Duration::from_millis(4200));
    let shortage = RejectReason::Memory { wanted: 4 << 30, free: 3 << 28 };
    vec![
        task(1, "aaaa", TaskState::Running, None),
        task(2, "bbbb", TaskState::Pending, Some(Cause::Backoff { until, failures: 2, last: exited.clone() })),
        task(
            3,
            "cccc",
            TaskState::Pending,
            Some(Cause::NoNode {
                rejections: vec![
                    Rejection { node: "vm1".parse().unwrap(), reason: shortage },
                    Rejection { node: "vm2".parse().unwrap(), reason: RejectReason::Draining },
                ],
            }),
        ),
        task(4, "dddd", TaskState::Failed, Some(Cause::OomKilled { limit: Some(64 << 20) })),
        task(5, "eeee", TaskState::Failed, Some(Cause::GaveUp { attempts: 3, last: exited })),
        task(6, "ffff", TaskState::Failed, Some(Cause::Unhealthy { failures: 3, output: "a\u{1b}[2Jb\nc".into() })),
        task(
            7,
            "gggg",
            TaskState::Rejected,
            Some(Cause::ImageUnavailable { image: "shop:9".into(), reason: "not found".into() }),
        ),
        task(
            8,
            "hhhh",
            TaskState::Running,
            Some(Cause::Stopping {
                reason: StopReason::ScaledDown,
                kill_at: NOW.plus(std::time::Duration::from_secs(10)),
            }),
        ),
    ]
}

fn service() -> ServiceView {
    let mut spec = ServiceSpec::of_image("hello:1", 3);
    spec.task.environment.insert("MODE".into(), "test".into());
    spec.task.resources.limits.memory = Some(64 << 20);
    ServiceView {
        id: web(),
        spec,
        version: Version(9),
        spec_version: Version(4),
        ports: vec![roster_proto::assignment::PublishedPort {
            published: 8080,
            target: 80,
            protocol: Protocol::Tcp,
            host_ip: None,
        }],
        wanted: 3,
        up: 1,
        updated: 2,
        finished: 0,
        removing: false,
        converged: false,
        waits: Some("web.2 is not up yet".into()),
        created: before(100),
        updated_at: before(10),
        one_off: None,
    }
}

/// What a terminal without colours would show.
fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

#[test]
fn tasks_and_why_they_do_not_run() {
    insta::assert_snapshot!("tasks", plain(&list::tasks(&trouble(), false, NOW).render()));
    insta::assert_snapshot!("tasks_wide", plain(&list::tasks(&trouble(), true, NOW).render()));
}

#[test]
fn services_nodes_images_events() {
    insta::assert_snapshot!("services", plain(&list::services(&[service()], false, NOW).render()));
    let node = Node {
        id: "vm1".parse().unwrap(),
        description: NodeDescription {
            hostname: "vm1".into(),
            addresses: vec!["192.0.2.7".into()],
            capacity: Capacity { nano_cpus: 2_000_000_000, memory: 4 << 30 },
            labels: [("disk".to_owned(), "ssd".to_owned())].into(),
            agent_version: "0.1.0".into(),
            kernel: "6.1.0".into(),
            cgroups: "v2".into(),
            architecture: "x86_64".into(),
            runtimes: vec!["crun".into(), "runsc".into()],
        },
        state: NodeState::Ready,
        availability: Availability::Active,
        since: before(7200),
        generation: Version(3),
        labels: [].into(),
        fenced: false,
        joined: before(90_000),
    };
    let mut down = Node { id: "vm2".parse().unwrap(), state: NodeState::Down, since: before(12), ..node.clone() };
    (down.availability, down.joined) = (Availability::Drain, Timestamp(0));
    down.labels = [("disk".to_owned(), "hdd".to_owned()), ("zone".to_owned(), "b".to_owned())].into();
    (down.description.addresses, down.description.agent_version) = (Vec::new(), String::new());
    let nodes = [node.clone(), down.clone()];
    let load = list::Load { tasks: 3, nano_cpus: 500_000_000, memory: 64 << 20 };
    let of = |node: &Node| if node.id.as_str() == "vm1" { load } else { list::Load::default() };
    insta::assert_snapshot!("nodes", plain(&list::nodes(&nodes, of, false, NOW).render()));
    insta::assert_snapshot!("nodes_wide", plain(&list::nodes(&nodes, of, true, NOW).render()));
    insta::assert_snapshot!("inspect_node", plain(&inspect::node(&node, load, &trouble()[..1], NOW)));
    insta::assert_snapshot!("node_json", Format::Json.document(&views::NodeView::new(&down, load)).unwrap());
    let image = ImageInfo {
        node: "vm1".parse().unwrap(),
        id: "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".into(),
        names: vec!["hello:1".into(), "hello:latest".into()],
        size: 1_300_000,
        created: None,
        labels: Default::default(),
    };
    insta::assert_snapshot!("images", plain(&list::images(&[image], false).render()));
    let event = Event {
        version: Version(12),
        at: NOW,
        subject: Subject::Task { task: "aaaa".parse().unwrap(), service: web(), slot: Slot::Replica(1) },
        message: "web.1 is Failed on vm1".into(),
        cause: Some(Cause::Signaled { signal: 9 }),
    };
    insta::assert_snapshot!("event", plain(&list::event(&event, false)));
    insta::assert_snapshot!("event_json", Format::Json.document(&views::EventView::from(&event)).unwrap());
}

#[test]
fn one_thing_in_full() {
    insta::assert_snapshot!("inspect_service", plain(&inspect::service(&service(), &trouble()[..2], NOW)));
    let tasks = trouble();
    insta::assert_snapshot!("inspect_task", plain(&inspect::task(&tasks[1], &tasks[3..5], NOW)));
    let view = views::TaskView::from(&tasks[1]);
    insta::assert_snapshot!("task_json", Format::Json.document(&view).unwrap());
    insta::assert_snapshot!("task_yaml", Format::Yaml.document(&view).unwrap());
}

#[test]
fn a_plan_tells_fields_and_slots() {
    let slot = |number, action, node: Option<&str>| SlotPlan {
        slot: Slot::Replica(number),
        action,
        node: node.map(|node| node.parse().unwrap()),
        cause: None,
    };
    let id = |name: &str| format!("hello/{name}").parse::<ServiceId>().unwrap();
    let mut stuck = slot(1, SlotAction::Start, None);
    stuck.cause = Some(Cause::NoNode { rejections: vec![] });
    let stack = StackPlan {
        stack: "hello".parse().unwrap(),
        base: Version(7),
        services: vec![
            ServicePlan {
                service: id("web"),
                action: ServiceAction::Update,
                fields: vec![
                    FieldChange { path: "image".into(), before: Some("hello:1".into()), after: Some("hello:2".into()) },
                    FieldChange { path: "environment.MODE".into(), before: None, after: Some("a\nb".into()) },
                ],
                slots: vec![
                    slot(1, SlotAction::Replace, Some("vm1")),
                    slot(2, SlotAction::Replace, Some("vm1")),
                    slot(3, SlotAction::Start, Some("vm2")),
                ],
            },
            ServicePlan { service: id("db"), action: ServiceAction::Create, fields: vec![], slots: vec![stuck] },
            ServicePlan {
                service: id("old"),
                action: ServiceAction::Remove,
                fields: vec![],
                slots: vec![slot(1, SlotAction::Stop, Some("vm1"))],
            },
            ServicePlan {
                service: id("extra"),
                action: ServiceAction::NotInFile,
                fields: vec![],
                slots: vec![slot(1, SlotAction::Keep, Some("vm1"))],
            },
        ],
    };
    insta::assert_snapshot!("plan", plain(&plan::plan(&stack, NOW)));
    let nothing = StackPlan { services: vec![], ..stack };
    insta::assert_snapshot!("plan_nothing", plain(&plan::plan(&nothing, NOW)));
}

#[test]
fn progress_fits_the_terminal_and_tells_what_is_not_up() {
    let block = plain(&progress::block(&[service()], &trouble(), NOW, 80));
    assert!(block.lines().all(|line| unicode_width::UnicodeWidthStr::width(line) <= 80), "{block}");
    insta::assert_snapshot!("progress", block);
}

#[test]
fn what_a_container_wrote_does_not_steer_the_terminal() {
    let table = list::tasks(&trouble(), true, NOW).render();
    assert!(!plain(&table).contains('\u{1b}'));
    assert!(!table.contains("\u{1b}[2J"));
}

/// What `inspect` prints as the spec is a Compose file's service again: read back, it is the same spec.
#[test]
fn a_spec_in_composes_words_reads_back_the_same() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/good/shop.yaml");
    let options = crate::compose::Options {
        environment: [("HOME".to_owned(), "/root".to_owned()), ("TAG".to_owned(), "1.4".to_owned())].into(),
        ..Default::default()
    };
    let stack = crate::compose::load(std::path::Path::new(file), &options).unwrap().stack;
    let services: serde_json::Map<_, _> =
        stack.services.iter().map(|(name, service)| (name.to_string(), spec::compose(service))).collect();
    let document = serde_json::json!({"name": stack.name.as_str(), "services": services});
    // A dollar sign that survived the first reading must survive the second.
    let text = serde_json::to_string_pretty(&document).unwrap().replace('$', "$$");
    let folder = tempfile::tempdir().unwrap();
    let again = folder.path().join("again.yaml");
    std::fs::write(&again, &text).unwrap();
    let read = crate::compose::load(&again, &options).unwrap_or_else(|problems| panic!("{problems}\n{text}"));
    for (name, service) in &stack.services {
        assert_eq!(read.stack.services.get(name), Some(service), "{name}");
    }
}

fn controller(
    number: u64,
    name: &str,
    role: wire::controller::Role,
    reachable: bool,
    matched: u64,
) -> wire::Controller {
    wire::Controller {
        id: 0x9f3c_51d2_a7e8_0b00 + number,
        name: name.to_owned(),
        address: format!("10.0.0.{number}:7640"),
        role: role.into(),
        release: "0.1.0".to_owned(),
        protocol: 1,
        reachable,
        matched,
        last_heard: before(if reachable { 0 } else { 40 }).0,
    }
}

fn cluster_of_four() -> wire::ClusterStatus {
    use wire::controller::Role;
    let controllers = vec![
        controller(1, "vm1", Role::Voter, true, 4711),
        controller(2, "vm2", Role::Voter, true, 4709),
        controller(3, "vm3", Role::Voter, false, 4200),
        controller(4, "vm4", Role::Spare, true, 4711),
    ];
    wire::ClusterStatus {
        cluster: "k3f9x2abk3f9x2ab".to_owned(),
        leader: controllers[0].id,
        term: 7,
        commit: 4711,
        version: 4711,
        answered_by: controllers[0].id,
        controllers,
        settings: Some(wire::ClusterSettings {
            replace_controller_after: 120_000_000,
            brake_for: 0,
            certificate_lifetime: 90 * 24 * 3600 * 1_000_000,
        }),
        brake: Some(wire::Brake {
            since: before(12).0,
            until: Some(NOW.0 + 588_000_000),
            nodes: vec!["vm5".to_owned(), "vm6".to_owned()],
        }),
        authorities: vec!["5d41402abc4b2a76".to_owned()],
    }
}

#[test]
fn the_cluster() {
    let whole = cluster_of_four();
    let show =
        |status: &wire::ClusterStatus, wide| plain(&cluster::status(&cluster::ClusterView::new(status, NOW), wide));
    insta::assert_snapshot!("cluster", show(&whole, false));
    insta::assert_snapshot!("cluster_wide", show(&whole, true));
    let json = Format::Json.document(&cluster::ClusterView::new(&whole, NOW)).unwrap();
    insta::assert_snapshot!("cluster_json", json);

    // A follower that has lost the others: it says what it knows, and of the rest that it does not know.
    let mut alone = whole.clone();
    (alone.leader, alone.answered_by, alone.brake) = (0, whole.controllers[1].id, None);
    alone.controllers.iter_mut().for_each(|controller| controller.reachable = false);
    insta::assert_snapshot!("cluster_without_leader", show(&alone, false));

    let fresh = wire::ClusterStatus { leader: 1, answered_by: 1, term: 1, ..Default::default() };
    insta::assert_snapshot!("cluster_never_initialised", show(&fresh, false));
    insta::assert_snapshot!("cluster_settings", cluster::settings(&whole.settings.unwrap()));
}

#[test]
fn tokens_and_users() {
    let token = |id: &str, role: &str, uses_left| wire::TokenView {
        id: id.to_owned(),
        role: role.to_owned(),
        created: before(3600).0,
        expires: NOW.0 + 82_800_000_000,
        uses_left,
    };
    let tokens = [token("k3f9x2ab", "controller", 1), token("m4t5z6cd", "agent", 99)];
    insta::assert_snapshot!("tokens", plain(&cluster::tokens(&tokens, NOW).render()));
    assert_eq!(cluster::token_limits(&tokens[0], NOW), ", once, within 23h0m");
    let user = |name: &str, role: &str, expires| wire::UserView {
        name: name.to_owned(),
        role: role.to_owned(),
        created: before(90_000).0,
        expires,
    };
    let users = [user("ann", "admin", NOW.0 + 5_000_000), user("bob", "viewer", before(60).0)];
    insta::assert_snapshot!("users", plain(&cluster::users(&users, NOW).render()));
}
