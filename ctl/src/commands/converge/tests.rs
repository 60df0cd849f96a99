use roster_proto::{
    cause::Cause,
    id::Slot,
    spec::ServiceSpec,
    task::{Desired, TaskState, TaskStatus},
};

use super::*;

const NOW: Timestamp = Timestamp(1_000_000_000);

fn view(name: &str, up: u32, finished: u32) -> ServiceView {
    ServiceView {
        id: name.parse().unwrap(),
        spec: ServiceSpec::of_image("hello", 2),
        version: Version(4),
        spec_version: Version(4),
        wanted: 2,
        up,
        updated: 2,
        finished,
        removing: false,
        converged: up == 2,
        waits: None,
        ports: Vec::new(),
        created: NOW,
        updated_at: NOW,
        one_off: None,
    }
}

fn task(service: &str, slot: u32, state: TaskState, cause: Option<Cause>) -> Task {
    Task {
        id: format!("task{slot}").parse().unwrap(),
        service: service.parse().unwrap(),
        slot: Slot::Replica(slot),
        spec_version: Version(4),
        node: None,
        desired: Desired::Run,
        status: TaskStatus { cause, ..TaskStatus::new(state, NOW) },
        created: NOW,
        not_before: None,
        attempt: 0,
        replaces: None,
        shares_with: None,
        paused: false,
    }
}

fn goal(services: &[&str], gone: &[&str]) -> Goal {
    let ids = |names: &[&str]| names.iter().map(|name| name.parse().unwrap()).collect();
    Goal { version: Version(4), services: ids(services), gone: ids(gone) }
}

fn gave_up() -> Option<Cause> {
    Some(Cause::GaveUp { attempts: 2, last: Box::new(Cause::Exited { code: 1 }) })
}

#[test]
fn removing_what_has_given_up_is_not_stuck() {
    let mut doomed = view("hello/web", 0, 1);
    doomed.removing = true;
    let seen = Seen { services: vec![doomed], tasks: vec![task("hello/web", 1, TaskState::Failed, gave_up())] };
    assert!(matches!(goal(&[], &["hello/web"]).judge(Version(4), &seen), Verdict::NotYet));
}

#[test]
fn what_an_older_spec_gave_up_says_nothing_of_the_new_one() {
    let seen = Seen {
        services: vec![view("hello/web", 0, 0)],
        tasks: vec![task("hello/web", 1, TaskState::Failed, gave_up())],
    };
    assert!(matches!(goal(&["hello/web"], &[]).judge(Version(4), &seen), Verdict::NotYet));
}

#[test]
fn a_service_whose_every_slot_rests_and_one_failed_is_stuck() {
    let seen = Seen { services: vec![view("hello/web", 1, 1)], tasks: Vec::new() };
    assert!(matches!(goal(&["hello/web"], &[]).judge(Version(4), &seen), Verdict::Stuck));
}

#[test]
fn the_replica_that_failed_is_told_before_those_that_wait() {
    let tasks = vec![
        task("hello/db", 1, TaskState::Complete, Some(Cause::Exited { code: 0 })),
        task("hello/web", 1, TaskState::Starting, None),
        task("hello/web", 2, TaskState::Pending, Some(Cause::Pulling { image: "x".to_owned() })),
        task("hello/web", 3, TaskState::Failed, gave_up()),
    ];
    let seen = Seen { services: vec![view("hello/db", 2, 0), view("hello/web", 0, 1)], tasks };
    let told: Vec<_> = in_the_way(&seen).into_iter().map(Task::name).collect();
    assert_eq!(told, ["web.3", "web.2", "web.1"]);
}
