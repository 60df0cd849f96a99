//! Whom the cluster trusts: its authorities, the tokens to join by, the people, and whose certificates are refused.
//!
//! Absent: cryptography. Certificates and digests are bytes here; whoever makes and checks them lives outside.

use std::{collections::BTreeMap, fmt, time::Duration};

use roster_proto::{id::ClusterId, time::Timestamp};
use serde::{Deserialize, Serialize};

/// Bytes that no log line, error or debug output may show. The snapshot and the log hold them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Secret(Vec<u8>);

impl Secret {
    pub fn new(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    pub fn expose(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Security {
    /// `None` until the cluster was initialised: it has no identity then, and one controller.
    pub cluster: Option<ClusterId>,
    /// All are trusted; the first signs.
    pub authorities: Vec<AuthorityRecord>,
    pub tokens: BTreeMap<String, TokenRecord>,
    pub users: BTreeMap<String, UserRecord>,
    pub revoked: BTreeMap<Holder, Timestamp>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// DER.
    pub certificate: Vec<u8>,
    /// Only the one that signs needs it.
    pub key: Option<Secret>,
    pub since: Timestamp,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenRecord {
    pub role: TokenRole,
    /// Of the secret in the token.
    pub digest: Secret,
    pub created: Timestamp,
    pub expires: Timestamp,
    pub uses_left: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum TokenRole {
    Controller,
    Agent,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserRecord {
    pub role: UserRole,
    pub created: Timestamp,
    /// When the latest certificate runs out.
    pub expires: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum UserRole {
    Viewer,
    Operator,
    Admin,
}

/// Whose certificates: two of different kinds may have one name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Holder {
    Controller(String),
    Agent(String),
    User(String),
}

impl Security {
    /// Whether a certificate of the holder, issued at this moment, is refused although its signature is good. Only one
    /// issued after the removal is valid again.
    pub fn is_revoked(&self, holder: &Holder, issued: Timestamp) -> bool {
        self.revoked.get(holder).is_some_and(|removed| issued <= *removed)
    }

    /// The authority that signs.
    pub fn signing(&self) -> Option<&AuthorityRecord> {
        self.authorities.first()
    }

    /// Tokens go a while after they ended: whoever comes late is told that it expired, not that there is none.
    pub(super) fn forget_old_tokens(&mut self, now: Timestamp) {
        const KEPT: Duration = Duration::from_secs(24 * 3600);
        self.tokens.retain(|_, token| now.since(token.expires) < KEPT);
    }

    /// What no remaining authority has signed needs no refusal of its own.
    pub(super) fn forget_old_revocations(&mut self) {
        let oldest = self.authorities.iter().map(|authority| authority.since).min();
        self.revoked.retain(|_, removed| oldest.is_none_or(|oldest| *removed >= oldest));
    }
}

impl fmt::Display for TokenRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            TokenRole::Controller => "controller",
            TokenRole::Agent => "agent",
        })
    }
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            UserRole::Viewer => "viewer",
            UserRole::Operator => "operator",
            UserRole::Admin => "admin",
        })
    }
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::Controller(name) => write!(f, "controller {name}"),
            Holder::Agent(name) => write!(f, "node {name}"),
            Holder::User(name) => write!(f, "user {name}"),
        }
    }
}
