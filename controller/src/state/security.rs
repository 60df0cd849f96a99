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
    #[serde(default)]
    pub grants: BTreeMap<Holder, Grant>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AuthorityRecord {
    /// DER.
    pub certificate: Vec<u8>,
    /// Only the one that signs needs it.
    pub key: Option<Secret>,
    pub since: Timestamp,
    /// The same key signed by the authority before it, DER: proves this one to those who know only that one.
    #[serde(default)]
    pub cross: Option<Vec<u8>>,
}

/// The newest certificate that a holder was given. Nobody needs one here to be believed: it is for the end of a
/// rotation, and so that nobody joins under the name of another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Grant {
    pub serial: String,
    /// SHA-256 of the signing request: the same one again is no second holder.
    pub request: [u8; 32],
    /// The signer's certificate; SHA-256.
    pub authority: [u8; 32],
    pub issued: Timestamp,
    pub expires: Timestamp,
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

    /// As [`Security::is_revoked`], for a certificate whose serial is known. Certificates count whole seconds: what
    /// tells one that was issued in the very second of the removal, but after it, is that it is the holder's newest.
    pub fn refuses(&self, holder: &Holder, issued: Timestamp, serial: &str) -> bool {
        let newest = self.grants.get(holder).is_some_and(|grant| grant.serial == serial);
        self.is_removed(holder) || !newest && self.is_revoked(holder, issued)
    }

    /// A removal takes the grant along; one that came after it is from a new admission. A removed controller has known
    /// the authority's key and could sign for itself: that counts no more than what it was given.
    pub fn is_removed(&self, holder: &Holder) -> bool {
        self.revoked.contains_key(holder) && !self.grants.contains_key(holder)
    }

    /// Those who hold only a certificate that `signer` has not signed.
    pub fn behind(&self, signer: [u8; 32], now: Timestamp) -> impl Iterator<Item = &Holder> {
        let late = move |grant: &Grant| grant.expires > now && grant.authority != signer;
        self.grants.iter().filter(move |(_, grant)| late(grant)).map(|(holder, _)| holder)
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

    pub(super) fn forget_old_grants(&mut self, now: Timestamp) {
        self.grants.retain(|_, grant| grant.expires > now);
    }

    /// What no remaining authority has signed needs no refusal of its own.
    pub(super) fn forget_old_revocations(&mut self) {
        let oldest = self.authorities.iter().map(|authority| authority.since).min();
        self.revoked.retain(|_, removed| oldest.is_none_or(|oldest| *removed >= oldest));
    }
}

impl TokenRole {
    pub fn holder(self, name: &str) -> Holder {
        match self {
            TokenRole::Controller => Holder::Controller(name.to_owned()),
            TokenRole::Agent => Holder::Agent(name.to_owned()),
        }
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
