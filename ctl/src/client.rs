//! The connection to a controller.

use std::{error::Error as _, io, time::Duration};

use roster_proto::wire::control_client::ControlClient;
use tonic::transport::{Channel, Endpoint};

use crate::error::Error;

/// Where a controller listens on its own host.
pub const LOCAL_ENDPOINT: &str = "unix:///run/roster/controller.sock";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A listing of a full cluster with long specs stays below this.
const MAX_ANSWER: usize = 64 << 20;

pub type Client = ControlClient<Channel>;

/// Connects at once, so that a missing controller is told before any work begins.
pub async fn connect(endpoint: &str) -> Result<Client, Error> {
    let unreachable = |reason: String| Error::Unreachable { endpoint: endpoint.to_owned(), reason };
    if !["unix:", "http://"].iter().any(|scheme| endpoint.starts_with(scheme)) {
        return Err(Error::Usage(format!(
            "endpoint {endpoint:?} is neither a unix socket nor a loopback address: write unix:///PATH or \
             http://127.0.0.1:PORT"
        )));
    }
    let channel = Endpoint::from_shared(endpoint.to_owned())
        .map_err(|error| unreachable(error.to_string()))?
        .connect_timeout(CONNECT_TIMEOUT)
        .connect()
        .await
        .map_err(|error| match io_kind(&error) {
            Some(io::ErrorKind::PermissionDenied) => Error::NotRoot { endpoint: endpoint.to_owned() },
            _ => unreachable(innermost(&error)),
        })?;
    Ok(ControlClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

fn io_kind(error: &tonic::transport::Error) -> Option<io::ErrorKind> {
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
fn innermost(error: &tonic::transport::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text = source.to_string();
        next = source.source();
    }
    text
}
