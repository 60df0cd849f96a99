//! The server's half of a handshake.

use std::{cell::RefCell, io, sync::Arc};

use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::{Certificate, tls::SHOWN};

/// A connection after its handshake.
#[derive(Debug)]
pub struct Accepted<S> {
    pub stream: TlsStream<S>,
    /// The client's, when it showed one. It was verified.
    pub certificate: Option<Certificate>,
}

/// A client that was not let in.
#[derive(Debug, thiserror::Error)]
#[error("the TLS handshake failed")]
pub struct AcceptError {
    /// Whom the certificate it showed names; not to be believed.
    pub shown: Option<String>,
    pub source: io::Error,
}

/// Waits for the client as long as it takes: the caller has the clock.
pub async fn accept<S>(config: Arc<ServerConfig>, stream: S) -> Result<Accepted<S>, AcceptError>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let (accepted, shown) = SHOWN
        .scope(RefCell::new(None), async {
            let accepted = TlsAcceptor::from(config).accept(stream).await;
            (accepted, SHOWN.with(RefCell::take))
        })
        .await;
    let stream = accepted.map_err(|source| AcceptError { shown: shown.clone(), source })?;
    let certificate = match stream.get_ref().1.peer_certificates().and_then(<[_]>::first) {
        Some(der) => match Certificate::read(der) {
            Ok(certificate) => Some(certificate),
            // The verifier has read it before; never take the holder for somebody without one.
            Err(error) => return Err(AcceptError { shown, source: io::Error::other(error) }),
        },
        None => None,
    };
    Ok(Accepted { stream, certificate })
}
