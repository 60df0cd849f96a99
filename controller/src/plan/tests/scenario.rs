//! The scenario language: one step a line; a line that begins with `#` is a comment. The output repeats each step with what came of it.
//!
//! ```text
//! node NAME [cpus=N] [memory=SIZE]      an agent registers
//! node-down NAME | node-up NAME         its heartbeats stop, or come again
//! pause NAME | drain NAME | activate NAME | fence NAME | rm NAME [force] | release-brake
//! apply SERVICE [KEY=VALUE]...          puts the stack with this service changed (see `spec_of`)
//! prune SERVICE...                      puts the stack with only these services, and --prune
//! remove SERVICE | scale SERVICE=N | restart SERVICE-or-SLOT...    (a slot: its newest task)
//! once NAME SERVICE [rm]                 one task of the service's spec, forgotten at its end or not
//! plan                                  plans once and applies the plan
//! run                                   plans and lets the agents obey until nothing moves
//! obey                                  lets the agents obey, without a plan
//! state SLOT STATE [healthy|unhealthy|starting] | fail SLOT [exit=N] | reject SLOT | lease-lost SLOT | complete SLOT
//! advance DURATION
//! tasks | view SERVICE | wake | preview SERVICE [KEY=VALUE]...
//! ```

use std::{collections::BTreeMap, fmt::Write as _, sync::Arc, time::Duration};

use roster_proto::{
    cause::Cause,
    id::{ServiceId, TaskId},
    node::{Availability, Capacity, NodeDescription, NodeState},
    spec::{Mode, NetworkMode, PidMode, Port, Protocol, RestartCondition, ServiceSpec, UpdateOrder},
    task::{Desired, Health, StopReason, Task, TaskState, TaskStatus},
};

use super::world::{World, node_id, service_id, stack_of};
use crate::{
    plan::{self, preview, service_view},
    state::command::{Change, Command, Outcome},
};

const GIB: u64 = 1 << 30;

/// Plays a scenario and returns its output.
pub(super) fn play(text: &str) -> String {
    let mut stage = Stage::default();
    for line in text.lines().filter(|line| !line.trim().is_empty()) {
        writeln!(stage.output, "> {line}").expect("a string");
        let words: Vec<&str> = line.split_whitespace().collect();
        if let [verb, rest @ ..] = words.as_slice()
            && !verb.starts_with('#')
        {
            stage.step(verb, rest);
        }
        let violations = plan::check(&stage.world.state);
        assert!(violations.is_empty(), "after {line:?}: {violations:?}\n{}", stage.output);
    }
    stage.output
}

#[derive(Default)]
struct Stage {
    world: World,
    specs: BTreeMap<String, ServiceSpec>,
    /// `web.2#3`: the third task of the slot.
    names: BTreeMap<TaskId, String>,
    counts: BTreeMap<String, u32>,
    output: String,
}

impl Stage {
    fn step(&mut self, verb: &str, rest: &[&str]) {
        match (verb, rest) {
            ("node", [name, options @ ..]) => {
                let outcome = self.world.describe(name, description(options));
                self.tell(outcome);
            }
            ("node-down", [name]) => self.set_node(name, NodeState::Down),
            ("node-up", [name]) => self.set_node(name, NodeState::Ready),
            ("pause", [name]) => self.set_availability(name, Availability::Pause),
            ("drain", [name]) => self.set_availability(name, Availability::Drain),
            ("activate", [name]) => self.set_availability(name, Availability::Active),
            ("fence", [name]) => self.command(Command::SetNodeFenced { node: node_id(name) }),
            ("rm", [name, force @ ..]) => {
                self.command(Command::RemoveNode { node: node_id(name), force: force == ["force"] });
            }
            ("release-brake", []) => self.command(Command::ReleaseBrake),
            ("apply", [name, options @ ..]) => self.put(name, options),
            ("prune", names) => self.prune(names),
            ("once", [name, of, rm @ ..]) => {
                let outcome = self.world.once(name, of, rm == ["rm"]);
                self.tell(outcome);
            }
            ("remove", [name]) => {
                self.command(Command::RemoveService { service: service_id(name) });
            }
            ("scale", [pair]) => self.scale(pair),
            ("restart", names) => self.restart(names),
            ("plan", []) => self.plan(),
            ("run", []) => self.run(),
            ("obey", []) => {
                self.world.obey();
            }
            ("advance", [time]) => self.world.advance(duration(time)),
            ("state" | "fail" | "reject" | "lease-lost" | "severed" | "complete", [slot, options @ ..]) => {
                self.report(verb, slot, options)
            }
            ("tasks", []) => self.tasks(),
            ("view", [name]) => self.view(name),
            ("wake", []) => {
                let wake = self.world.think().next_wake;
                self.say(&wake.map_or("nothing to wait for".to_owned(), |at| format!("plans again at {at}")));
            }
            ("preview", [name, options @ ..]) => self.preview(name, options),
            _ => panic!("no such step: {verb} {rest:?}"),
        }
    }

    fn say(&mut self, text: &str) {
        writeln!(self.output, "  {text}").expect("a string");
    }

    fn tell(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Applied => {}
            Outcome::Unchanged => self.say("unchanged"),
            Outcome::Refused(refusal) => self.say(&format!("refused: {refusal}")),
        }
    }

    fn command(&mut self, command: Command) {
        let outcome = self.world.apply(command);
        self.tell(outcome);
    }

    fn set_availability(&mut self, name: &str, availability: Availability) {
        let outcome = self.world.set_availability(name, availability);
        self.tell(outcome);
    }

    fn set_node(&mut self, name: &str, state: NodeState) {
        let outcome = self.world.set_node(name, state);
        self.tell(outcome);
    }

    fn put(&mut self, name: &str, options: &[&str]) {
        let mut specs = self.specs.clone();
        let spec = specs.entry(name.to_owned()).or_insert_with(|| ServiceSpec::of_image("app:1", 1));
        change_spec(spec, options);
        let outcome = self.world.put(&list(&specs), false);
        if !matches!(outcome, Outcome::Refused(_)) {
            self.specs = specs;
        }
        self.tell(outcome);
    }

    fn prune(&mut self, names: &[&str]) {
        self.specs.retain(|name, _| names.contains(&name.as_str()));
        let outcome = self.world.put(&list(&self.specs.clone()), true);
        self.tell(outcome);
    }

    fn scale(&mut self, pair: &str) {
        let (name, count) = pair.split_once('=').expect("SERVICE=N");
        let replicas = BTreeMap::from([(service_id(name), count.parse().expect("a number"))]);
        let outcome = self.world.apply(Command::Scale { replicas });
        self.tell(outcome);
    }

    fn restart(&mut self, names: &[&str]) {
        let (slots, services): (Vec<&str>, Vec<&str>) = names.iter().partition(|name| name.contains('.'));
        let tasks = slots.iter().map(|slot| self.current(slot).id.clone()).collect();
        let services = services.iter().map(|name| service_id(name)).collect();
        self.command(Command::Restart { services, tasks });
    }

    fn plan(&mut self) {
        let changes = self.world.plan();
        self.print(&changes);
    }

    fn run(&mut self) {
        for _ in 0..100 {
            let changes = self.world.plan();
            self.print(&changes);
            if !self.world.obey() && changes.is_empty() {
                return;
            }
        }
        panic!("does not settle:\n{}", self.output);
    }

    fn print(&mut self, changes: &[Change]) {
        for change in changes {
            if let Change::CreateTask { task, service, slot, .. } = change {
                let name = format!("{}.{slot}", service.name);
                let count = self.counts.entry(name.clone()).or_default();
                *count += 1;
                self.names.insert(task.clone(), format!("{name}#{count}"));
            }
            let line = self.describe(change);
            self.say(&line);
        }
    }

    fn describe(&self, change: &Change) -> String {
        let name = |task: &TaskId| self.names.get(task).cloned().unwrap_or_else(|| "?".to_owned());
        match change {
            Change::CreateTask { task, attempt, cause, .. } => {
                let attempt = if *attempt > 0 { format!(", restart {attempt}") } else { String::new() };
                let cause = cause.as_ref().map(|cause| format!(": {cause}")).unwrap_or_default();
                format!("create {}{attempt}{cause}", name(task))
            }
            Change::AssignTask { task, node, shares_with } => {
                let beside = shares_with.as_ref().map(|partner| format!(" beside {}", name(partner)));
                format!("assign {} to {node}{}", name(task), beside.unwrap_or_default())
            }
            Change::Explain { task, cause } => format!("explain {}: {cause}", name(task)),
            Change::StopTask { task, reason } => format!("stop {}: {reason}", name(task)),
            Change::OrphanTask { task, cause } => format!("orphan {}: {cause}", name(task)),
            Change::GiveUp { task, cause } => format!("give up {}: {cause}", name(task)),
            Change::RemoveTask { task } => format!("forget {}", name(task)),
            Change::ForgetService { service } => format!("forget service {service}"),
            Change::EndBrake => "end the brake".to_owned(),
            Change::Retire { service } => format!("retire {service}"),
        }
    }

    fn current(&self, slot: &str) -> Arc<Task> {
        let of = |task: &&Arc<Task>| task.name() == slot || self.names.get(&task.id).is_some_and(|name| name == slot);
        let mut found: Vec<_> = self.world.state.tasks.values().filter(of).collect();
        found.sort_by_key(|task| task.created);
        Arc::clone(found.last().unwrap_or_else(|| panic!("no task of slot {slot}")))
    }

    fn report(&mut self, verb: &str, slot: &str, options: &[&str]) {
        let task = self.current(slot);
        let exit = options.iter().find_map(|option| option.strip_prefix("exit=")).unwrap_or("1");
        let image = || Cause::ImageUnavailable { image: "app:1".to_owned(), reason: "not found".to_owned() };
        let outcome = match verb {
            "fail" => {
                let code = exit.parse().expect("a number");
                self.world.report(&task, TaskState::Failed, Some(Cause::Exited { code }))
            }
            "lease-lost" => self.world.report(&task, TaskState::Failed, Some(Cause::LeaseLost)),
            "severed" => {
                let cause = Cause::Stopped { reason: StopReason::Severed };
                self.world.report(&task, TaskState::Shutdown, Some(cause))
            }
            "complete" => self.world.report(&task, TaskState::Complete, None),
            "reject" => self.world.report(&task, TaskState::Rejected, Some(image())),
            _ => self.world.report_status(&task, status(&self.world, options)),
        };
        self.tell(outcome);
    }

    fn tasks(&mut self) {
        let services: Vec<ServiceId> = self.world.state.services.keys().cloned().collect();
        let mut lines = Vec::new();
        for task in services.iter().flat_map(|service| self.world.state.tasks_of(service)) {
            let node = task.node.as_ref().map_or("-", |node| node.as_str());
            let desired = if task.desired == Desired::Run { "run" } else { "stop" };
            let cause = task.status.cause.as_ref().map(|cause| format!("  {cause}")).unwrap_or_default();
            let name = self.names.get(&task.id).cloned().unwrap_or_default();
            lines.push(format!("{name:<8} {node:<3} {desired:<4} {}{cause}", task.status.state));
        }
        lines.iter().for_each(|line| self.say(line));
    }

    fn view(&mut self, name: &str) {
        let Some(view) = service_view(&self.world.state, &service_id(name), self.world.now) else {
            return self.say("no such service");
        };
        let ports: Vec<String> = view.ports.iter().map(|p| format!(" {}->{}", p.published, p.target)).collect();
        self.say(&format!(
            "wanted {} up {} updated {} finished {} converged {}{}{}",
            view.wanted,
            view.up,
            view.updated,
            view.finished,
            view.converged,
            view.waits.map(|waits| format!(" ({waits})")).unwrap_or_default(),
            ports.concat(),
        ));
    }

    fn preview(&mut self, name: &str, options: &[&str]) {
        let mut specs = self.specs.clone();
        change_spec(specs.entry(name.to_owned()).or_insert_with(|| ServiceSpec::of_image("app:1", 1)), options);
        match preview(&self.world.state, &stack_of(&list(&specs)), false, self.world.now) {
            Err(refusal) => self.say(&format!("refused: {refusal}")),
            Ok(plan) => {
                for service in plan.services {
                    self.say(&format!("{} {:?}", service.service, service.action));
                    for field in service.fields {
                        self.say(&format!("  {}: {:?} -> {:?}", field.path, field.before, field.after));
                    }
                    for slot in service.slots {
                        let cause = slot.cause.map(|cause| format!(": {cause}")).unwrap_or_default();
                        self.say(&format!("  slot {} {:?} on {:?}{cause}", slot.slot, slot.action, slot.node));
                    }
                }
            }
        }
    }
}

fn list(specs: &BTreeMap<String, ServiceSpec>) -> Vec<(&str, ServiceSpec)> {
    specs.iter().map(|(name, spec)| (name.as_str(), spec.clone())).collect()
}

fn status(world: &World, options: &[&str]) -> TaskStatus {
    let [state, health @ ..] = options else { panic!("state SLOT STATE [HEALTH]") };
    let state = match *state {
        "Assigned" => TaskState::Assigned,
        "Preparing" => TaskState::Preparing,
        "Starting" => TaskState::Starting,
        "Running" => TaskState::Running,
        "Shutdown" => TaskState::Shutdown,
        other => panic!("no such state: {other}"),
    };
    let mut status = TaskStatus::new(state, world.now);
    status.health = match health {
        ["starting"] => Health::Starting,
        ["healthy"] => Health::Healthy,
        ["unhealthy"] => Health::Unhealthy,
        _ => Health::None,
    };
    status
}

fn change_spec(spec: &mut ServiceSpec, options: &[&str]) {
    for option in options {
        let (key, value) = option.split_once('=').expect("KEY=VALUE");
        let number = || value.parse::<u32>().expect("a number");
        match key {
            "image" => spec.task.image = value.to_owned(),
            "replicas" => spec.mode = Mode::Replicated { replicas: number() },
            "mode" => spec.mode = Mode::Global,
            "restart" => {
                spec.restart.condition = match value {
                    "none" => RestartCondition::Never,
                    "on-failure" => RestartCondition::OnFailure,
                    _ => RestartCondition::Always,
                }
            }
            "delay" => spec.restart.delay = Some(duration(value)),
            "window" => spec.restart.window = Some(duration(value)),
            "max-attempts" => spec.restart.max_attempts = Some(number()),
            "parallelism" => spec.update.parallelism = number(),
            "update-delay" => spec.update.delay = duration(value),
            "monitor" => spec.update.monitor = duration(value),
            "order" if value == "start-first" => spec.update.order = UpdateOrder::StartFirst,
            "order" => spec.update.order = UpdateOrder::StopFirst,
            "shares" => spec.task.rights.pid = PidMode::Service(value.parse().expect("a name")),
            "runtime" => spec.task.runtime = Some(value.to_owned()),
            "singleton" => spec.task.singleton = value == "true",
            "cpus" => spec.task.resources.reservations.nano_cpus = Some(cpus(value)),
            "memory" => spec.task.resources.reservations.memory = Some(size(value)),
            "network" => spec.task.network = if value == "host" { NetworkMode::Host } else { NetworkMode::None },
            "port" => spec.task.ports = vec![port(value)],
            _ => {
                let name = key.strip_prefix("env.").unwrap_or_else(|| panic!("no such option: {key}"));
                spec.task.environment.insert(name.to_owned(), value.to_owned());
            }
        }
    }
}

fn port(text: &str) -> Port {
    let (published, target) = text.split_once(':').map_or((None, text), |(p, t)| (Some(p), t));
    let number = |text: &str| text.parse().expect("a port");
    Port { target: number(target), published: published.map(number), host_ip: None, protocol: Protocol::Tcp }
}

fn description(options: &[&str]) -> NodeDescription {
    let mut capacity = Capacity { nano_cpus: 4_000_000_000, memory: 8 * GIB };
    let mut runtimes = Vec::new();
    for option in options {
        match option.split_once('=').expect("KEY=VALUE") {
            ("cpus", value) => capacity.nano_cpus = cpus(value),
            ("memory", value) => capacity.memory = size(value),
            ("runtimes", value) => runtimes = value.split(',').map(str::to_owned).collect(),
            (key, _) => panic!("no such option: {key}"),
        }
    }
    NodeDescription { capacity, runtimes, ..NodeDescription::default() }
}

fn cpus(text: &str) -> u64 {
    (text.parse::<f64>().expect("a number") * 1e9) as u64
}

fn size(text: &str) -> u64 {
    match (text.strip_suffix("GiB"), text.strip_suffix("MiB")) {
        (Some(number), _) => number.parse::<u64>().expect("a number") * GIB,
        (_, Some(number)) => number.parse::<u64>().expect("a number") * (GIB >> 10),
        _ => text.parse().expect("a size"),
    }
}

fn duration(text: &str) -> Duration {
    match (text.strip_suffix("ms"), text.strip_suffix('s')) {
        (Some(number), _) => Duration::from_millis(number.parse().expect("a number")),
        (_, Some(number)) => Duration::from_secs(number.parse().expect("a number")),
        _ => panic!("no such duration: {text}"),
    }
}
