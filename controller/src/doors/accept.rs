//! Connections as they come in, by socket and by TCP.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use futures::{Stream, StreamExt};
use roster_tls::{AcceptError, Accepted};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::mpsc,
    task::JoinSet,
};
use tokio_stream::wrappers::ReceiverStream;

use super::{Caller, Connections, Who, connections::Place, stream::Door};
use crate::{
    identity::OwnIdentity,
    listen::{ACCEPT_PAUSE, UnixSocket},
    status::chain,
};

/// For TLS's handshake.
const SHAKING_WITHIN: Duration = Duration::from_secs(5);
/// Of a connection without a certificate, which has nothing to do here but to enrol or to ask after our health.
const STRANGERS_STAY: Duration = Duration::from_secs(30);
/// Accepted and not yet taken up by the server.
const ACCEPTED_QUEUE: usize = 16;

/// Of root and the controller's own user. Never ends.
pub(crate) fn local_connections(socket: &UnixSocket) -> impl Stream<Item = io::Result<Door>> {
    let caller = Caller { who: Who::Local, address: None };
    socket.connections().map(move |stream| stream.map(|stream| Door::unix(stream, caller.clone())))
}

/// On loopback, at a controller that has no identity: whoever can connect has the power of an admin. Never ends.
pub(crate) fn plain_connections(listener: &TcpListener) -> impl Stream<Item = io::Result<Door>> {
    futures::stream::unfold(listener, |listener| async move {
        let (stream, address) = accept(listener).await;
        let caller = Caller { who: Who::Loopback, address: Some(address) };
        Some((Ok(Door::plain(stream, caller)), listener))
    })
}

/// At a controller that has no identity yet and listens for others: they are sent away at once. Never ends.
pub(crate) async fn closed_door(listener: &TcpListener) {
    loop {
        let (_, address) = accept(listener).await;
        tracing::debug!(%address, "sent a connection away: this controller is of no cluster yet");
    }
}

/// By TLS, with the identity of the moment. Ends with the receiver.
pub(crate) fn tls_connections(
    listener: Arc<TcpListener>,
    own: OwnIdentity,
    connections: Connections,
) -> impl Stream<Item = io::Result<Door>> {
    let (doors, accepted) = mpsc::channel(ACCEPTED_QUEUE);
    tokio::spawn(async move {
        let mut shaking = JoinSet::new();
        loop {
            tokio::select! {
                (stream, address) = accept(&listener) => {
                    let (own, place, doors) = (own.clone(), connections.begin(), doors.clone());
                    shaking.spawn(async move {
                        if let Some(door) = let_in(stream, address, &own, place).await {
                            // Nobody takes it up when the server is stopping.
                            let _stopping = doors.send(Ok(door)).await;
                        }
                    });
                }
                Some(ended) = shaking.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!(%error, "a handshake broke");
                    }
                }
                () = doors.closed() => return,
            }
        }
    });
    ReceiverStream::new(accepted)
}

async fn let_in(stream: TcpStream, address: SocketAddr, own: &OwnIdentity, place: Place) -> Option<Door> {
    let shaken = tokio::select! {
        shaken = tokio::time::timeout(SHAKING_WITHIN, roster_tls::accept(own.server(), stream)) => shaken,
        () = place.ended.cancelled() => {
            tracing::debug!(%address, "sent a connection away before its handshake: newer ones wait");
            return None;
        }
    };
    let Accepted { stream, certificate } = match shaken {
        Ok(Ok(accepted)) => accepted,
        Ok(Err(error)) => {
            tell_refused(address, &error);
            return None;
        }
        Err(_) => {
            tracing::debug!(%address, "no TLS handshake came");
            return None;
        }
    };
    let shown = stream.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let signer = shown.and_then(|certificate| own.identity().signer_of(certificate));
    let certificate = certificate.map(Arc::new);
    if let Err(full) = place.settle(certificate.as_ref(), signer) {
        let subject = certificate.map(|certificate| certificate.subject.to_string());
        tracing::warn!(%address, subject, reason = %full, "refused a connection");
        return None;
    }
    let (who, stays) = match certificate {
        None => (Who::Stranger, STRANGERS_STAY),
        Some(certificate) => {
            let left = certificate.expires.since(SystemTime::now().into());
            (Who::Member(certificate), left)
        }
    };
    let caller = Caller { who, address: Some(address) };
    Some(Door::tls(stream, caller, place, tokio::time::sleep(stays)))
}

/// One that showed a certificate was refused by us: that is said aloud. Others may be port scanners.
fn tell_refused(address: SocketAddr, error: &AcceptError) {
    let reason = chain(error);
    match &error.shown {
        Some(shown) => tracing::warn!(%address, shown, reason, "refused a connection"),
        None => tracing::debug!(%address, reason, "refused a connection"),
    }
}

/// The next connection, tuned. Never fails: what cannot be accepted is logged.
async fn accept(listener: &TcpListener) -> (TcpStream, SocketAddr) {
    loop {
        let (stream, address) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                // Without descriptors this would be a busy loop. Who hangs up early holds up nobody.
                if error.kind() != io::ErrorKind::ConnectionAborted {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
                continue;
            }
        };
        match roster_tls::tune(&stream) {
            Ok(()) => return (stream, address),
            Err(error) => tracing::debug!(%error, %address, "lost a connection at once"),
        }
    }
}
