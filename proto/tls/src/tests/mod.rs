//! Whom each side believes, over real sockets; and what is kept where.

mod handshake;
mod keeping;

use std::time::{Duration, SystemTime};

use zeroize::Zeroizing;

use crate::{Authority, Identity, KeyAndRequest, Role, Subject};

pub(crate) const CLUSTER: &str = "k3vq7m2xw5ot4zpa";
pub(crate) const HOUR: Duration = Duration::from_secs(3600);

pub(crate) fn authority() -> Authority {
    Authority::new(CLUSTER, SystemTime::now()).expect("an authority")
}

pub(crate) fn subject(role: Role, name: &str) -> Subject {
    Subject { cluster: CLUSTER.to_owned(), role, name: name.to_owned() }
}

/// Signed `ago`, for an hour.
pub(crate) fn identity_from(authority: &Authority, role: Role, name: &str, ago: Duration) -> Identity {
    let key = KeyAndRequest::generate(name).expect("a key");
    let now = SystemTime::now() - ago;
    let certificate = authority.sign(&key.request_der, &subject(role, name), HOUR, now).expect("signed");
    Identity {
        certificates: vec![certificate],
        key_pem: Zeroizing::new(key.key_pem.to_string()),
        authorities: vec![authority.certificate().to_vec()],
        cluster: CLUSTER.to_owned(),
        controllers: vec!["192.0.2.1:7640".to_owned()],
        peer: None,
    }
}

pub(crate) fn identity(authority: &Authority, role: Role, name: &str) -> Identity {
    identity_from(authority, role, name, Duration::ZERO)
}
