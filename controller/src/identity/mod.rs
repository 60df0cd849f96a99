//! The controller's own identity, kept fresh; and the signing of everybody else's.
//!
//! [`OwnIdentity`] is what TLS is made of at this moment, for the door and for connections to others. [`issue`] signs,
//! [`renewal`] keeps the own certificate and the trusted authorities up to date and carries a rotation of the authority
//! to its end.

mod issue;
mod renewal;
mod rotation;

use std::{fmt, sync::Arc};

use roster_tls::{Identity, IdentityDir, IdentityError, TlsError, client_config, server_config};
use rustls::{ClientConfig, ServerConfig};
use tokio::sync::watch;

pub(crate) use self::{
    issue::{IssueError, credentials, holder, new_authority, sign},
    renewal::keep_fresh,
    rotation::{begin_rotation, end_rotation},
};

/// The identity in force, and TLS made of it. Clones share it; a swap is seen by every connection that is made later.
#[derive(Clone)]
pub(crate) struct OwnIdentity {
    dir: IdentityDir,
    held: Arc<watch::Sender<Held>>,
}

#[derive(Clone)]
struct Held {
    identity: Arc<Identity>,
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
}

impl Held {
    fn new(identity: Identity) -> Result<Self, TlsError> {
        Ok(Self { client: client_config(&identity)?, server: server_config(&identity)?, identity: Arc::new(identity) })
    }
}

impl OwnIdentity {
    /// Of one that was loaded from `dir`.
    pub(crate) fn new(dir: IdentityDir, identity: Identity) -> Result<Self, TlsError> {
        Ok(Self { dir, held: Arc::new(watch::Sender::new(Held::new(identity)?)) })
    }

    pub(crate) fn identity(&self) -> Arc<Identity> {
        self.held.borrow().identity.clone()
    }

    /// For connections to other controllers.
    pub(crate) fn client(&self) -> Arc<ClientConfig> {
        self.held.borrow().client.clone()
    }

    pub(crate) fn server(&self) -> Arc<ServerConfig> {
        self.held.borrow().server.clone()
    }

    /// Keeps it for good, then puts it in force. Blocks.
    fn swap(&self, identity: Identity) -> Result<(), IdentityError> {
        let held = Held::new(identity)?;
        self.dir.save(&held.identity)?;
        self.held.send_replace(held);
        Ok(())
    }
}

impl fmt::Debug for OwnIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "OwnIdentity({:?})", self.identity())
    }
}
