//! A runtime whose containers are entries in a map. For tests, and it behaves: what was not started cannot be stopped,
//! what ended stays until it is removed, and everything outlives the agent that made it.
//!
//! A container's program is told by its command: `exit N` ends at once, `stubborn` ignores the stop signal, anything
//! else runs until it is stopped. The image `absent` is not to be had. Tests play the rest of the world: they end
//! containers, make probes fail, and let verbs fail or take time.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::Ipv4Addr,
    sync::{Mutex, MutexGuard},
    time::Duration,
};

use roster_proto::{
    assignment::Assignment,
    cause::Cause,
    id::TaskId,
    report::{ImageInfo, LogLine, LogStream},
    spec::{NetworkMode, TaskSpec},
    wire::{
        self, container_answer::Answer, container_request, live_input::Input, live_output::Output, live_work::Work,
    },
};
use tokio::sync::{mpsc, watch};

use super::{Ended, Exit, Observed, Phase, Prepared, Probed, Publication, Runtime, RuntimeError, Started};
use crate::{
    clock::{self, BootTime},
    runtime::linux::live::{LiveInput, LiveOutput},
    session::{Archive, Failure, Services},
};

const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

#[derive(Debug, Default)]
pub struct MemoryRuntime {
    world: Mutex<World>,
}

#[derive(Debug, Default)]
struct World {
    containers: BTreeMap<TaskId, Container>,
    started: u32,
    published: Vec<Publication>,
    /// Every call that changes something, in order: `start a`, `publish 8080->10.0.0.2:80`.
    calls: Vec<String>,
    failures: BTreeMap<&'static str, VecDeque<RuntimeError>>,
    delays: BTreeMap<&'static str, Duration>,
    prepared: Prepared,
    lease: Option<BootTime>,
}

#[derive(Debug)]
struct Container {
    phase: watch::Sender<Phase>,
    stubborn: bool,
    frozen: bool,
    sick: Option<String>,
}

impl MemoryRuntime {
    pub fn calls(&self) -> Vec<String> {
        self.world().calls.clone()
    }

    pub fn phase(&self, task: &TaskId) -> Option<Phase> {
        self.world().containers.get(task).map(|container| container.phase.borrow().clone())
    }

    pub fn published(&self) -> Vec<Publication> {
        self.world().published.clone()
    }

    /// The container ends by itself.
    pub fn end(&self, task: &TaskId, how: Exit) {
        self.world().end(task, how);
    }

    /// Probes of the container fail with this output, or pass again.
    pub fn set_sick(&self, task: &TaskId, output: Option<&str>) {
        if let Some(container) = self.world().containers.get_mut(task) {
            container.sick = output.map(str::to_owned);
        }
    }

    /// The container vanishes, as everything in /run does when the host restarts.
    pub fn lose(&self, task: &TaskId) {
        self.world().containers.remove(task);
    }

    /// The next calls of the verb fail, one for each error.
    pub fn fail(&self, verb: &'static str, errors: impl IntoIterator<Item = RuntimeError>) {
        self.world().failures.entry(verb).or_default().extend(errors);
    }

    pub fn slow_down(&self, verb: &'static str, delay: Duration) {
        self.world().delays.insert(verb, delay);
    }

    /// Until when singletons may run.
    pub fn lease(&self) -> Option<BootTime> {
        self.world().lease
    }

    /// What every image says of itself.
    pub fn set_image(&self, prepared: Prepared) {
        self.world().prepared = prepared;
    }

    fn world(&self) -> MutexGuard<'_, World> {
        self.world.lock().expect("nothing panics while it holds the lock")
    }

    /// What every verb begins with: its delay, its scripted failure, its line in the book.
    async fn enter(&self, verb: &'static str, detail: &str) -> Result<(), RuntimeError> {
        let delay = self.world().delays.get(verb).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
        let mut world = self.world();
        world.calls.push(format!("{verb} {detail}").trim_end().to_owned());
        match world.failures.get_mut(verb).and_then(VecDeque::pop_front) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }
}

impl World {
    fn end(&mut self, task: &TaskId, how: Exit) {
        if let Some(container) = self.containers.get(task) {
            container.phase.send_if_modified(|phase| {
                let running = matches!(phase, Phase::Running(_));
                if running {
                    *phase = Phase::Ended(Ended { how, at: clock::now() });
                }
                running
            });
        }
    }
}

pub fn error(step: &str, transient: bool) -> RuntimeError {
    RuntimeError { cause: Cause::StartFailed { step: step.to_owned(), error: "as the test wants".into() }, transient }
}

fn unknown(task: &TaskId) -> RuntimeError {
    RuntimeError {
        cause: Cause::StartFailed { step: "find the container".into(), error: format!("there is no {task}") },
        transient: false,
    }
}

impl Runtime for MemoryRuntime {
    async fn list(&self) -> Result<Vec<Observed>, RuntimeError> {
        self.enter("list", "").await?;
        let world = self.world();
        let observed = |(task, container): (&TaskId, &Container)| Observed {
            task: task.clone(),
            phase: container.phase.borrow().clone(),
            frozen: container.frozen,
        };
        Ok(world.containers.iter().map(observed).collect())
    }

    async fn prepare(&self, spec: &TaskSpec) -> Result<Prepared, RuntimeError> {
        self.enter("prepare", &spec.image).await?;
        if spec.image == "absent" {
            let cause = Cause::ImageUnavailable { image: spec.image.clone(), reason: "it is absent".into() };
            return Err(RuntimeError { cause, transient: false });
        }
        Ok(self.world().prepared.clone())
    }

    async fn start(&self, assignment: &Assignment) -> Result<Started, RuntimeError> {
        self.enter("start", assignment.task.as_str()).await?;
        let mut world = self.world();
        assert!(!world.containers.contains_key(&assignment.task), "{} is started beside its leftover", assignment.task);
        assert!(
            !assignment.spec.singleton || world.lease.is_some_and(|until| until > BootTime::now()),
            "{} is started without a lease",
            assignment.task
        );
        world.started += 1;
        let number = world.started;
        let bridge = assignment.spec.network == NetworkMode::Bridge;
        let address = bridge.then(|| Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 1)) + number));
        let started = Started { pid: 1000 + number, address, at: clock::now() };
        let command = assignment.spec.command.clone().unwrap_or_default();
        let stubborn = command.first().is_some_and(|word| word == "stubborn");
        let (phase, _) = watch::channel(Phase::Running(started.clone()));
        world.containers.insert(assignment.task.clone(), Container { phase, stubborn, frozen: false, sick: None });
        if let [word, code] = command.as_slice()
            && word == "exit"
        {
            let code = code.parse().expect("tests write `exit N`");
            world.end(&assignment.task, Exit::Code(code));
        }
        Ok(started)
    }

    async fn begun(&self, _: &TaskId) {}

    async fn ended(&self, task: &TaskId) -> Result<Ended, RuntimeError> {
        let mut phase = self
            .world()
            .containers
            .get(task)
            .map(|container| container.phase.subscribe())
            .ok_or_else(|| unknown(task))?;
        let last = phase.wait_for(|phase| !matches!(phase, Phase::Running(_))).await;
        match last.as_deref() {
            Ok(Phase::Ended(ended)) => Ok(ended.clone()),
            _ => Err(unknown(task)),
        }
    }

    async fn freeze(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.enter("freeze", task.as_str()).await?;
        self.world().containers.get_mut(task).ok_or_else(|| unknown(task))?.frozen = true;
        Ok(())
    }

    async fn thaw(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.enter("thaw", task.as_str()).await?;
        self.world().containers.get_mut(task).ok_or_else(|| unknown(task))?.frozen = false;
        Ok(())
    }

    async fn stop(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.enter("stop", task.as_str()).await?;
        let mut world = self.world();
        let container = world.containers.get_mut(task).ok_or_else(|| unknown(task))?;
        container.frozen = false;
        if !container.stubborn {
            world.end(task, Exit::Signal(SIGTERM));
        }
        Ok(())
    }

    async fn kill(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.enter("kill", task.as_str()).await?;
        self.world().end(task, Exit::Signal(SIGKILL));
        Ok(())
    }

    async fn probe(&self, task: &TaskId, _: &[String], _: Duration) -> Result<Probed, RuntimeError> {
        let mut world = self.world();
        let container = world.containers.get(task).ok_or_else(|| unknown(task))?;
        if container.frozen {
            world.calls.push(format!("probe {task} while it stands still"));
            return Ok(Probed { code: None, output: String::new() });
        }
        Ok(match &container.sick {
            None => Probed { code: Some(0), output: String::new() },
            Some(output) => Probed { code: Some(1), output: output.clone() },
        })
    }

    async fn keep(&self, task: &TaskId) -> Result<bool, RuntimeError> {
        self.enter("keep", task.as_str()).await?;
        let mut world = self.world();
        world.end(task, Exit::Signal(SIGKILL));
        match world.containers.get(task) {
            Some(container) => _ = container.phase.send_replace(Phase::Kept),
            None => return Ok(false),
        }
        Ok(true)
    }

    async fn remove(&self, task: &TaskId) -> Result<(), RuntimeError> {
        self.enter("remove", task.as_str()).await?;
        let mut world = self.world();
        world.end(task, Exit::Signal(SIGKILL));
        world.containers.remove(task);
        Ok(())
    }

    fn extend_lease(&self, until: BootTime) -> Result<(), RuntimeError> {
        self.world().lease = Some(until);
        Ok(())
    }

    async fn publish(&self, ports: &[Publication]) -> Result<(), RuntimeError> {
        let shown = |port: &Publication| {
            let backends: Vec<String> =
                port.backends.iter().map(|(address, target)| format!("{address}:{target}")).collect();
            format!("{}->{}", port.port, backends.join(","))
        };
        self.enter("publish", &ports.iter().map(shown).collect::<Vec<_>>().join(" ")).await?;
        self.world().published = ports.to_vec();
        Ok(())
    }
}

/// Each task has written its own name; images are kept as the length of their archive.
#[derive(Debug, Default)]
pub struct MemoryServices {
    images: Mutex<Vec<ImageInfo>>,
}

impl MemoryServices {
    fn add(&self, name: String, size: u64) -> Vec<ImageInfo> {
        let node = roster_proto::id::NodeId::new("memory").expect("a constant name");
        let (id, labels) = (format!("sha256:{name}"), BTreeMap::new());
        let image = ImageInfo { node, id, names: vec![name], size, created: None, labels };
        self.images.lock().expect("no panic under this lock").push(image.clone());
        vec![image]
    }
}

impl Services for MemoryServices {
    async fn logs(
        &self,
        task: &TaskId,
        name: String,
        query: wire::LogQuery,
        lines: mpsc::Sender<Vec<LogLine>>,
    ) -> Result<(), Failure> {
        if task.as_str().starts_with("absent") {
            return Err(Failure::NotFound(format!("no log of task {task}")));
        }
        loop {
            let line = LogLine {
                task: task.clone(),
                name: name.clone(),
                nanos: 1,
                stream: LogStream::Stdout,
                line: task.as_str().into(),
                partial: false,
            };
            if lines.send(vec![line]).await.is_err() || !query.follow {
                return Ok(());
            }
        }
    }

    async fn containers(
        &self,
        request: container_request::Request,
        answers: mpsc::Sender<wire::ContainerAnswer>,
    ) -> Result<(), Failure> {
        match request {
            container_request::Request::Signal(signal) => {
                for task in signal.tasks {
                    let answer = match task.starts_with("absent") {
                        true => Answer::Refused(format!("there is no {task}")),
                        false => Answer::Done(wire::container_answer::Done {}),
                    };
                    if answers.send(wire::ContainerAnswer { task, answer: Some(answer) }).await.is_err() {
                        break;
                    }
                }
                Ok(())
            }
            _ => Err(Failure::Invalid("these containers are entries in a map".to_owned())),
        }
    }

    /// Says again what it is told.
    async fn live(&self, task: &TaskId, _: Work, mut input: LiveInput, output: LiveOutput) -> Result<(), Failure> {
        if task.as_str().starts_with("absent") {
            return Err(Failure::NotFound(format!("task {task} does not run here")));
        }
        let say = |said| output.send(wire::LiveOutput { output: Some(said) });
        while let Some(heard) = futures::StreamExt::next(&mut input).await {
            let said = match heard.map_err(Failure::Unavailable)? {
                Input::Data(data) => Output::Stdout(data),
                Input::End(_) => Output::Exit(wire::LiveExit::default()),
                Input::Detach(_) => Output::Detached(wire::LiveDetached {}),
                Input::Resize(_) | Input::Signal(_) => continue,
            };
            let last = matches!(said, Output::Exit(_) | Output::Detached(_));
            if say(said).await.is_err() || last {
                return Ok(());
            }
        }
        Err(Failure::Unavailable("the caller broke off".to_owned()))
    }

    async fn load(&self, mut archive: Archive) -> Result<Vec<ImageInfo>, Failure> {
        let mut size = 0;
        while let Some(chunk) = futures::StreamExt::next(&mut archive).await {
            size += chunk.map_err(|error| Failure::Unavailable(error.to_string()))?.len() as u64;
        }
        Ok(self.add("loaded:latest".into(), size))
    }

    async fn pull(&self, reference: &str) -> Result<Vec<ImageInfo>, Failure> {
        Ok(self.add(reference.to_owned(), 0))
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, Failure> {
        Ok(self.images.lock().expect("no panic under this lock").clone())
    }

    async fn remove(&self, reference: &str, in_use: BTreeSet<String>) -> Result<Vec<ImageInfo>, Failure> {
        if in_use.contains(reference) {
            return Err(Failure::Precondition(format!("{reference} is in use")));
        }
        let mut images = self.images.lock().expect("no panic under this lock");
        let at = images.iter().position(|image| image.names.iter().any(|name| name == reference));
        at.map(|at| vec![images.remove(at)]).ok_or_else(|| Failure::NotFound(format!("no image {reference}")))
    }
}
