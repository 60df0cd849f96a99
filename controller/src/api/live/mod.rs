//! Live in a container: one task is chosen, and what its caller and its agent say to each other is passed on.
//!
//! Guarantees: what arrives is checked before an agent is asked; a caller is never further ahead than
//! [`INPUT_WINDOW`], so that its signals and the new sizes of its terminal always get through; a caller that goes away
//! without detaching cancels the request, and so ends what it began. Absent: buffering beyond that window, and repeating
//! anything.

mod target;

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use roster_proto::{
    live::{INPUT_WINDOW, LAST_SIGNAL, MAX_PATH, MAX_WORD, MAX_WORDS},
    wire::{
        self, live_input::Input, live_output::Output, live_request, live_response, live_server::Live, live_work::Work,
        request::Request as AgentRequest,
    },
};
use tokio::sync::mpsc;
use tonic::{Request, Status, Streaming};

use self::target::Found;
pub(crate) use self::target::TargetError;
use super::{Api, Reply, ReplyStream, kept};
use crate::{
    dispatch::broker::{Answer, Part, Upload},
    forward::Origin,
    state::ClusterState,
};

/// In which a caller must say what it wants.
const FIRST_MESSAGE: Duration = Duration::from_secs(5);

type Replies = mpsc::Sender<Result<wire::LiveResponse, Status>>;

#[tonic::async_trait]
impl Live for Api {
    type OpenStream = ReplyStream<wire::LiveResponse>;

    async fn open(&self, request: Request<Streaming<wire::LiveRequest>>) -> Reply<Self::OpenStream> {
        let caller = request.extensions().get::<Origin>().map_or_else(String::new, |origin| origin.caller.clone());
        let mut input = request.into_inner();
        let first = tokio::time::timeout(FIRST_MESSAGE, input.message())
            .await
            .map_err(|_| Status::deadline_exceeded("the first message did not come: it must say what to do"))??;
        let Some(live_request::Part::Begin(begin)) = first.and_then(|first| first.part) else {
            return Err(Status::invalid_argument("the first message must say what to do, and where"));
        };
        let work = checked(begin.work)?;
        let state = self.cluster.read();
        let Found { task, others } = found(&state, &begin.target, begin.failed, &work)?;
        let failure = if task.status.state.is_terminal() { kept::failure(&task) } else { String::new() };
        let Some(node) = &task.node else {
            return Err(Status::internal(format!("task {} runs nowhere", task.id)));
        };
        // Arguments may be secret; the program's name says enough.
        tracing::info!(%caller, task = %task.id, name = %task.name(), %node, what = what(&work), "live in a container");
        let live = wire::TaskLive { task: task.id.to_string(), work: Some(wire::LiveWork { work: Some(work) }) };
        let (answer, upload) = self.broker.ask_with_upload(node, AgentRequest::Live(live)).await?;
        let target = wire::LiveTarget {
            task: task.id.to_string(),
            name: task.name(),
            node: node.to_string(),
            others,
            failure,
            terminal: state.task_spec(&task).is_some_and(|spec| spec.tty),
        };
        Ok(self.stream(|replies| async move {
            let told = replies.send(Ok(response(live_response::Part::Target(target)))).await;
            if told.is_err() {
                return Ok(());
            }
            let taken = AtomicU64::new(0);
            tokio::select! {
                said = pass_on(answer, &replies, &taken) => said,
                broken = feed(input, upload, &taken) => match broken? {},
            }
        }))
    }
}

/// What runs; where that cannot be, and the work can be done in what has failed, that.
fn found(state: &ClusterState, name: &str, failed: bool, work: &Work) -> Result<Found, Status> {
    let suits = match work {
        Work::Program(program) => program.tools,
        Work::CopyOut(_) => true,
        Work::CopyIn(_) | Work::Attach(_) => false,
    };
    let running = target::find(state, name).map_err(Status::from);
    if failed && !suits {
        return Err(Status::invalid_argument(
            "field failed: a failed container is entered by `rctl debug` alone, and only copied out of",
        ));
    }
    match running {
        Ok(found) if !failed => Ok(found),
        Err(refusal) if !suits => Err(refusal),
        running => {
            let none = || running.map(|found| found.task);
            Ok(Found { task: kept::running_or_kept(state, name, failed, none)?, others: 0 })
        }
    }
}

fn response(part: live_response::Part) -> wire::LiveResponse {
    wire::LiveResponse { part: Some(part) }
}

/// What the agent says, up to how it ended.
async fn pass_on(mut answer: Answer, replies: &Replies, taken: &AtomicU64) -> Result<(), Status> {
    let mut ended = false;
    while let Some(part) = answer.next().await {
        let Part::Live(output) = part? else {
            return Err(Status::internal(format!("node {} answered with something else", answer.node())));
        };
        if let Some(Output::Taken(now)) = &output.output {
            taken.fetch_add(now.bytes, Ordering::Relaxed);
        }
        if ended {
            return Err(Status::internal(format!("node {} said more after the end", answer.node())));
        }
        ended = matches!(output.output, Some(Output::Exit(_) | Output::Detached(_)));
        if replies.send(Ok(response(live_response::Part::Output(output)))).await.is_err() {
            return Ok(());
        }
    }
    if ended {
        return Ok(());
    }
    Err(Status::unavailable(format!("node {} did not say how it ended", answer.node())))
}

/// What the caller says. Ends only with an error: when the caller has no more to say, the answer is waited for.
async fn feed(
    mut input: Streaming<wire::LiveRequest>,
    upload: Upload,
    taken: &AtomicU64,
) -> Result<std::convert::Infallible, Status> {
    let mut sent = 0u64;
    while let Some(message) = input.message().await? {
        let Some(live_request::Part::Input(wire::LiveInput { input: Some(input) })) = message.part else {
            return Err(Status::invalid_argument("after the first message only input may follow"));
        };
        match &input {
            Input::Data(data) => sent = sent.saturating_add(data.len() as u64),
            Input::Signal(signal) if !(1..=LAST_SIGNAL).contains(signal) => {
                return Err(Status::invalid_argument(format!("field signal: there is no signal {signal}")));
            }
            Input::End(_) | Input::Resize(_) | Input::Signal(_) | Input::Detach(_) => {}
        }
        if sent.saturating_sub(taken.load(Ordering::Relaxed)) > INPUT_WINDOW {
            return Err(Status::resource_exhausted(format!("more than {INPUT_WINDOW} bytes of input are under way")));
        }
        if upload.send_input(wire::LiveInput { input: Some(input) }).await.is_err() {
            // The answer says why.
            break;
        }
    }
    let _kept_open = upload;
    std::future::pending().await
}

fn checked(work: Option<wire::LiveWork>) -> Result<Work, Status> {
    let work = work.and_then(|work| work.work).ok_or_else(|| Status::invalid_argument("field work: is missing"))?;
    match &work {
        Work::Attach(_) => {}
        Work::Program(program) => check_program(program).map_err(Status::invalid_argument)?,
        Work::CopyOut(wire::CopyOut { path, .. }) | Work::CopyIn(wire::CopyIn { path, .. }) => {
            if path.is_empty() || path.contains('\0') || path.len() > MAX_PATH {
                return Err(Status::invalid_argument(format!("field path: {path:?} is no path")));
            }
        }
    }
    Ok(work)
}

fn check_program(program: &wire::Program) -> Result<(), String> {
    if program.args.first().is_none_or(String::is_empty) {
        return Err("field args: name a program to run".to_owned());
    }
    let words = program.args.iter().chain(&program.env).chain(&program.user).chain(&program.working_dir);
    let mut total = 0;
    for word in words {
        if word.contains('\0') {
            return Err(format!("{word:?} contains a NUL character"));
        }
        if word.len() > MAX_WORD {
            return Err(format!("an argument or variable has {} bytes, the kernel takes {MAX_WORD}", word.len()));
        }
        // As the kernel counts: each has a pointer too.
        total += word.len() + 1 + size_of::<usize>();
    }
    if total > MAX_WORDS {
        return Err(format!("arguments and environment have {total} bytes together, more than {MAX_WORDS}"));
    }
    if let Some(variable) =
        program.env.iter().find(|variable| variable.split_once('=').is_none_or(|(name, _)| name.is_empty()))
    {
        return Err(format!("field env: {variable:?} is not NAME=VALUE"));
    }
    if program.detached && program.input {
        return Err("field detached: nobody is there to say what it reads".to_owned());
    }
    match &program.working_dir {
        Some(dir) if !dir.starts_with('/') => Err(format!("field working_dir: {dir:?} must begin with /")),
        _ => Ok(()),
    }
}

fn what(work: &Work) -> &str {
    match work {
        Work::Program(program) => program.args.first().map_or("", String::as_str),
        Work::CopyOut(_) => "(copy out)",
        Work::CopyIn(_) => "(copy in)",
        Work::Attach(_) => "(attach)",
    }
}
