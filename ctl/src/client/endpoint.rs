//! One place where a controller may answer.

use std::{error::Error as _, fmt, io, path::Path, str::FromStr, sync::Arc, time::Duration};

use rustls::ClientConfig;
use tonic::transport::{self, Channel};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Where controllers listen unless they are told otherwise.
const PORT: u16 = 7640;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// On this host: unix:///PATH.
    Unix(String),
    /// A controller that has no identity yet: http://127.0.0.1:PORT.
    Plain(String),
    /// HOST:PORT; both sides show certificates.
    Tls(String),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpoint {
    #[error("endpoint {0:?} is not understood: write HOST:PORT, or unix:///PATH for a controller on this host")]
    Unreadable(String),
    #[error(
        "endpoint {0:?} would go over the network without encryption: write HOST:PORT, and use a context that has \
         credentials (`rctl context ls`)"
    )]
    Plain(String),
}

impl FromStr for Endpoint {
    type Err = InvalidEndpoint;

    fn from_str(text: &str) -> Result<Self, InvalidEndpoint> {
        let unreadable = || InvalidEndpoint::Unreadable(text.to_owned());
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return if path.starts_with('/') { Ok(Self::Unix(path.to_owned())) } else { Err(unreadable()) };
        }
        if let Some(address) = text.strip_prefix("http://") {
            let (host, port) = host_and_port(address.trim_end_matches('/')).ok_or_else(unreadable)?;
            let ip = host.trim_matches(['[', ']']).parse::<std::net::IpAddr>();
            return match host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback()) {
                true => Ok(Self::Plain(format!("{host}:{port}"))),
                false => Err(InvalidEndpoint::Plain(text.to_owned())),
            };
        }
        let address = text.strip_prefix("https://").unwrap_or(text).trim_end_matches('/');
        let (host, port) = host_and_port(address).ok_or_else(unreadable)?;
        Ok(Self::Tls(format!("{host}:{port}")))
    }
}

/// IPv6 addresses stand in brackets.
fn host_and_port(address: &str) -> Option<(&str, u16)> {
    let (host, port) = match address.rsplit_once(':') {
        Some((host, port)) if !address.ends_with(']') => (host, port.parse().ok()?),
        _ => (address, PORT),
    };
    let bracketed = host.starts_with('[') && host.ends_with(']');
    let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
    let ip6 = |host: &str| host.trim_matches(['[', ']']).parse::<std::net::Ipv6Addr>().is_ok();
    let sound = if bracketed { ip6(host) } else { !host.is_empty() && host.chars().all(name) };
    sound.then_some((host, port))
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{path}"),
            Self::Plain(address) => write!(f, "http://{address}"),
            Self::Tls(address) => f.write_str(address),
        }
    }
}

/// Why there is no connection to one endpoint.
#[derive(Clone, Debug)]
pub(super) struct Failure {
    pub(super) endpoint: Endpoint,
    /// The socket is there, and is for others.
    pub(super) not_root: bool,
    /// A controller that is yet to come would end it.
    pub(super) passes: bool,
    pub(super) reason: String,
}

impl Endpoint {
    pub(super) async fn dial(self, tls: Option<Arc<ClientConfig>>) -> Result<Channel, Failure> {
        let fail = |reason: String| Failure { endpoint: self.clone(), not_root: false, passes: false, reason };
        match (&self, tls) {
            (Self::Tls(address), Some(tls)) => {
                let connected = roster_tls::connect(std::slice::from_ref(address), tls).await;
                connected.map_err(|error| Failure { passes: error.passes(), ..fail(chain(&error)) })
            }
            (Self::Tls(_), None) => Err(fail("there are no credentials to show there".to_owned())),
            (Self::Unix(_) | Self::Plain(_), _) => transport::Endpoint::from_shared(self.to_string())
                .map_err(|error| fail(chain(&error)))?
                .connect_timeout(CONNECT_TIMEOUT)
                .connect()
                .await
                .map_err(|error| {
                    let not_root = io_kind(&error) == Some(io::ErrorKind::PermissionDenied);
                    Failure { not_root, passes: !not_root && self.has_a_place(), ..fail(innermost(&error)) }
                }),
        }
    }
}

impl Endpoint {
    /// The folder of a socket is made when a controller or an agent first starts: without it none was ever set up.
    fn has_a_place(&self) -> bool {
        match self {
            Self::Unix(path) => Path::new(path).parent().is_some_and(Path::is_dir),
            Self::Plain(_) | Self::Tls(_) => true,
        }
    }
}

/// The error and what lies beneath it, on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn io_kind(error: &transport::Error) -> Option<io::ErrorKind> {
    let mut next = error.source();
    while let Some(source) = next {
        if let Some(error) = source.downcast_ref::<io::Error>() {
            return Some(error.kind());
        }
        next = source.source();
    }
    None
}

/// The end of an error's chain: "No such file or directory" rather than "transport error".
fn innermost(error: &transport::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = source.to_string();
        next = source.source();
    }
    text
}
