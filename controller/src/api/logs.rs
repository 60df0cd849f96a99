//! The lines of many tasks as one stream.
//!
//! Without follow: the lines of every matching task that is kept, merged by time, then the end. With follow: each
//! task's lines as they come; tasks that start later are joined, and an agent that was away for a while is asked again
//! from the last line on. Absent: buffering. A slow caller slows the agents' reading down, nothing else.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BTreeSet, BinaryHeap, VecDeque},
    sync::Arc,
    time::Duration,
};

use futures::future::join_all;
use roster_proto::{
    id::TaskId,
    task::{Task, TaskState},
    time::Timestamp,
    wire,
};
use tokio::{sync::mpsc, task::JoinSet};
use tonic::Status;

use super::filter::Selection;
use crate::{
    cluster::Cluster,
    dispatch::broker::{Answer, AskError, Broker, Part},
    state::ClusterState,
    status::{invalid_id, of_nodes, retry_safe},
};

/// Tasks whose logs one caller reads at a time.
const MAX_TASKS: usize = 2_000;

/// Before an agent is asked again.
const ASK_AGAIN: Duration = Duration::from_millis(50);

type Lines = mpsc::Sender<Result<wire::LogLine, Status>>;

/// The last line that a caller has of a task. A container writes many lines in one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Position {
    nanos: u64,
    /// Of those of this moment.
    lines: u32,
}

impl Position {
    fn pass(position: Option<Self>, nanos: u64) -> Self {
        let lines = position.filter(|position| position.nanos == nanos).map_or(0, |position| position.lines);
        Self { nanos, lines: lines.saturating_add(1) }
    }
}

/// What a caller has of each task, who goes on after a break.
pub(super) fn seen(seen: BTreeMap<String, wire::LogPosition>) -> Result<BTreeMap<TaskId, Position>, Status> {
    if seen.len() > MAX_TASKS {
        return Err(Status::invalid_argument(format!("field seen: names more than {MAX_TASKS} tasks")));
    }
    let position = |(task, wire::LogPosition { nanos, lines })| {
        let task: String = task;
        Ok((task.parse().map_err(invalid_id)?, Position { nanos, lines }))
    };
    seen.into_iter().map(position).collect()
}

#[derive(Clone)]
pub(super) struct Logs {
    cluster: Cluster,
    broker: Arc<Broker>,
    selection: Selection,
    query: wire::LogQuery,
    seen: Arc<BTreeMap<TaskId, Position>>,
}

impl Logs {
    pub(super) fn new(
        cluster: Cluster,
        broker: Arc<Broker>,
        selection: Selection,
        mut query: wire::LogQuery,
        seen: BTreeMap<TaskId, Position>,
    ) -> Self {
        // Who goes on has had the end of what was there; whatever else there is now is new.
        if !seen.is_empty() {
            query.tail = None;
        }
        Self { cluster, broker, selection, query, seen: Arc::new(seen) }
    }

    pub(super) async fn send(self, lines: Lines) -> Result<(), Status> {
        if self.query.follow { self.follow(lines).await } else { self.merge(lines).await }
    }

    /// What is missing because a node could not be asked is told at the end, after what there is.
    async fn merge(self, lines: Lines) -> Result<(), Status> {
        let tasks = self.started(&self.cluster.read())?;
        let mut errors = Vec::new();
        let mut sources = Vec::with_capacity(tasks.len());
        for opened in join_all(tasks.iter().map(|task| self.source(task, self.query, self.seen_of(task)))).await {
            match opened {
                Ok(source) => sources.push(source),
                Err(error) => errors.push(error),
            }
        }
        let mut heads = BinaryHeap::with_capacity(sources.len());
        let firsts = join_all(sources.iter_mut().map(Source::next)).await;
        for (index, first) in firsts.into_iter().enumerate() {
            push_head(&mut heads, &mut errors, index, first);
        }
        while let Some(Reverse(Head { line, index, .. })) = heads.pop() {
            if lines.send(Ok(line)).await.is_err() {
                return Ok(());
            }
            let next = sources[index].next().await;
            push_head(&mut heads, &mut errors, index, next);
        }
        let absent = |error: &AskError| matches!(error, AskError::Failed { kind: wire::failure::Kind::NotFound, .. });
        // The log of an old task may have gone with its container.
        if tasks.len() > 1 {
            errors.retain(|error| !absent(error));
        }
        if errors.is_empty() { Ok(()) } else { Err(of_nodes(&errors)) }
    }

    async fn follow(self, lines: Lines) -> Result<(), Status> {
        let mut states = self.cluster.watch();
        let mut joined: BTreeSet<TaskId> = BTreeSet::new();
        let mut followers = JoinSet::new();
        let mut later = false;
        loop {
            let over = self.is_over();
            let state = states.borrow_and_update().clone();
            for task in self.started(&state)? {
                if joined.insert(task.id.clone()) {
                    // Of a task that came later, every line is new.
                    let tail = if later { None } else { self.query.tail };
                    let query = wire::LogQuery { tail, ..self.query };
                    let position = self.seen_of(&task);
                    followers.spawn(Follower { logs: self.clone(), task, query, position, lines: lines.clone() }.run());
                }
            }
            later = true;
            joined.retain(|id| state.tasks.contains_key(id));
            if followers.is_empty() && (over || self.nothing_will_come(&state)) {
                return Ok(());
            }
            drop(state);
            tokio::select! {
                changed = states.changed() => changed.map_err(|_| store_stopped())?,
                () = self.until(), if !over => {}
                Some(ended) = followers.join_next() => match ended {
                    Ok(ended) => ended?,
                    Err(error) => return Err(Status::internal(format!("a log's reader broke: {error}"))),
                },
            }
        }
    }

    /// The moment has come after which no line is wanted.
    fn is_over(&self) -> bool {
        self.query.until.is_some_and(|until| Timestamp(until) < self.cluster.now())
    }

    async fn until(&self) {
        match self.query.until {
            // So that it has passed by then.
            Some(until) => tokio::time::sleep(Timestamp(until).since(self.cluster.now()) + ASK_AGAIN).await,
            None => std::future::pending().await,
        }
    }

    fn seen_of(&self, task: &Task) -> Option<Position> {
        self.seen.get(&task.id).copied()
    }

    async fn source(
        &self,
        task: &Arc<Task>,
        mut query: wire::LogQuery,
        position: Option<Position>,
    ) -> Result<Source, AskError> {
        if let Some(position) = position {
            // The agent begins with the microsecond of the last line; what of it was seen is passed over.
            query.since = Some(position.nanos / 1_000);
            query.tail = None;
        }
        Source::open(&self.broker, task, query, position).await
    }

    /// Those that have, or had, a container, oldest first in each slot.
    fn started(&self, state: &ClusterState) -> Result<Vec<Arc<Task>>, Status> {
        let has_log = |task: &Task| {
            task.node.is_some() && (task.status.started.is_some() || task.status.state == TaskState::Running)
        };
        let services = state.services.keys().filter(|id| self.selection.has_service(id));
        let tasks = services.flat_map(|id| state.tasks_of(id));
        let tasks: Vec<_> =
            tasks.filter(|task| self.selection.has_task(task) && has_log(task)).take(MAX_TASKS + 1).cloned().collect();
        if tasks.len() > MAX_TASKS {
            return Err(Status::resource_exhausted(format!(
                "more than {MAX_TASKS} tasks match: name a service or a task"
            )));
        }
        Ok(tasks)
    }

    fn nothing_will_come(&self, state: &ClusterState) -> bool {
        match self.selection.single_task() {
            Some(id) => state.tasks.get(id).is_none_or(|task| task.status.state.is_terminal()),
            None => self.selection.names_services() && !state.services.keys().any(|id| self.selection.has_service(id)),
        }
    }
}

/// One task's lines, a part at a time.
struct Source {
    task: Arc<Task>,
    answer: Answer,
    lines: VecDeque<wire::LogLine>,
    /// Up to here, lines are passed over.
    skip: Option<Position>,
}

impl Source {
    async fn open(
        broker: &Arc<Broker>,
        task: &Arc<Task>,
        query: wire::LogQuery,
        skip: Option<Position>,
    ) -> Result<Self, AskError> {
        let node = task.node.as_ref().expect("a task that has started is bound to a node");
        let logs = wire::TaskLogs { task: task.id.to_string(), query: Some(query) };
        let answer = broker.ask(node, wire::request::Request::Logs(logs)).await?;
        Ok(Self { task: task.clone(), answer, lines: VecDeque::new(), skip })
    }

    async fn next(&mut self) -> Option<Result<wire::LogLine, AskError>> {
        loop {
            if let Some(mut line) = self.lines.pop_front() {
                if self.was_seen(line.nanos) {
                    continue;
                }
                // An agent tells of the task it was asked for, whatever it says.
                line.task = self.task.id.to_string();
                line.name = self.task.name();
                return Some(Ok(line));
            }
            match self.answer.next().await? {
                Ok(Part::Lines(lines)) => self.lines = lines.into(),
                Ok(Part::Images(_) | Part::Container(_) | Part::Live(_)) => {}
                Err(error) => return Some(Err(error)),
            }
        }
    }

    fn was_seen(&mut self, nanos: u64) -> bool {
        let Some(skip) = &mut self.skip else { return false };
        if nanos == skip.nanos && skip.lines > 0 {
            skip.lines -= 1;
            return true;
        }
        nanos < skip.nanos
    }
}

/// Follows one task until its container ends.
struct Follower {
    logs: Logs,
    task: Arc<Task>,
    query: wire::LogQuery,
    /// Of the last line that was sent.
    position: Option<Position>,
    lines: Lines,
}

impl Follower {
    async fn run(mut self) -> Result<(), Status> {
        // Subscribed before asking: a session that opens meanwhile is not missed.
        let mut opened = self.logs.broker.sessions().opened();
        loop {
            opened.mark_unchanged();
            match self.read().await {
                Ok(()) => return Ok(()),
                Err(AskError::Failed { kind: wire::failure::Kind::NotFound, .. }) if self.position.is_some() => {
                    return Ok(());
                }
                Err(AskError::Failed { kind: wire::failure::Kind::NotFound, .. })
                    if self.logs.selection.single_task().is_none() =>
                {
                    return Ok(());
                }
                Err(AskError::NoSession(_) | AskError::Lost(_) | AskError::Stalled(_)) => {
                    if !self.agent_back(&mut opened).await? {
                        return Ok(());
                    }
                }
                Err(error) => return Err(error.into()),
            }
        }
    }

    async fn read(&mut self) -> Result<(), AskError> {
        let mut source = self.logs.source(&self.task, self.query, self.position).await?;
        while let Some(line) = source.next().await {
            let line = line?;
            self.position = Some(Position::pass(self.position, line.nanos));
            if self.lines.send(Ok(line)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Waits for the node's next session; false once the task has ended, or all that is wanted was, without one.
    async fn agent_back(&self, opened: &mut tokio::sync::watch::Receiver<u64>) -> Result<bool, Status> {
        let node = self.task.node.as_ref().expect("a task that has started is bound to a node");
        let mut states = self.logs.cluster.watch();
        let gone = |state: &Arc<ClusterState>| {
            state.tasks.get(&self.task.id).is_none_or(|task| task.status.state.is_terminal())
        };
        loop {
            if self.logs.broker.sessions().get(node).is_some() {
                // Its session held and only the answer broke off, or it is back: not at once, lest this spins.
                tokio::time::sleep(ASK_AGAIN).await;
                return Ok(true);
            }
            tokio::select! {
                changed = opened.changed() => changed.map_err(|_| store_stopped())?,
                () = self.logs.until() => return Ok(false),
                ended = states.wait_for(gone) => {
                    ended.map_err(|_| store_stopped())?;
                    return Ok(false);
                }
            }
        }
    }
}

/// The next line of one source, ordered by its moment, then by its source.
struct Head {
    nanos: u64,
    index: usize,
    line: wire::LogLine,
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        (self.nanos, self.index) == (other.nanos, other.index)
    }
}

impl Eq for Head {}

impl PartialOrd for Head {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Head {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.nanos, self.index).cmp(&(other.nanos, other.index))
    }
}

fn push_head(
    heads: &mut BinaryHeap<Reverse<Head>>,
    errors: &mut Vec<AskError>,
    index: usize,
    next: Option<Result<wire::LogLine, AskError>>,
) {
    match next {
        Some(Ok(line)) => heads.push(Reverse(Head { nanos: line.nanos, index, line })),
        Some(Err(error)) => errors.push(error),
        None => {}
    }
}

fn store_stopped() -> Status {
    retry_safe("the controller's store stopped: try again")
}
