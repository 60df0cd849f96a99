//! What a certificate says of its holder. Reading only: whether it is to be believed is decided in `tls`.

use std::{fmt, str::FromStr, time::Duration};

use roster_proto::{id::NodeId, time::Timestamp};
use sha2::{Digest, Sha256};
use x509_parser::prelude::{FromDer, X509Certificate, X509Name};

/// Certificates begin this much before they are issued: clocks in a cluster may differ so far.
pub const BACKDATED: Duration = Duration::from_secs(5 * 60);

/// What the holder of a certificate is to the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Controller,
    Agent,
    Admin,
    Operator,
    Viewer,
}

impl Role {
    pub const ALL: [Role; 5] = [Role::Controller, Role::Agent, Role::Admin, Role::Operator, Role::Viewer];

    pub fn as_str(self) -> &'static str {
        match self {
            Role::Controller => "controller",
            Role::Agent => "agent",
            Role::Admin => "admin",
            Role::Operator => "operator",
            Role::Viewer => "viewer",
        }
    }

    /// One of those that people have; machines join by token instead.
    pub fn is_person(self) -> bool {
        matches!(self, Role::Admin | Role::Operator | Role::Viewer)
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no role: use controller or agent for a machine; admin, operator or viewer for a person")]
pub struct UnknownRole(pub String);

impl FromStr for Role {
    type Err = UnknownRole;

    fn from_str(text: &str) -> Result<Self, UnknownRole> {
        Role::ALL.into_iter().find(|role| role.as_str() == text).ok_or_else(|| UnknownRole(text.to_owned()))
    }
}

/// Whom a certificate stands for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    /// The cluster's id; O in the certificate.
    pub cluster: String,
    /// OU in the certificate.
    pub role: Role,
    /// Of the node, the controller or the person; CN in the certificate.
    pub name: String,
}

/// `role/name`.
impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.role, self.name)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("this is not an X.509 certificate")]
    Unreadable,
    #[error("the certificate's subject has no {0}, or several")]
    Missing(&'static str),
    #[error("the certificate's subject is none of this kind of cluster: {0}")]
    Role(#[from] UnknownRole),
    #[error("the certificate's subject has a bad name: {0}")]
    Name(#[from] roster_proto::id::InvalidId),
}

impl Subject {
    pub fn from_certificate(der: &[u8]) -> Result<Self, CertificateError> {
        Ok(Certificate::read(der)?.subject)
    }

    fn from_name(name: &X509Name<'_>) -> Result<Self, CertificateError> {
        let cluster = only("O", name.iter_organization())?;
        let role = only("OU", name.iter_organizational_unit())?.parse()?;
        // The rule of node names holds for controllers and people as well.
        let name = NodeId::new(only("CN", name.iter_common_name())?)?;
        Ok(Self { cluster, role, name: name.into() })
    }
}

fn only<'a>(
    what: &'static str,
    mut values: impl Iterator<Item = &'a x509_parser::x509::AttributeTypeAndValue<'a>>,
) -> Result<String, CertificateError> {
    match (values.next().and_then(|value| value.as_str().ok()), values.next()) {
        (Some(value), None) => Ok(value.to_owned()),
        _ => Err(CertificateError::Missing(what)),
    }
}

/// What a member's certificate says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    pub subject: Subject,
    /// Hexadecimal; unique within the cluster.
    pub serial: String,
    pub issued: Timestamp,
    pub expires: Timestamp,
}

impl Certificate {
    pub fn read(der: &[u8]) -> Result<Self, CertificateError> {
        let certificate = parse(der)?;
        let (begins, expires) = validity(&certificate);
        Ok(Self {
            subject: Subject::from_name(certificate.subject())?,
            serial: hex(certificate.raw_serial()),
            issued: begins.plus(BACKDATED),
            expires,
        })
    }
}

/// Trailing bytes are refused: two readers must not disagree on what a certificate is.
pub(crate) fn parse(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        _ => Err(CertificateError::Unreadable),
    }
}

/// From and until when a certificate holds.
pub(crate) fn validity(certificate: &X509Certificate<'_>) -> (Timestamp, Timestamp) {
    let micros = |seconds: i64| Timestamp(u64::try_from(seconds).unwrap_or(0).saturating_mul(1_000_000));
    let validity = certificate.validity();
    (micros(validity.not_before.timestamp()), micros(validity.not_after.timestamp()))
}

/// SHA-256 of a certificate.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    Sha256::digest(der).into()
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
