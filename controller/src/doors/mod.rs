//! Who stands at the door, and whether they may come in: a layer over every service.
//!
//! Guarantees: no call gets past it but what [`table`] allows; whom another controller speaks for is believed only of a
//! controller; a certificate that was taken back or has run out counts no more, also on connections that are open
//! already; every refusal is logged with who and what. Every request has an [`Origin`] once it is inside.
//!
//! Absent: what may be told apart only by a call's content, as which node an agent speaks for (the dispatcher checks).

mod accept;
mod connections;
mod stream;
mod table;

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

use self::table::{Access, access};
pub(crate) use self::{
    accept::{closed_door, local_connections, plain_connections, tls_connections},
    connections::Connections,
};
use crate::{
    forward::Origin,
    identity::holder,
    state::{ClusterState, Holder, UserRole},
};

/// As whom the controllers speak for root on the host of one of them.
const LOCAL: &str = "admin/root";

/// What is known of a connection's other end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Caller {
    who: Who,
    address: Option<SocketAddr>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Who {
    /// On the unix socket; or on loopback, at a controller that has no identity yet.
    Local,
    /// Showed no certificate.
    Stranger,
    Member(Arc<Certificate>),
}

/// For the log.
impl fmt::Display for Caller {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.who {
            Who::Local => f.write_str("root on this host")?,
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
}

impl Doors {
    pub(crate) fn new(state: watch::Receiver<Arc<ClusterState>>) -> Self {
        Self { state }
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
        let certificate = match &caller.who {
            Who::Local => return Ok(Origin { caller: LOCAL.to_owned(), forwarded: false }),
            Who::Stranger if access == Access::Everybody => {
                return Ok(Origin { caller: "stranger".to_owned(), forwarded: false });
            }
            Who::Stranger => {
                return Err(Status::unauthenticated(
                    "a certificate of this cluster is needed: join with a token, or have an admin add you with `rctl \
                     user add`",
                ));
            }
            Who::Member(certificate) => certificate,
        };
        let now = SystemTime::now().into();
        self.refuse(certificate, now)?;
        let subject = &certificate.subject;
        let forwarded = headers.get(call::FORWARDED_FOR).filter(|_| subject.role == Role::Controller);
        let (role, origin) = match forwarded {
            None => (subject.role, Origin { caller: subject.to_string(), forwarded: false }),
            Some(for_whom) => {
                let for_whom = for_whom.to_str().unwrap_or_default();
                let role = for_whom.split_once('/').and_then(|(role, _)| role.parse().ok());
                // A stranger's enrolment is passed on as well.
                let role = role.or((for_whom == "stranger" && access == Access::Everybody).then_some(Role::Viewer));
                let role: Role =
                    role.ok_or_else(|| Status::invalid_argument("whom the call is made for is unclear"))?;
                (role, Origin { caller: for_whom.to_owned(), forwarded: true })
            }
        };
        match access {
            Access::Everybody => Ok(origin),
            Access::Roles(roles) if roles.contains(&role) => Ok(origin),
            Access::Roles(_) | Access::Local => Err(Status::permission_denied(format!(
                "{} may not call {}: it is open to {}",
                origin.caller,
                path.trim_start_matches('/'),
                access.words()
            ))),
        }
    }
}

/// Why the certificate does not count although an authority of the cluster signed it.
pub(crate) fn refuse_certificate(
    state: &ClusterState,
    certificate: &Certificate,
    now: Timestamp,
) -> Result<(), String> {
    let subject = &certificate.subject;
    let holder = holder(subject.role, &subject.name);
    if certificate.expires <= now {
        return Err(format!("the certificate of {subject} expired at {}", certificate.expires));
    }
    if is_removed(state, certificate) {
        return Err(format!("the {holder} was removed from the cluster: its certificate counts no more"));
    }
    match (&holder, state.security.users.get(&subject.name)) {
        (Holder::User(name), Some(user)) if !same_role(user.role, subject.role) => {
            Err(format!("user {name} is {} now: the certificate is of another role", user.role))
        }
        _ => Ok(()),
    }
}

fn is_removed(state: &ClusterState, certificate: &Certificate) -> bool {
    let holder = holder(certificate.subject.role, &certificate.subject.name);
    state.security.refuses(&holder, certificate.issued, &certificate.serial)
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
            Some(caller) => self.doors.admit(caller, path, request.headers()).inspect_err(|status| {
                tracing::warn!(%caller, method = path, reason = status.message(), "refused a call");
            }),
            None => Err(Status::internal("this connection has no caller: a door is built wrongly")),
        };
        match admitted {
            Ok(origin) => {
                // Only what was believed goes on.
                request.headers_mut().remove(call::FORWARDED_FOR);
                request.extensions_mut().insert(origin);
                Box::pin(self.inner.call(request))
            }
            Err(status) => Box::pin(async move { Ok(status.into_http()) }),
        }
    }
}
