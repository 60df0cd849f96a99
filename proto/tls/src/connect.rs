//! The client's half: a gRPC channel to whichever controller answers first.

use std::{
    io,
    sync::{Arc, Mutex},
    time::Duration,
};

use hyper_util::rt::TokioIo;
use nix::sys::socket::{setsockopt, sockopt};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, task::JoinSet};
use tokio_rustls::{TlsConnector, client::TlsStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::tls::{Impostor, SERVER_NAME};

/// For one address: TCP and TLS together.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(2);
/// An address that has not answered by then gets company. None is given up before its time.
const STAGGER: Duration = Duration::from_millis(200);
/// What was sent and not acknowledged for so long ends the connection: the peer is dead or cut off.
const USER_TIMEOUT: Duration = Duration::from_millis(2_500);
/// An idle connection asks after its peer at this pace; the user timeout counts from the first silence.
const PROBE: Duration = Duration::from_secs(1);
/// The kernel answers for a peer whose process hangs; this asks the process itself, with patience for a busy machine.
const PING: Duration = Duration::from_secs(5);
/// What comes on one stream before it is read, in bytes.
const STREAM_WINDOW: u32 = 1 << 20;
/// Never the narrower bound: a controller passes on answers for many callers, and one who does not read must not hold up
/// the others.
const CONNECTION_WINDOW: u32 = (1 << 31) - 1;

#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    #[error("no controller's address is known")]
    NoAddress,
    #[error("{0:?} is no address: write HOST:PORT")]
    Address(String),
    #[error("cannot connect to {address}")]
    Tcp { address: String, source: io::Error },
    #[error("{address} did not answer within {} s", CONNECT_TIMEOUT.as_secs())]
    Silent { address: String },
    #[error("{address} cannot be trusted: {why}")]
    Impostor { address: String, why: String },
    #[error("the TLS handshake with {address} failed")]
    Tls { address: String, source: io::Error },
    #[error("no controller could be reached: {}", join(.0))]
    All(Vec<ConnectError>),
    #[error("the connection to the controller failed at once")]
    Channel(#[source] tonic::transport::Error),
}

impl ConnectError {
    /// Whether a controller that is yet to come would end it.
    pub fn passes(&self) -> bool {
        match self {
            Self::Silent { .. } | Self::Channel(_) => true,
            // A name that nobody knows comes without the kernel's word.
            Self::Tcp { source, .. } => source.raw_os_error().is_some(),
            // What was cut off, not what one of the two refused.
            Self::Tls { source, .. } => source.kind() != io::ErrorKind::InvalidData,
            Self::All(errors) => errors.iter().any(Self::passes),
            Self::NoAddress | Self::Address(_) | Self::Impostor { .. } => false,
        }
    }
}

fn join(errors: &[ConnectError]) -> String {
    errors.iter().map(|error| with_sources(error)).collect::<Vec<_>>().join("; ")
}

fn with_sources(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", with_sources(source)),
        None => error.to_string(),
    }
}

/// Connects to the first of `addresses` (HOST:PORT) that proves to be a controller, trying the next whenever one is
/// slow. The channel reconnects by itself, to any of them, with the same `config`: after a renewal connect anew.
pub async fn connect(addresses: &[String], config: Arc<ClientConfig>) -> Result<Channel, ConnectError> {
    let first = dial(addresses, config.clone()).await?;
    let addresses: Arc<[String]> = addresses.into();
    let first = Arc::new(Mutex::new(Some(first)));
    let connector = tower::service_fn(move |_: Uri| {
        let ready = first.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        let (addresses, config) = (addresses.clone(), config.clone());
        async move {
            match ready {
                Some(stream) => Ok(TokioIo::new(stream)),
                None => dial(&addresses, config).await.map(TokioIo::new),
            }
        }
    });
    // https: what is inside of a call says how it travels; the connector does the TLS.
    Endpoint::from_static("https://controller.roster")
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .http2_keep_alive_interval(PING)
        .keep_alive_timeout(PING)
        .keep_alive_while_idle(true)
        .connect_with_connector(connector)
        .await
        .map_err(ConnectError::Channel)
}

async fn dial(addresses: &[String], config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, ConnectError> {
    let mut waiting = addresses.iter().cloned();
    let mut tried = JoinSet::new();
    let mut errors = Vec::new();
    loop {
        if let Some(address) = waiting.next() {
            tried.spawn(dial_one(address, config.clone()));
        }
        // The next one's turn comes early when this one fails.
        let more = waiting.len() > 0;
        let turn = async { if more { tokio::time::sleep(STAGGER).await } else { std::future::pending().await } };
        tokio::select! {
            ended = tried.join_next() => match ended {
                Some(Ok(Ok(stream))) => return Ok(stream),
                Some(Ok(Err(error))) => errors.push(error),
                Some(Err(panicked)) => std::panic::resume_unwind(panicked.into_panic()),
                None => break,
            },
            () = turn => {}
        }
    }
    match errors.len() {
        0 => Err(ConnectError::NoAddress),
        1 => Err(errors.remove(0)),
        _ => Err(ConnectError::All(errors)),
    }
}

async fn dial_one(address: String, config: Arc<ClientConfig>) -> Result<TlsStream<TcpStream>, ConnectError> {
    let handshake = async {
        if address.rsplit_once(':').is_none_or(|(host, port)| host.is_empty() || port.parse::<u16>().is_err()) {
            return Err(ConnectError::Address(address.clone()));
        }
        let tcp = TcpStream::connect(&address).await.and_then(|stream| tune(&stream).map(|()| stream));
        let tcp = tcp.map_err(|source| ConnectError::Tcp { address: address.clone(), source })?;
        let name = ServerName::try_from(SERVER_NAME).expect("a constant that is a DNS name");
        let tls = TlsConnector::from(config).connect(name, tcp).await;
        tls.map_err(|source| explain(address.clone(), source))
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, handshake).await {
        Ok(done) => done,
        Err(_) => Err(ConnectError::Silent { address }),
    }
}

/// What rustls says of a certificate it refused, in words for people.
fn explain(address: String, source: io::Error) -> ConnectError {
    use rustls::{CertificateError as Bad, Error};
    let refused = match source.get_ref().and_then(|inner| inner.downcast_ref::<Error>()) {
        Some(Error::InvalidCertificate(refused)) => refused,
        _ => return ConnectError::Tls { address, source },
    };
    let why = match refused {
        Bad::Other(rustls::OtherError(other)) => match other.downcast_ref::<Impostor>() {
            Some(impostor) => impostor.to_string(),
            None => other.to_string(),
        },
        Bad::UnknownIssuer | Bad::BadSignature => {
            "its certificate is not of an authority of this cluster: is it another cluster's controller?".to_owned()
        }
        Bad::Expired | Bad::ExpiredContext { .. } => "its certificate has expired".to_owned(),
        Bad::NotValidYet | Bad::NotValidYetContext { .. } => {
            "its certificate is not valid yet: compare the clocks of the two machines".to_owned()
        }
        Bad::NotValidForName
        | Bad::NotValidForNameContext { .. }
        | Bad::InvalidPurpose
        | Bad::InvalidPurposeContext { .. } => "its certificate is not a controller's".to_owned(),
        other => other.to_string(),
    };
    ConnectError::Impostor { address, why }
}

/// Makes a dead peer noticed within three seconds, and small messages sent at once. For both ends.
pub fn tune(stream: &TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let seconds = u32::try_from(PROBE.as_secs()).unwrap_or(1);
    let timeout = u32::try_from(USER_TIMEOUT.as_millis()).unwrap_or(u32::MAX);
    setsockopt(stream, sockopt::KeepAlive, &true)?;
    setsockopt(stream, sockopt::TcpKeepIdle, &seconds)?;
    setsockopt(stream, sockopt::TcpKeepInterval, &seconds)?;
    setsockopt(stream, sockopt::TcpUserTimeout, &timeout)?;
    Ok(())
}
