//! Of each slot the last container that failed is kept on its node, whatever becomes of its tasks.

use roster_proto::{
    assignment::AssignmentSet,
    id::{Slot, TaskId},
    task::Task,
};

use super::*;
use crate::plan::HISTORY;

fn slot() -> Slot {
    Slot::Replica(1)
}

fn set(state: &ClusterState) -> AssignmentSet {
    state.assignment_set(&node())
}

/// What the planner wants, until it wants nothing more at this moment.
fn plan_on(state: &mut ClusterState, now: u64) {
    for seed in 0..100 {
        let plan = plan(state, Timestamp(now), seed + now);
        if plan.changes.is_empty() {
            return;
        }
        assert_eq!(apply(state, Command::ApplyPlan { base: plan.base, changes: plan.changes }), Outcome::Applied);
    }
    panic!("no rest");
}

fn current(state: &ClusterState) -> TaskId {
    state.current_task(&id("web"), &slot()).expect("the slot has a task").id.clone()
}

fn end(state: &mut ClusterState, task: &TaskId, how: TaskState, started: bool) {
    let status = TaskStatus { started: started.then_some(Timestamp(40)), ..TaskStatus::new(how, Timestamp(50)) };
    let reports = vec![TaskReport { task: task.clone(), status }];
    assert_eq!(apply(state, Command::Report { node: node(), reports }), Outcome::Applied);
}

#[test]
fn the_last_failure_of_a_slot_is_kept_until_the_next_and_goes_with_its_service() {
    let mut state = running();
    let (first, before) = (current(&state), set(&state));
    assert!(before.kept.is_empty());
    end(&mut state, &first, TaskState::Failed, true);
    let failed = set(&state);
    assert!(failed.kept == [first.clone()].into() && !failed.tasks.contains_key(&first));
    assert!(failed.generation > before.generation);
    let mut moved = before;
    moved.apply(moved.diff_to(&failed)).expect("it fits");
    assert_eq!(moved, failed);
    assert_eq!(ClusterState::decode(&state.encode()).expect("it is whole"), state, "a peer that begins anew agrees");

    // Neither one that could not be made nor those that end well take its place, however many there are.
    let mut now = 1_000_000;
    for how in [(TaskState::Failed, false)].into_iter().chain(vec![(TaskState::Complete, true); HISTORY + 3]) {
        now += 1_000_000_000;
        plan_on(&mut state, now);
        let task = current(&state);
        end(&mut state, &task, how.0, how.1);
        assert_eq!(set(&state).kept, [first.clone()].into());
    }
    plan_on(&mut state, now + 1_000_000_000);
    let tasks: Vec<&std::sync::Arc<Task>> = state.tasks_in(&id("web"), &slot()).collect();
    assert!(tasks.len() <= HISTORY + 2 && tasks.iter().any(|task| task.id == first), "{}", tasks.len());

    let second = current(&state);
    end(&mut state, &second, TaskState::Failed, true);
    assert_eq!(set(&state).kept, [second].into());
    plan_on(&mut state, now + 2_000_000_000);
    assert!(!state.tasks.contains_key(&first) || state.tasks_in(&id("web"), &slot()).count() <= HISTORY + 1);

    apply(&mut state, Command::RemoveService { service: id("web") });
    plan_on(&mut state, now + 3_000_000_000);
    report_all(&mut state, TaskState::Shutdown);
    plan_on(&mut state, now + 4_000_000_000);
    let left = set(&state);
    assert!(left.kept.is_empty() && left.tasks.is_empty() && state.services.is_empty(), "{left:?}");
    assert_eq!(ClusterState::decode(&state.encode()).expect("it is whole"), state);
}

#[test]
fn a_slot_that_is_scaled_away_takes_what_is_kept_of_it_along() {
    let mut state = running();
    let task = state.current_task(&id("web"), &Slot::Replica(2)).expect("two replicas").id.clone();
    end(&mut state, &task, TaskState::Failed, true);
    assert_eq!(set(&state).kept, [task].into());
    apply(&mut state, Command::Scale { replicas: BTreeMap::from([(id("web"), 1)]) });
    plan_on(&mut state, 2_000_000);
    let told = set(&state);
    assert!(told.kept.is_empty() && told.tasks.len() == 1, "{told:?}");
}
