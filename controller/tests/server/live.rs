//! Live calls: what their callers and agents may say, and who hears of whose end.

use bytes::Bytes;
use roster_proto::{
    live::INPUT_WINDOW,
    wire::{
        self, answer_part::Part, live_client::LiveClient, live_input::Input, live_output::Output, live_request,
        live_response, live_work::Work, request::Request,
    },
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use crate::harness::{Agent, Controller, converged, stack, within};

type Replies = Streaming<wire::LiveResponse>;

fn begin(program: wire::Program) -> live_request::Part {
    let work = Some(wire::LiveWork { work: Some(Work::Program(program)) });
    live_request::Part::Begin(wire::LiveBegin { target: "web".to_owned(), work, failed: false })
}

fn program(args: &[&str]) -> wire::Program {
    wire::Program { args: args.iter().map(ToString::to_string).collect(), input: true, ..Default::default() }
}

fn input(input: Input) -> live_request::Part {
    live_request::Part::Input(wire::LiveInput { input: Some(input) })
}

fn said(output: Output) -> Part {
    Part::Live(wire::LiveOutput { output: Some(output) })
}

struct Call {
    requests: mpsc::Sender<wire::LiveRequest>,
    replies: Result<Replies, Status>,
}

async fn open(controller: &Controller, first: live_request::Part) -> Call {
    let (requests, stream) = mpsc::channel(32);
    requests.send(wire::LiveRequest { part: Some(first) }).await.expect("there is room");
    let mut client = LiveClient::new(controller.connect().await);
    let replies = within("an answer", client.open(ReceiverStream::new(stream))).await;
    Call { requests, replies: replies.map(tonic::Response::into_inner) }
}

impl Call {
    async fn say(&self, part: live_request::Part) {
        self.requests.send(wire::LiveRequest { part: Some(part) }).await.expect("the call is open");
    }

    async fn next(&mut self) -> Result<Option<live_response::Part>, Status> {
        let replies = self.replies.as_mut().expect("the call was taken");
        Ok(within("a reply", replies.message()).await?.and_then(|reply| reply.part))
    }

    async fn target(&mut self) -> wire::LiveTarget {
        match self.next().await {
            Ok(Some(live_response::Part::Target(target))) => target,
            other => panic!("not a target: {other:?}"),
        }
    }

    /// The end, passing over what comes before it.
    async fn end(mut self) -> Status {
        loop {
            match self.next().await {
                Ok(Some(_)) => {}
                Ok(None) => return Status::ok(""),
                Err(status) => return status,
            }
        }
    }
}

async fn with_one_task() -> (Controller, Agent) {
    let controller = Controller::start().await;
    let mut agent = Agent::join(&controller, "vm1").await;
    controller.apply(stack("hello", &[("web", 1)])).await.expect("applied");
    agent.work_until(controller.watch("convergence", converged)).await;
    (controller, agent)
}

#[tokio::test]
async fn what_both_say_is_passed_on_up_to_the_end() {
    let (controller, mut agent) = with_one_task().await;
    let mut call = open(&controller, begin(program(&["cat"]))).await;
    let request = agent.next_request().await;
    let Some(Request::Live(live)) = &request.request else { panic!("not live: {request:?}") };
    let target = call.target().await;
    assert_eq!((target.name.as_str(), target.node.as_str(), target.others), ("web.1", "vm1", 0));
    assert_eq!(live.task, target.task);

    call.say(input(Input::Data(Bytes::from_static(b"abc")))).await;
    call.say(input(Input::Signal(2))).await;
    call.say(input(Input::End(wire::LiveEnd {}))).await;
    let upload = wire::UploadRequest { request_id: request.id.clone() };
    let mut upload = within("the input", agent.dispatch.upload(upload)).await.expect("input").into_inner();
    let mut heard = Vec::new();
    for _ in 0..3 {
        let chunk = within("input", upload.message()).await.expect("input").expect("input");
        heard.push(chunk.input.and_then(|input| input.input).expect("input"));
    }
    assert!(
        matches!(&heard[..], [Input::Data(data), Input::Signal(2), Input::End(_)] if &data[..] == b"abc"),
        "{heard:?}"
    );

    let exit = wire::LiveExit { code: 7, message: String::new() };
    agent.answer(&request, vec![said(Output::Stdout("abc".into())), said(Output::Exit(exit))]).await.expect("taken");
    let Ok(Some(live_response::Part::Output(output))) = call.next().await else { panic!("no output") };
    assert_eq!(output.output, Some(Output::Stdout("abc".into())));
    let Ok(Some(live_response::Part::Output(output))) = call.next().await else { panic!("no end") };
    assert!(matches!(output.output, Some(Output::Exit(exit)) if exit.code == 7));
    assert_eq!(call.end().await.code(), Code::Ok);
    controller.stop().await;
}

#[tokio::test]
async fn what_makes_no_sense_is_refused_before_an_agent_hears_of_it() {
    let (controller, agent) = with_one_task().await;
    let long = "x".repeat(roster_proto::live::MAX_WORD + 1);
    let many = vec!["x".repeat(roster_proto::live::MAX_WORD); 9];
    let with = |change: fn(&mut wire::Program)| {
        let mut wanted = program(&["true"]);
        change(&mut wanted);
        begin(wanted)
    };
    for (first, words) in [
        (input(Input::Signal(9)), "the first message must say what to do"),
        (begin(program(&[])), "name a program to run"),
        (begin(program(&["sh", "a\0b"])), "NUL"),
        (begin(program(&["sh", &long])), "the kernel takes"),
        (begin(wire::Program { args: many, ..Default::default() }), "bytes together"),
        (with(|program| program.env.push("NAME".to_owned())), "NAME=VALUE"),
        (with(|program| program.working_dir = Some("x".to_owned())), "must begin with /"),
        (with(|program| (program.detached, program.input) = (true, true)), "nobody is there to say what it reads"),
        (
            live_request::Part::Begin(wire::LiveBegin { target: "web".to_owned(), work: None, failed: false }),
            "field work",
        ),
    ] {
        let status = open(&controller, first).await.replies.expect_err("refused");
        assert!(status.code() == Code::InvalidArgument && status.message().contains(words), "{status}");
    }
    assert_eq!(agent.requests.len(), 0);

    for (wrong, code) in [
        (input(Input::Signal(0)), Code::InvalidArgument),
        (input(Input::Signal(65)), Code::InvalidArgument),
        (begin(program(&["true"])), Code::InvalidArgument),
        (input(Input::Data(vec![0; INPUT_WINDOW as usize + 1].into())), Code::ResourceExhausted),
    ] {
        let mut call = open(&controller, begin(program(&["cat"]))).await;
        call.target().await;
        call.say(wrong).await;
        assert_eq!(call.end().await.code(), code);
    }
    controller.stop().await;
}

#[tokio::test]
async fn what_was_taken_makes_room_for_more() {
    let (controller, mut agent) = with_one_task().await;
    let mut call = open(&controller, begin(program(&["cat"]))).await;
    let request = agent.next_request().await;
    call.target().await;
    let (parts, _answered) = agent.answer_slowly(&request).await;
    let upload = wire::UploadRequest { request_id: request.id.clone() };
    let mut upload = within("the input", agent.dispatch.upload(upload)).await.expect("input").into_inner();
    for _ in 0..8 {
        call.say(input(Input::Data(vec![0; INPUT_WINDOW as usize].into()))).await;
        within("input", upload.message()).await.expect("input").expect("input");
        let taken = said(Output::Taken(wire::LiveTaken { bytes: INPUT_WINDOW, closed: false }));
        parts.send(wire::AnswerPart { part: Some(taken) }).await.expect("the answer is open");
        let told = call.next().await.expect("a reply").expect("a reply");
        assert!(matches!(told, live_response::Part::Output(_)), "{told:?}");
    }
    controller.stop().await;
}

#[tokio::test]
async fn each_hears_of_the_others_end() {
    let (controller, mut agent) = with_one_task().await;
    let mut call = open(&controller, begin(program(&["cat"]))).await;
    let request = agent.next_request().await;
    call.target().await;
    drop(call);
    agent.until("the cancellation", |agent| agent.cancelled.contains(&request.id)).await;

    // An agent that ends without a word, or answers with something else.
    for (parts, words) in [
        (vec![], "did not say how it ended"),
        (vec![Part::Images(wire::Images::default())], "answered with something else"),
    ] {
        let mut call = open(&controller, begin(program(&["cat"]))).await;
        let request = agent.next_request().await;
        call.target().await;
        // An answer that is given up may be refused.
        let _ = agent.answer(&request, parts).await;
        let status = call.end().await;
        assert!(status.code() != Code::Ok && status.message().contains(words), "{status}");
    }

    let mut call = open(&controller, begin(program(&["cat"]))).await;
    agent.next_request().await;
    call.target().await;
    drop(agent);
    let status = call.end().await;
    assert!(status.code() == Code::Unavailable && status.message().contains("vm1 went away"), "{status}");
    controller.stop().await;
}
