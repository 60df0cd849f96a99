//! Whole calls to the leader, for whoever asked another controller.
//!
//! A layer over every service. What only the leader can do is done here when this controller leads, else passed on to
//! the one that does, whatever the call streams in whichever direction; metadata, flow control and cancellation go
//! through. The one it is passed on to is told for whom ([`call::FORWARDED_FOR`]) and never passes it on again.
//!
//! Guarantees: a call that comes while there is no leader waits [`PATIENCE`] for one. A call whose leader goes away is
//! made again with the next one, where that cannot do it twice: nothing had been done yet, or it is a change under a
//! request id (it gets one here when the caller gave none), or repeating it has no effect; and its body is still kept.
//! Otherwise it ends with UNAVAILABLE, and [`call::RETRY`] says how the caller may try again.
//!
//! Deliberately absent: who may call what, which the doors decide before; and reads, which every controller answers.

mod body;
mod peers;

#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use futures::future::BoxFuture;
use http::{HeaderValue, Request, Response};
use roster_proto::{
    call::{self, Kind},
    replay::{Again, Replay},
};
use tokio::{
    sync::watch,
    time::{Instant, sleep, timeout_at},
};
use tonic::{Status, body::Body};
use tower::{Layer, Service, ServiceExt};

pub use self::peers::{Peers, Unreachable};
use crate::{
    raft::Leadership,
    status::{chain, retry_elsewhere, retry_safe, retry_same_id},
};

/// How long a call waits for somebody to lead: an election or two.
pub const PATIENCE: Duration = Duration::from_millis(2_500);

/// Before the same leader is tried again.
const PAUSE: Duration = Duration::from_millis(25);

/// Of one call. Patience runs out first, unless leaders come and go faster than calls are answered.
const MAX_TRIES: usize = 128;

/// Who called, as the doors found out. Every request has it once it is inside.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    /// `role/name`.
    pub caller: String,
    /// Another controller passed the call on.
    pub forwarded: bool,
}

/// The layer.
#[derive(Clone, Debug)]
pub struct Forward {
    leadership: watch::Receiver<Leadership>,
    peers: Arc<dyn Peers>,
}

impl Forward {
    pub fn new(leadership: watch::Receiver<Leadership>, peers: Arc<dyn Peers>) -> Self {
        Self { leadership, peers }
    }
}

impl<S> Layer<S> for Forward {
    type Service = Forwarding<S>;

    fn layer(&self, inner: S) -> Forwarding<S> {
        Forwarding { forward: self.clone(), inner }
    }
}

/// The services, with the leader's reached through it.
#[derive(Clone, Debug)]
pub struct Forwarding<S> {
    forward: Forward,
    inner: S,
}

impl<S> Service<Request<Body>> for Forwarding<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let kind = Kind::of(request.uri().path());
        if kind != Kind::Own && self.forward.peers.is_removed() {
            return Box::pin(async { Ok(removed().into_http()) });
        }
        let stale = request.headers().get(call::CONSISTENCY).is_some_and(|value| value == call::STALE);
        if !kind.needs_leader() && (kind != Kind::Overview || stale) {
            return Box::pin(self.inner.call(request));
        }
        let next = self.inner.clone();
        let inner = std::mem::replace(&mut self.inner, next);
        let call = Call { kind, forward: self.forward.clone(), inner };
        Box::pin(async move { Ok(call.answer(request).await) })
    }
}

/// One call that is the leader's to answer.
struct Call<S> {
    kind: Kind,
    forward: Forward,
    inner: S,
}

/// What came of one try.
enum Tried {
    Answered(Response<Body>),
    /// No answer: the connection was never made, or broke, or the leader is another by now.
    Lost {
        again: Again,
        status: Status,
    },
}

impl<S> Call<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible> + Clone + Send + Sync + 'static,
    S::Future: Send + 'static,
{
    async fn answer(self, request: Request<Body>) -> Response<Body> {
        let (mut parts, body) = request.into_parts();
        if parts.extensions.get::<Origin>().is_some_and(|origin| origin.forwarded) {
            // At most one hop. Who sent it finds out who leads by then, and tries there.
            let leads = self.forward.leadership.borrow().is_self;
            return match leads || self.kind == Kind::Overview {
                true => self.here(Request::from_parts(parts, body)).await,
                false => retry_safe("this controller leads no longer: try again").into_http(),
            };
        }
        if self.kind == Kind::Change && !parts.headers.contains_key(call::REQUEST_ID) {
            parts.headers.insert(call::REQUEST_ID, fresh_id());
        }
        let replay = Replay::new(body);
        let mut leadership = self.forward.leadership.clone();
        let mut give_up = Instant::now() + PATIENCE;
        let mut trouble = None;
        for _ in 0..MAX_TRIES {
            let Some(leader) = self.leader(&mut leadership, give_up).await else { break };
            let Some(body) = replay.body() else { break };
            let begun = Instant::now();
            let tried = self.try_with(leader, Request::from_parts(parts.clone(), body)).await;
            let (again, response) = match tried {
                Tried::Answered(response) => (Again::of_answer(response.headers()), response),
                Tried::Lost { again, status } => (again, status.into_http()),
            };
            if !again.allows(self.kind) {
                replay.forget();
                return response;
            }
            trouble = Some(response);
            // It may have been under way for long before its leader went.
            if begun.elapsed() > PATIENCE {
                give_up = Instant::now() + PATIENCE;
            }
            tokio::select! {
                _ = leadership.changed() => {}
                () = sleep(PAUSE) => {}
            }
        }
        // Why it heard of no leader; perhaps it found out only just now.
        if self.forward.peers.is_removed() {
            return removed().into_http();
        }
        if let (Kind::Overview, Some(body)) = (self.kind, replay.body()) {
            return self.here(Request::from_parts(parts, body)).await;
        }
        trouble.unwrap_or_else(|| {
            retry_safe("no leader at present: a majority of the controllers must be up and in touch; try again")
                .into_http()
        })
    }

    /// The leader as soon as there is one.
    async fn leader(&self, leadership: &mut watch::Receiver<Leadership>, give_up: Instant) -> Option<Leadership> {
        if self.kind == Kind::Overview {
            // What is known is told at once, above all that nobody leads.
            return Some(*leadership.borrow_and_update()).filter(|now| now.leader.is_some());
        }
        match timeout_at(give_up, leadership.wait_for(|now| now.leader.is_some())).await {
            Ok(Ok(now)) => Some(*now),
            // The store has ended, or patience has.
            Ok(Err(_)) | Err(_) => None,
        }
    }

    /// An answer is waited for only as long as its leader leads: the wait may have no other end, for what it waits
    /// for may be cut off from the cluster.
    async fn try_with(&self, leader: Leadership, request: Request<Body>) -> Tried {
        let answer = async {
            match leader.leader {
                Some(peer) if !leader.is_self => self.there(peer.0, request).await,
                _ => Tried::Answered(self.here(request).await),
            }
        };
        let tried = tokio::select! {
            biased;
            tried = answer => tried,
            () = self.moved(leader) => {
                let status = retry_same_id("the leader changed while the call was under way: try again");
                Tried::Lost { again: Again::Perhaps, status }
            }
        };
        match tried {
            Tried::Answered(response) if !leader.is_self || matches!(self.kind, Kind::Agents | Kind::Once) => {
                Tried::Answered(response.map(|body| body::passed_on(body, self.moved(leader))))
            }
            tried => tried,
        }
    }

    async fn here(&self, request: Request<Body>) -> Response<Body> {
        match self.inner.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }

    async fn there(&self, peer: u64, mut request: Request<Body>) -> Tried {
        let origin = request.extensions().get::<Origin>().map_or("nobody", |origin| &origin.caller);
        let Ok(origin) = HeaderValue::from_str(origin) else {
            return Tried::Answered(Status::invalid_argument("the caller's name cannot be passed on").into_http());
        };
        request.headers_mut().insert(call::FORWARDED_FOR, origin);
        request.extensions_mut().clear();
        let channel = match self.forward.peers.connect(peer).await {
            Ok(channel) => channel,
            Err(error) => {
                let status = retry_safe(format!("cannot pass the call on: {error}; try again"));
                return Tried::Lost { again: Again::Safely, status };
            }
        };
        match channel.oneshot(request).await {
            Ok(response) => Tried::Answered(self.unless_removed(response)),
            Err(error) => {
                self.forward.peers.failed(peer);
                let again = Again::of_transport(&error);
                let words = format!("the leader went away: {}; try again", chain(&error));
                let status = if again == Again::Safely { retry_safe(words) } else { retry_same_id(words) };
                Tried::Lost { again, status }
            }
        }
    }

    /// The leader's answer, unless it is about this controller's own certificate, of which the caller knows nothing.
    fn unless_removed(&self, response: Response<Body>) -> Response<Body> {
        if let Some(status) = Status::from_header_map(response.headers()) {
            self.forward.peers.refused(&status);
            if self.forward.peers.is_removed() {
                return removed().into_http();
            }
        }
        response
    }

    /// Ends once this is no longer who leads, as far as this controller knows.
    fn moved(&self, from: Leadership) -> impl Future<Output = ()> + Send + use<S> {
        let mut leadership = self.forward.leadership.clone();
        async move {
            // That the store has ended is a change as well.
            let _ended = leadership.wait_for(|now| (now.leader, now.term) != (from.leader, from.term)).await;
        }
    }
}

/// What it knows is of the past, and nobody takes a call from it any more.
fn removed() -> Status {
    retry_elsewhere(
        "this controller was removed from the cluster: ask another one; `rctl cluster leave` on its host empties it",
    )
}

/// For a change whose caller made none: it is then safe to pass it on twice.
fn fresh_id() -> HeaderValue {
    HeaderValue::from_str(&format!("{:032x}", rand::random::<u128>())).expect("hexadecimal digits")
}

/// The request id that the layer or the caller gave a call.
pub fn request_id<T>(request: &tonic::Request<T>) -> Result<Option<String>, Status> {
    let Some(value) = request.metadata().get(call::REQUEST_ID) else { return Ok(None) };
    let fits =
        |id: &&str| !id.is_empty() && id.len() <= call::MAX_REQUEST_ID && id.bytes().all(|b| b.is_ascii_graphic());
    match value.to_str().ok().filter(fits) {
        Some(id) => Ok(Some(id.to_owned())),
        None => Err(Status::invalid_argument(format!(
            "{} must be 1 to {} visible ASCII characters",
            call::REQUEST_ID,
            call::MAX_REQUEST_ID
        ))),
    }
}
