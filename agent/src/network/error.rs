//! What can go wrong with the network, each with what to do about it.

use std::{fmt, io, path::PathBuf};

use super::{nft::NftError, subnet::Subnet};

#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    #[error("the {what} {value:?} cannot be used: {rule}")]
    Config { what: &'static str, value: String, rule: &'static str },
    #[error(
        "the containers' subnet {subnet} collides with {claim} on {interface} of this host; choose another with --subnet"
    )]
    SubnetTaken { subnet: Subnet, claim: String, interface: String },
    #[error(
        "the interface {bridge} exists and is not this network's bridge: {why}; remove it (ip link delete {bridge}) or \
         choose another name with --bridge"
    )]
    BridgeTaken { bridge: String, why: String },
    #[error("no address is left in {subnet}: {used} of {capacity} are in use; choose a larger subnet with --subnet")]
    Exhausted { subnet: Subnet, used: usize, capacity: usize },
    #[error("cannot {action}: {source}")]
    Netlink { action: String, source: rtnetlink::Error },
    #[error("cannot {action} {}: {source}", path.display())]
    File { action: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot open a netlink socket: {0}")]
    Socket(#[source] io::Error),
    #[error("cannot load the packet filter's rules of table {table}: {source}")]
    Rules { table: String, source: NftError },
    #[error("{0}")]
    Several(Errors),
}

/// What went wrong while going on past errors; never empty.
#[derive(Debug)]
pub struct Errors(pub Vec<NetworkError>);

impl fmt::Display for Errors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if position == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl NetworkError {
    /// All errors as one, `Ok` if there are none.
    pub(super) fn all(mut errors: Vec<NetworkError>) -> Result<(), NetworkError> {
        match errors.len() {
            0 => Ok(()),
            1 => Err(errors.remove(0)),
            _ => Err(NetworkError::Several(Errors(errors))),
        }
    }

    pub(super) fn netlink(action: impl Into<String>) -> impl FnOnce(rtnetlink::Error) -> NetworkError {
        move |source| NetworkError::Netlink { action: action.into(), source }
    }

    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> NetworkError {
        move |source| NetworkError::File { action, path: path.into(), source }
    }
}
