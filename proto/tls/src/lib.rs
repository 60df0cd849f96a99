//! Who is who in a cluster: certificates, join tokens, and TLS made of them.
//!
//! * [`Subject`], [`Certificate`]: what a certificate says of its holder.
//! * [`Authority`]: the cluster's own, which signs [`KeyAndRequest`]s.
//! * [`Identity`], [`IdentityDir`]: what a member holds, and where it keeps it.
//! * [`Token`]: how a stranger finds the cluster and is believed once. [`enroll`], [`renew`]: how one gets a
//!   certificate, and a newer one.
//! * [`client_config`], [`anonymous_client_config`], [`server_config`], [`accept`], [`connect`]: TLS between them.
//!
//! Guarantees: TLS 1.3 only; a certificate counts only if one of the cluster's own authorities signed it, never by the
//! web's; a client talks to controllers only; nothing that holds a secret shows it in `Debug`. Absent: who may do what
//! (the controller decides, call by call) and revocation lists (the controller refuses by its replicated state).

mod accept;
mod authority;
mod connect;
mod enroll;
mod identity;
mod subject;
#[cfg(test)]
mod tests;
mod tls;
mod token;

pub use self::{
    accept::{AcceptError, Accepted, accept},
    authority::{Authority, KeyAndRequest, SignError},
    connect::{CONNECT_TIMEOUT, ConnectError, connect, tune},
    enroll::{EnrollError, enroll, enroll_over, enroll_with, renew},
    identity::{Identity, IdentityDir, IdentityError},
    subject::{BACKDATED, Certificate, CertificateError, Role, Subject, UnknownRole, fingerprint},
    tls::{SERVER_NAME, TlsError, anonymous_client_config, client_config, server_config},
    token::{InvalidToken, Secret, Token},
};

/// The bytes of a certificate.
pub type Der = Vec<u8>;

/// How long after its issue a certificate is to be renewed: at two thirds of its life, so that a third is left for
/// trying again.
pub fn renew_at(certificate: &Certificate) -> roster_proto::time::Timestamp {
    let life = certificate.expires.since(certificate.issued);
    certificate.issued.plus(life / 3 * 2)
}
