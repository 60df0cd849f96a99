//! Who stands at the door, and whether they may come in: a layer over every service.
//!
//! Guarantees: no call gets past it but what [`table`] allows; whom another controller speaks for is believed only of a
//! controller; a certificate that was taken back or has run out counts no more, also on connections that are open
//! already; nobody has more calls under way than [`turns`] allows; every refusal is logged with who and what. Every
//! request has an [`Origin`] once it is inside.
//!
//! Absent: what may be told apart only by a call's content, as which node an agent speaks for (the dispatcher checks).

mod accept;
mod connections;
mod stream;
mod table;
mod turns;

#[cfg(test)]
mod tests;

use std::{
    convert::Infallible,
    fmt,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
    time::SystemTime,
};

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response};
use roster_proto::{call, time::Timestamp};
use roster_tls::{Certificate, Role};
use tokio::sync::watch;
use tonic::{Status, body::Body, metadata::MetadataValue};
use tower::{Layer, Service};

pub(crate) use self::{
    accept::{closed_door, local_connections, plain_connections, tls_connections},
    connections::Connections,
};
use self::{
    table::{Access, access},
    turns::{MAX_CALLS_OF_PERSON, MAX_CALLS_OF_STRANGER, Turn, Turns, until_sent},
};
use crate::{
    forward::Origin,
    identity::holder,
    state::{ClusterState, Holder, UserRole},
};

/// As whom the controllers speak for root on the host of one of them; no user has this name.
const LOCAL: &str = "admin/root";
const STRANGER: &str = "stranger";
const LOOPBACK: &str = "whoever comes by loopback";

/// What is known of a connection's other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    who: Who,
    address: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// Root or the controller's own user, on the unix socket.
    Local,
    /// Whoever is on this host, at a controller that has no identity yet.
    Loopback,
    /// Showed no certificate.
    Stranger,
    Member(Arc<Certificate>),
}

/// For the log.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Local => f.write_str("root on this host")?,
            Who::Loopback => f.write_str("somebody on this host")?,
            Who::Stranger => f.write_str("somebody without a certificate")?,
            Who::Member(certificate) => write!(f, "{}", certificate.subject)?,
        }
        match self.address {
            Some(address) => write!(f, " at {address}"),
            None => Ok(()),
        }
    }
}

/// The layers of a server with doors.
pub(crate) type Guarding = tower::layer::util::Stack<Doors, tower::layer::util::Identity>;

/// The layer.
#[derive(Clone, Debug)]
pub(crate) struct Doors {
    state: watch::Receiver<Arc<ClusterState>>,
    turns: Turns,
}

impl Doors {
    pub(crate) fn new(state: watch::Receiver<Arc<ClusterState>>) -> Self {
        Self { state, turns: Turns::default() }
    }

    /// For a controller that has no state yet, and so no members.
    pub(crate) fn of_nobody() -> Self {
        Self::new(watch::Sender::new(Arc::default()).subscribe())
    }

    fn refuse(&self, certificate: &Certificate, now: Timestamp) -> Result<(), Status> {
        let state = self.state.borrow();
        refuse_certificate(&state, certificate, now).map_err(|words| {
            let mut status = Status::unauthenticated(words);
            if is_removed(&state, certificate) {
                status.metadata_mut().insert(call::REMOVED, MetadataValue::from_static("yes"));
            }
            status
        })
    }

    /// For whom the call is made, when it may be made.
    fn admit(&self, caller: &Caller, path: &str, headers: &HeaderMap) -> Result<Origin, Status> {
        let access = access(path);
        let here = |caller: &str| Origin { caller: caller.to_owned(), forwarded: false };
        let (role, origin) = match &caller.who {
            Who::Local => return Ok(here(LOCAL)),
            Who::Loopback if access != Access::Local => return Ok(here(LOCAL)),
            Who::Loopback => return Err(not_open(LOOPBACK, path, access)),
            Who::Stranger if access == Access::Everybody => return Ok(here(STRANGER)),
            Who::Stranger => {
                return Err(Status::unauthenticated(
                    "a certificate of this cluster is needed: join with a token, or have an admin add you with `rctl \
                     user add`",
                ));
            }
            Who::Member(certificate) => self.member(certificate, access, headers)?,
        };
        match access {
            Access::Everybody => Ok(origin),
            Access::Roles(roles) if roles.contains(&role) => Ok(origin),
            Access::Roles(_) | Access::Local => Err(not_open(&origin.caller, path, access)),
        }
    }

    /// In whose name the holder of the certificate asks.
    fn member(&self, certificate: &Certificate, access: Access, headers: &HeaderMap) -> Result<(Role, Origin), Status> {
        self.refuse(certificate, SystemTime::now().into())?;
        let subject = &certificate.subject;
        let forwarded = headers.get(call::FORWARDED_FOR).filter(|_| subject.role == Role::Controller);
        let Some(for_whom) = forwarded else {
            return Ok((subject.role, Origin { caller: subject.to_string(), forwarded: false }));
        };
        let for_whom = for_whom.to_str().unwrap_or_default();
        let origin = Origin { caller: for_whom.to_owned(), forwarded: true };
        // A stranger's enrolment is passed on as well.
        if for_whom == STRANGER && access == Access::Everybody {
            return Ok((Role::Viewer, origin));
        }
        let named = for_whom.split_once('/').and_then(|(role, name)| Some((role.parse().ok()?, name)));
        let (role, name): (Role, _) =
            named.ok_or_else(|| Status::invalid_argument("whom the call is made for is unclear"))?;
        // Who passed it on may not have heard yet of a removal that is known here.
        if for_whom != LOCAL {
            refuse_holder(&self.state.borrow(), role, name).map_err(Status::unauthenticated)?;
        }
        Ok((role, origin))
    }

    /// Room for the call, when the caller's are bounded.
    fn turn(&self, caller: &Caller, origin: &Origin) -> Result<Option<Turn>, Status> {
        let person = || origin.caller.split_once('/').is_some_and(|(role, _)| is_person(role));
        let (who, bound) = match &caller.who {
            Who::Stranger => (caller.to_string(), MAX_CALLS_OF_STRANGER),
            Who::Member(_) if origin.caller != LOCAL && person() => (origin.caller.clone(), MAX_CALLS_OF_PERSON),
            Who::Local | Who::Loopback | Who::Member(_) => return Ok(None),
        };
        self.turns.take(who, bound).map(Some).ok_or_else(|| {
            Status::resource_exhausted(format!("{bound} of your calls are under way already: wait for some to end"))
        })
    }
}

/// Whether the call came by this controller's own socket, and not by another controller's, which speaks for root on
/// another host.
pub(crate) fn is_root_here(origin: &Origin) -> bool {
    !origin.forwarded && origin.caller == LOCAL
}

fn is_person(role: &str) -> bool {
    role.parse().is_ok_and(Role::is_person)
}

fn not_open(caller: &str, path: &str, access: Access) -> Status {
    let method = path.trim_start_matches('/');
    Status::permission_denied(format!("{caller} may not call {method}: it is open to {}", access.words()))
}

/// Why the certificate does not count although an authority of the cluster signed it.
pub(crate) fn refuse_certificate(
    state: &ClusterState,
    certificate: &Certificate,
    now: Timestamp,
) -> Result<(), String> {
    let subject = &certificate.subject;
    if certificate.expires <= now {
        return Err(format!("the certificate of {subject} expired at {}", certificate.expires));
    }
    if is_removed(state, certificate) {
        return Err(removed(&holder(subject.role, &subject.name)));
    }
    refuse_holder(state, subject.role, &subject.name)
}

/// The same as far as it can be told without the certificate.
fn refuse_holder(state: &ClusterState, role: Role, name: &str) -> Result<(), String> {
    let holder = holder(role, name);
    if state.security.is_removed(&holder) {
        return Err(removed(&holder));
    }
    match (&holder, state.security.users.get(name)) {
        (Holder::User(name), Some(user)) if !same_role(user.role, role) => {
            Err(format!("user {name} is {} now: the certificate is of another role", user.role))
        }
        _ => Ok(()),
    }
}

fn is_removed(state: &ClusterState, certificate: &Certificate) -> bool {
    let holder = holder(certificate.subject.role, &certificate.subject.name);
    state.security.refuses(&holder, certificate.issued, &certificate.serial)
}

fn removed(holder: &Holder) -> String {
    format!("the {holder} was removed from the cluster: its certificate counts no more")
}

fn same_role(user: UserRole, certified: Role) -> bool {
    match user {
        UserRole::Viewer => certified == Role::Viewer,
        UserRole::Operator => certified == Role::Operator,
        UserRole::Admin => certified == Role::Admin,
    }
}

impl<S> Layer<S> for Doors {
    type Service = Guarded<S>;

    fn layer(&self, inner: S) -> Guarded<S> {
        Guarded { doors: self.clone(), inner }
    }
}

/// The services behind the doors.
#[derive(Clone, Debug)]
pub(crate) struct Guarded<S> {
    doors: Doors,
    inner: S,
}

impl<S> Service<Request<Body>> for Guarded<S>
where
    S: Service<Request<Body>, Response = Response<Body>, Error = Infallible>,
    S::Future: Send + 'static,
{
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let path = request.uri().path();
        let admitted = match request.extensions().get::<Caller>() {
            Some(caller) => {
                let admitted = self.doors.admit(caller, path, request.headers());
                let admitted = admitted.and_then(|origin| Ok((self.doors.turn(caller, &origin)?, origin)));
                admitted.inspect_err(|status| {
                    tracing::warn!(%caller, method = path, reason = status.message(), "refused a call");
                })
            }
            None => Err(Status::internal("this connection has no caller: a door is built wrongly")),
        };
        let (turn, origin) = match admitted {
            Ok(admitted) => admitted,
            Err(status) => return Box::pin(async move { Ok(status.into_http()) }),
        };
        // Only what was believed goes on.
        request.headers_mut().remove(call::FORWARDED_FOR);
        request.extensions_mut().insert(origin);
        let answer = self.inner.call(request);
        Box::pin(async move {
            let answer = answer.await?;
            Ok(match turn {
                Some(turn) => answer.map(|body| until_sent(body, turn)),
                None => answer,
            })
        })
    }
}
