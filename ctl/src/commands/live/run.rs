//! `run`: one task of a service's spec, with another command.
//!
//! Guarantees: its program begins when rctl watches, so that nothing it prints is missed and nothing it reads is lost;
//! why it does not begin is said, also when nobody is to watch it. Absent: going on after a break, for which `rctl attach` and `rctl logs` are.

use std::{collections::BTreeMap, time::Duration};

use roster_proto::{
    cause::Cause,
    id::{ServiceId, TaskId, Version},
    report::ServiceView,
    task::{Task, TaskState},
    whole::Versions,
    wire::{self, live_client::LiveClient, live_work::Work},
};
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::{
    exec,
    session::{Left, Session},
};
use crate::{
    cli::{Run, Waiting},
    client::{self, Client, Transport, Wishes},
    commands::{all, converge, follow::Patience, now, target, write_out},
    compose::command_words,
    error::{Ending, Error},
    render::{list, table::clean},
    terminal,
};

/// It has ended, or is being ended; its record goes when its node says so.
const FORGOTTEN: Duration = Duration::from_secs(30);

pub(in crate::commands) async fn run(args: Run, wishes: &Wishes) -> Result<Ending, Error> {
    let request = request(&args)?;
    let (mut containers, mut control) = client::containers(wishes).await?;
    let answer = containers.run(request).await?.into_inner();
    let id: ServiceId =
        answer.service.parse().map_err(|error| Error::Refused(format!("the controller's answer: {error}")))?;
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|error| Error::io("cannot listen for signals", error))?;
    let begun = tokio::select! {
        begun = begun(&mut control, &id, answer.version) => begun?,
        () = told_to_stop(&mut terminate) => {
            forget(&mut control, &id).await?;
            anstream::eprintln!("It was not seen to begin, and is taken back.");
            return Ok(Ending::Detached);
        }
    };
    if args.detach {
        return match begun {
            Begun::Ended(task) if task.status.started.is_none() => ended(&id, &task),
            Begun::Waits(_) | Begun::Ended(_) => write_out(&format!("{id}\n")).map(|()| Ending::Done),
        };
    }
    let ending = match begun {
        Begun::Waits(task) => watch(&args, client::live(wishes).await?, &id, &task).await,
        Begun::Ended(task) => ended(&id, &task).map(Left::Ended),
    };
    // What is not removed here, when it has ended, the controller removes.
    if args.rm && matches!(ending, Ok(Left::Ended(_))) {
        forget(&mut control, &id).await?;
    }
    match ending? {
        Left::Ended(ending) => Ok(ending),
        Left::Detached(name) => {
            anstream::eprintln!("detached from {name}; {}", ways_back(&id));
            Ok(Ending::Done)
        }
        Left::Insisted(ending) => {
            anstream::eprintln!("{id} goes on; {}", ways_back(&id));
            Ok(ending)
        }
    }
}

/// By Ctrl-C, or as `timeout` does it.
async fn told_to_stop(terminate: &mut Signal) {
    tokio::select! {
        _ = tokio::signal::ctrl_c() => {}
        _ = terminate.recv() => {}
    }
}

fn ways_back(id: &ServiceId) -> String {
    format!("`rctl attach {id}` comes back to it, `rctl rm {id}` ends it")
}

fn request(args: &Run) -> Result<wire::RunRequest, Error> {
    if !args.detach {
        exec::must_be_at_terminal(args.tty, args.interactive)?;
    }
    let pair = |variable: String| {
        let (name, value) = variable.split_once('=').unwrap_or((&variable, ""));
        (name.to_owned(), value.to_owned())
    };
    let env: BTreeMap<String, String> = exec::environment(&args.env)?.into_iter().map(pair).collect();
    let words = |values: Vec<String>| wire::StringList { values };
    Ok(wire::RunRequest {
        service: args.service.clone(),
        name: args.name.clone(),
        command: (!args.command.is_empty()).then(|| words(args.command.clone())),
        entrypoint: args.entrypoint.as_deref().map(command_words).transpose().map_err(Error::Usage)?.map(words),
        env,
        user: args.user.clone(),
        working_dir: args.workdir.clone(),
        tty: args.tty,
        input: args.interactive,
        attended: !args.detach,
        remove_when_ended: args.rm,
    })
}

enum Begun {
    /// Its program, for rctl; or it runs, when nobody wants to watch it.
    Waits(TaskId),
    Ended(Box<Task>),
}

/// Says what it waits for until it is made, or has ended without.
async fn begun(client: &mut Client, id: &ServiceId, version: u64) -> Result<Begun, Error> {
    let mut patience = Patience::default();
    let (mut last, mut told) = (version.saturating_sub(1), String::new());
    let mut stream = open(client, id, last).await?;
    loop {
        let message = match stream.next().await {
            Ok(Some(message)) => message,
            Ok(None) => return Err(lost(id, "the controller ended the stream")),
            Err(status) => {
                patience.broke(status).await.map_err(|error| lost(id, &error.to_string()))?;
                stream = open(client, id, last).await?;
                continue;
            }
        };
        patience.renew();
        last = message.version;
        let services: Vec<ServiceView> = all(message.services)?;
        let tasks: Vec<Task> = all(message.tasks)?;
        let task = tasks.into_iter().find(|task| task.service == *id);
        // With --rm what has ended may be on its way out.
        if let Some(task) = task.as_ref().filter(|task| task.status.state.is_terminal()) {
            return Ok(Begun::Ended(Box::new(task.clone())));
        }
        if services.iter().all(|view| view.id != *id || view.removing) {
            return Err(Error::Refused(format!("{id} was removed before it began")));
        }
        let Some(task) = task else { continue };
        match task.status.state {
            TaskState::Running => return Ok(Begun::Waits(task.id)),
            state => {
                let why = task.status.cause.as_ref().map(|cause| format!("{state}: {}", list::cause(cause, now())));
                if let Some(why) = why.filter(|why| *why != told) {
                    anstream::eprintln!("{} is {}", task.name(), clean(&why));
                    told = why;
                }
            }
        }
    }
}

async fn open(client: &mut Client, id: &ServiceId, after: u64) -> Result<Versions, Error> {
    let request = wire::WatchRequest { filter: Some(target::by_service(&id.to_string())), after };
    Ok(Versions::new(client.watch(request).await?.into_inner()))
}

async fn watch(args: &Run, client: LiveClient<Transport>, id: &ServiceId, task: &TaskId) -> Result<Left, Error> {
    let work = Work::Attach(wire::Attach { input: args.interactive, terminal: Some(terminal::size()) });
    let session = Session {
        target: task.to_string(),
        failed: false,
        work,
        input: args.interactive,
        terminal: Some(args.tty),
        signals: true,
        detach: Some(args.leaving.detach_keys.clone()),
        lasting: true,
    };
    session.watch(client).await.map_err(|error| lost(id, &error.to_string()))
}

fn lost(id: &ServiceId, why: &str) -> Error {
    Error::Refused(format!(
        "{why}\n{id} may go on: `rctl ps` shows it, `rctl attach {id}` comes back to it, `rctl logs {id}` has what it wrote"
    ))
}

/// Before its program could begin.
fn ended(id: &ServiceId, task: &Task) -> Result<Ending, Error> {
    let cause = task.status.cause.as_ref();
    let words = cause.map_or_else(|| task.status.state.to_string(), |cause| list::cause(cause, now()));
    match cause {
        Some(Cause::NotRun { what, reason, code }) => {
            anstream::eprintln!("error: {}", clean(&format!("{what}: {reason}")));
            Ok(Ending::Program(u8::try_from(*code).unwrap_or(u8::MAX)))
        }
        _ => Err(Error::Refused(format!("{id} did not begin: {}", clean(&words)))),
    }
}

/// Waits until it is gone. That it is gone already is as good.
async fn forget(client: &mut Client, id: &ServiceId) -> Result<(), Error> {
    let version = match client.remove_service(wire::RemoveServiceRequest { service: id.to_string() }).await {
        Ok(answer) => answer.into_inner().version,
        Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
        Err(status) => return Err(status.into()),
    };
    let goal = converge::Goal {
        version: Version(version),
        services: Default::default(),
        gone: [id.clone()].into_iter().collect(),
    };
    let waiting = Waiting { detach: false, timeout: FORGOTTEN, settle: Duration::ZERO };
    converge::wait(client, goal, waiting, true).await.map(drop)
}
