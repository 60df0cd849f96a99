//! `node`: what the hosts are, and what is wanted of them.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write,
    time::Duration,
};

use roster_proto::{
    cause::Brief,
    id::NodeId,
    node::Node,
    task::{Desired, Task},
    wire::{self, node::Availability},
};
use tokio::time::{Instant, sleep};

use super::{all, list, now, print, write_out};
use crate::{
    cli::{self, Drain, Label, LabelChange, RemoveNodes},
    client::{self, Client},
    error::{Ending, Error},
    render::{
        Format, cluster,
        list::{self as lists, Load},
        style::BUSY,
        table::clean,
        views::NodeView,
    },
};

/// Between two looks at what is left on a node that is being drained.
const LOOK: Duration = Duration::from_millis(250);
/// Tasks that are named when they do not leave.
const TASKS_TOLD: usize = 5;

/// The nodes with what is promised on them.
pub(super) struct Listed {
    pub(super) nodes: Vec<Node>,
    pub(super) load: BTreeMap<NodeId, Load>,
    brake: Option<wire::Brake>,
}

pub(super) async fn run(args: cli::Node, client: &mut Client) -> Result<Ending, Error> {
    match args {
        cli::Node::Ls(output) => ls(output.output, client).await,
        cli::Node::Inspect { node, output } => super::inspect::one_node(client, &node, output.output).await,
        cli::Node::Drain(args) => drain(args, client).await,
        cli::Node::Activate(args) => {
            let words = "takes tasks again";
            set_each(client, &args.nodes, Availability::Active, |node| format!("{node} {words}\n")).await
        }
        cli::Node::Pause(args) => {
            let words = "takes no new tasks; what it has goes on";
            set_each(client, &args.nodes, Availability::Pause, |node| format!("{node} {words}\n")).await
        }
        cli::Node::Label(args) => label(args, client).await,
        cli::Node::Rm(args) => remove(args, client).await,
    }
}

pub(super) async fn listed(client: &mut Client) -> Result<Listed, Error> {
    let answer = client::nodes(client).await?;
    let nodes: Vec<Node> = all(answer.nodes)?;
    let load = nodes.iter().filter_map(|node| {
        let load = answer.load.get(node.id.as_str())?;
        Some((node.id.clone(), Load { tasks: load.tasks, nano_cpus: load.nano_cpus, memory: load.memory }))
    });
    Ok(Listed { load: load.collect(), nodes, brake: answer.brake })
}

async fn ls(format: Format, client: &mut Client) -> Result<Ending, Error> {
    let Listed { nodes, load, brake } = listed(client).await?;
    if nodes.is_empty() {
        list::say_why_empty(format, "no node has joined yet: start roster-agent on a host");
    }
    let of = |node: &Node| load.get(&node.id).copied().unwrap_or_default();
    print(
        format,
        || nodes.iter().map(|node| NodeView::new(node, of(node))).collect::<Vec<_>>(),
        |wide| lists::nodes(&nodes, of, wide, now()),
    )?;
    if let (Some(brake), Format::Table | Format::Wide) = (brake, format) {
        // Beside the table: what reads that finds only nodes in it.
        anstream::eprintln!("\n{BUSY}warning:{BUSY:#} {}", clean(&cluster::brake_warning(&brake, now())));
    }
    Ok(Ending::Done)
}

/// All names are understood before anything is changed.
async fn check_names(client: &mut Client, names: &[String]) -> Result<(), Error> {
    let known = listed(client).await?.nodes;
    match names.iter().find(|name| known.iter().all(|node| node.id.as_str() != **name)) {
        None => Ok(()),
        Some(unknown) => Err(no_such(unknown)),
    }
}

pub(super) fn no_such(name: &str) -> Error {
    Error::NotFound(format!("there is no node {name}: `rctl node ls` lists what there is"))
}

async fn set(client: &mut Client, node: &str, availability: Availability) -> Result<u64, Error> {
    let request = wire::SetAvailabilityRequest { node: node.to_owned(), availability: availability.into() };
    Ok(client.set_availability(request).await?.into_inner().version)
}

async fn set_each(
    client: &mut Client,
    names: &[String],
    availability: Availability,
    words: impl Fn(&str) -> String,
) -> Result<Ending, Error> {
    check_names(client, names).await?;
    for node in names {
        set(client, node, availability).await?;
        write_out(&words(node))?;
    }
    Ok(Ending::Done)
}

async fn drain(args: Drain, client: &mut Client) -> Result<Ending, Error> {
    let names = args.nodes.nodes;
    check_names(client, &names).await?;
    for node in &names {
        set(client, node, Availability::Drain).await?;
    }
    let names: BTreeSet<String> = names.into_iter().collect();
    let spoken = names.iter().cloned().collect::<Vec<_>>().join(", ");
    if args.detach {
        write_out(&format!("{spoken}: being drained; `rctl ps --node NODE` shows what is left\n"))?;
        return Ok(Ending::Done);
    }
    let began = Instant::now();
    let left = tokio::select! {
        left = until_empty(client, &names, args.timeout) => left?,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
            anstream::eprintln!("Detached: the draining goes on. `rctl ps --node NODE` shows what is left.");
            return Ok(Ending::Detached);
        }
    };
    if left.is_empty() {
        write_out(&format!("{spoken}: drained, in {}\n", Brief(began.elapsed())))?;
        return Ok(Ending::Done);
    }
    Err(Error::NotConverged(stays(&left, args.timeout)))
}

/// The tasks that are still there when the time is over.
async fn until_empty(client: &mut Client, nodes: &BTreeSet<String>, timeout: Duration) -> Result<Vec<Task>, Error> {
    let began = Instant::now();
    loop {
        let mut left = Vec::new();
        for node in nodes {
            let filter = wire::Filter { node: Some(node.clone()), ..Default::default() };
            // A task that has another beside it stands for no slot any more, and yet may run here.
            let request = wire::ListTasksRequest { filter: Some(filter), all: true };
            let tasks: Vec<Task> = all(client::tasks(client, request).await?.tasks)?;
            left.extend(tasks.into_iter().filter(|task| !task.status.state.is_terminal()));
        }
        if left.is_empty() || (timeout > Duration::ZERO && began.elapsed() >= timeout) {
            return Ok(left);
        }
        sleep(LOOK).await;
    }
}

fn stays(left: &[Task], timeout: Duration) -> String {
    let count = if left.len() == 1 { "one task is".to_owned() } else { format!("{} tasks are", left.len()) };
    let mut out = format!("{count} still there after {} (it goes on; --timeout waits longer):\n", Brief(timeout));
    for task in left.iter().take(TASKS_TOLD) {
        let node = task.node.as_ref().map(ToString::to_string).unwrap_or_default();
        let why = match (&task.status.cause, &task.desired) {
            (Some(cause), _) => lists::cause(cause, now()),
            (None, Desired::Run) => "its turn has not come: its service is moved only so many at once".to_owned(),
            (None, Desired::Stop(reason)) => format!("it is being stopped ({reason})"),
        };
        let _ = writeln!(out, "  {} ({}) on {node}: {}", task.name(), task.id, clean(&why));
    }
    if left.len() > TASKS_TOLD {
        let _ = writeln!(out, "  and {} more: `rctl ps --node NODE` lists them", left.len() - TASKS_TOLD);
    }
    out.truncate(out.trim_end().len());
    out
}

async fn label(args: Label, client: &mut Client) -> Result<Ending, Error> {
    let Label { node, changes } = args;
    let (mut put, mut remove) = (BTreeMap::new(), Vec::new());
    for change in changes {
        match change {
            LabelChange::Set(key, value) => {
                if put.insert(key.clone(), value.clone()).is_some_and(|earlier| earlier != value) {
                    return Err(Error::Usage(format!("label {key} is given two different values")));
                }
            }
            LabelChange::Remove(key) => remove.push(key),
        }
    }
    if let Some(both) = remove.iter().find(|key| put.contains_key(*key)) {
        return Err(Error::Usage(format!("label {both} is both set and removed")));
    }
    let request = wire::SetNodeLabelsRequest { node: node.clone(), put, remove };
    client.set_node_labels(request).await?;
    let known = listed(client).await?.nodes;
    let now = known.iter().find(|known| known.id.as_str() == node).ok_or_else(|| no_such(&node))?;
    let labels = lists::labels(now);
    write_out(&format!("{node}: {}\n", if labels.is_empty() { "no labels" } else { &labels }))?;
    Ok(Ending::Done)
}

async fn remove(args: RemoveNodes, client: &mut Client) -> Result<Ending, Error> {
    let RemoveNodes { nodes, force } = args;
    check_names(client, &nodes.nodes).await?;
    for node in nodes.nodes {
        client.remove_node(wire::RemoveNodeRequest { node: node.clone(), force }).await?;
        write_out(&format!("removed {node}\n"))?;
    }
    Ok(Ending::Done)
}
