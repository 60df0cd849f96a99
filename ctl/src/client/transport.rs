//! Calls to whichever controller answers.
//!
//! Guarantees: a change goes out under a request id, the same one at every try, so that however often it is sent it
//! happens once. A call is made again, with another controller if there is one, when its connection breaks or the
//! controller says that another try may do better; until the request timeout, and only where repeating it cannot do it
//! twice. So is the first connection, while a controller may yet come: it may be starting again. A controller that is of no cluster is left for the next. A stream that breaks ends with a status that says so
//! ([`super::goes_on`]); whoever reads it takes it up.

use std::{
    collections::BTreeSet,
    fmt,
    io::{self, IsTerminal},
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use futures::{StreamExt, future::BoxFuture, stream::FuturesUnordered};
use http::{HeaderValue, Request, Response, request::Parts};
use http_body::Frame;
use roster_proto::{
    call::{self, Kind},
    replay::{Again, Replay},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Code, Status, body::Body, metadata::MetadataValue, transport::Channel};
use tower::ServiceExt;

use super::{
    Endpoint, Target,
    endpoint::{Failure, chain},
};
use crate::error::Error;

/// An endpoint that has not answered by then gets company.
const STAGGER: Duration = Duration::from_millis(200);
/// Between two tries: the first, and the longest.
const PAUSE: std::ops::RangeInclusive<Duration> = Duration::from_millis(50)..=Duration::from_secs(1);
/// After so long without a connection a person is told what is waited for.
const SILENCE: Duration = Duration::from_secs(1);
/// Of one call; its timeout comes first.
const MAX_TRIES: usize = 1_000;

/// Clones share the connection.
#[derive(Clone)]
pub struct Transport(Arc<Shared>);

struct Shared {
    target: Target,
    connection: Mutex<Connection>,
}

#[derive(Default)]
struct Connection {
    open: Option<Open>,
    /// Counts connections, so that one that failed is given up once.
    number: u64,
    /// The endpoint to begin with.
    first: usize,
    /// Those that are of no cluster.
    useless: BTreeSet<usize>,
}

#[derive(Clone)]
struct Open {
    channel: Channel,
    endpoint: Endpoint,
    index: usize,
    number: u64,
}

impl fmt::Debug for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transport").field("endpoints", &self.0.target.endpoints).finish_non_exhaustive()
    }
}

impl Transport {
    /// Tries again while a controller may yet come, for as long as `patience` lasts.
    pub(super) async fn connect(target: Target, patience: Duration) -> Result<Self, Error> {
        let transport = Self(Arc::new(Shared { target, connection: Mutex::default() }));
        let begun = Instant::now();
        let (mut pause, mut said) = (*PAUSE.start(), false);
        loop {
            let Err(failures) = transport.0.open().await else { return Ok(transport) };
            let waited = begun.elapsed();
            if waited >= patience || !failures.iter().any(|failure| failure.passes) {
                return Err(told(&failures));
            }
            if waited >= SILENCE && !said {
                said = true;
                say_waiting(&failures, patience);
            }
            sleep(pause.min(patience - waited)).await;
            pause = (pause * 2).min(*PAUSE.end());
        }
    }
}

/// To a person only: what reads our errors is told in the end.
fn say_waiting(failures: &[Failure], patience: Duration) {
    if io::stderr().is_terminal() {
        let lines: Vec<_> = failures.iter().map(line).collect();
        let patience = patience.as_secs_f32();
        anstream::eprintln!("no controller answers yet ({}); trying for {patience} s", lines.join("; "));
    }
}

fn told(failures: &[Failure]) -> Error {
    match failures {
        [one] if one.not_root => Error::NotRoot { endpoint: one.endpoint.to_string() },
        [one] => Error::Unreachable { endpoint: one.endpoint.to_string(), reason: one.reason.clone() },
        many => Error::NoneReachable(many.iter().map(line).collect()),
    }
}

fn line(failure: &Failure) -> String {
    let endpoint = failure.endpoint.to_string();
    // What the TLS side says names the address already.
    if failure.reason.contains(&endpoint) { failure.reason.clone() } else { format!("{endpoint}: {}", failure.reason) }
}

impl Shared {
    async fn open(&self) -> Result<Open, Vec<Failure>> {
        let mut connection = self.connection.lock().await;
        if let Some(open) = &connection.open {
            return Ok(open.clone());
        }
        let (index, channel) = self.race(connection.first, &connection.useless).await?;
        connection.number += 1;
        connection.first = index;
        let open = Open { channel, endpoint: self.target.endpoints[index].clone(), index, number: connection.number };
        connection.open = Some(open.clone());
        Ok(open)
    }

    /// The next call tries the endpoint after this one first.
    async fn give_up(&self, number: u64) {
        let mut connection = self.connection.lock().await;
        if connection.open.as_ref().is_some_and(|open| open.number == number) {
            connection.open = None;
            connection.first = (connection.first + 1) % self.target.endpoints.len();
        }
    }

    /// Not to be asked again; false when no other is left, and each may be.
    async fn pass_over(&self, open: &Open) -> bool {
        self.give_up(open.number).await;
        let mut connection = self.connection.lock().await;
        connection.useless.insert(open.index);
        let others = connection.useless.len() < self.target.endpoints.len();
        if !others {
            connection.useless.clear();
        }
        others
    }

    /// The first endpoint to answer. Each gets a head start over the next.
    async fn race(&self, first: usize, useless: &BTreeSet<usize>) -> Result<(usize, Channel), Vec<Failure>> {
        let endpoints = &self.target.endpoints;
        let order = (0..endpoints.len()).map(|offset| (first + offset) % endpoints.len());
        let mut waiting = order.filter(|index| !useless.contains(index)).collect::<Vec<_>>().into_iter();
        let mut tried = FuturesUnordered::new();
        let mut failures = Vec::new();
        loop {
            if let Some(index) = waiting.next() {
                let dialled = endpoints[index].clone().dial(self.target.tls.clone());
                tried.push(async move { (index, dialled.await) });
            }
            let more = waiting.len() > 0;
            let turn = async { if more { sleep(STAGGER).await } else { std::future::pending().await } };
            tokio::select! {
                ended = tried.next() => match ended {
                    Some((index, Ok(channel))) => return Ok((index, channel)),
                    Some((index, Err(failure))) => failures.push((index, failure)),
                    None => break,
                },
                () = turn => {}
            }
        }
        failures.sort_by_key(|(index, _)| *index);
        Err(failures.into_iter().map(|(_, failure)| failure).collect())
    }

    async fn call(&self, request: Request<Body>) -> Result<Response<Body>, Status> {
        let (mut parts, body) = request.into_parts();
        let kind = Kind::of(parts.uri.path());
        if kind == Kind::Change && !parts.headers.contains_key(call::REQUEST_ID) {
            let id = format!("{:032x}", rand::random::<u128>());
            parts.headers.insert(call::REQUEST_ID, HeaderValue::from_str(&id).expect("hexadecimal digits"));
        }
        if self.target.stale && matches!(kind, Kind::Read | Kind::Overview) {
            parts.headers.insert(call::CONSISTENCY, HeaderValue::from_static(call::STALE));
        }
        let replay = Replay::new(body);
        let deadline = Instant::now() + self.target.request_timeout;
        let mut pause = *PAUSE.start();
        let mut trouble = None;
        for _ in 0..MAX_TRIES {
            let Some(body) = replay.body() else { break };
            let (again, outcome) = self.one_try(kind, &parts, body, deadline).await;
            if again == Again::Elsewhere {
                trouble = Some(outcome);
                continue;
            }
            if !again.allows(kind) || Instant::now() + pause >= deadline {
                replay.forget();
                return outcome.map_err(|status| recalled(status, trouble));
            }
            trouble = Some(outcome);
            sleep(pause).await;
            pause = (pause * 2).min(*PAUSE.end());
        }
        trouble.unwrap_or_else(|| Err(Status::internal("a call without a body")))
    }

    async fn one_try(
        &self,
        kind: Kind,
        parts: &Parts,
        body: Body,
        deadline: Instant,
    ) -> (Again, Result<Response<Body>, Status>) {
        let open = match self.open().await {
            Ok(open) => open,
            Err(failures) => {
                let lines: Vec<_> = failures.iter().map(line).collect();
                return (
                    Again::Safely,
                    Err(Status::unavailable(format!("no controller answers ({})", lines.join("; ")))),
                );
            }
        };
        let answer = open.channel.clone().oneshot(Request::from_parts(parts.clone(), body));
        // What agents do may take its time, and what this host's controller does; the others only write a line.
        let answer = match kind {
            Kind::Agents | Kind::Own => Ok(answer.await),
            _ => timeout_at(deadline, answer).await,
        };
        match answer {
            Ok(Ok(response)) => {
                let mut again = Again::of_answer(response.headers());
                if again == Again::Elsewhere {
                    again = if self.pass_over(&open).await { again } else { Again::Never };
                } else if again != Again::Never && self.target.endpoints.len() > 1 {
                    self.give_up(open.number).await;
                }
                let endpoint = open.endpoint;
                (again, Ok(response.map(|body| Body::new(Answer { body, endpoint }))))
            }
            Ok(Err(error)) => {
                self.give_up(open.number).await;
                let again = Again::of_transport(&error);
                (again, Err(lost(&open.endpoint, &chain(&error))))
            }
            Err(_) => {
                self.give_up(open.number).await;
                let words = format!(
                    "{} did not answer within {} s (--request-timeout waits longer)",
                    open.endpoint,
                    self.target.request_timeout.as_secs_f32()
                );
                (Again::Never, Err(Status::deadline_exceeded(words)))
            }
        }
    }
}

/// What the last try to be answered was told says more than that no answer came to this one.
fn recalled(status: Status, trouble: Option<Result<Response<Body>, Status>>) -> Status {
    let told = trouble.and_then(|outcome| match outcome {
        Ok(response) => Status::from_header_map(response.headers()),
        Err(status) => Some(status),
    });
    match told {
        Some(told) if status.code() == Code::DeadlineExceeded => {
            Status::new(status.code(), format!("{}; before that: {}", status.message(), told.message()))
        }
        _ => status,
    }
}

fn lost(endpoint: &Endpoint, reason: &str) -> Status {
    let mut status = Status::unavailable(format!("the connection to {endpoint} was lost ({reason})"));
    status.metadata_mut().insert(call::RETRY, MetadataValue::from_static(call::RETRY_SAME_ID));
    status
}

impl tower::Service<Request<Body>> for Transport {
    type Response = Response<Body>;
    type Error = Status;
    type Future = BoxFuture<'static, Result<Response<Body>, Status>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let shared = self.0.clone();
        Box::pin(async move { shared.call(request).await })
    }
}

/// An answer whose connection may break.
struct Answer {
    body: Body,
    endpoint: Endpoint,
}

impl http_body::Body for Answer {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        Pin::new(&mut this.body)
            .poll_frame(context)
            .map(|frame| frame.map(|frame| frame.map_err(|error| lost(&this.endpoint, error.message()))))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }
}
