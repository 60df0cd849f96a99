//! Join tokens: `roster-join-v1.ROLE.CLUSTER.ID.SECRET.AUTHORITY.ADDRESSES`.
//!
//! A token holds what a stranger needs for a safe first contact: where the controllers are, the digest of the authority
//! that they must prove, and the secret that proves the stranger. The cluster keeps only the secret's digest.

use std::{fmt, str::FromStr};

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64};
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use crate::Role;

const PREFIX: &str = "roster-join-v1.";
/// More would be no token of ours.
const MAX_TOKEN: usize = 8 * 1024;
const ID_LENGTH: usize = 10;
const ID_ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// 32 random bytes that never show in `Debug` and leave no copy behind.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Zeroizing<[u8; 32]>);

impl Secret {
    pub fn random() -> Self {
        Self(Zeroizing::new(rand::random()))
    }

    /// What the cluster keeps of it. The secret is as random as the digest is wide, so no salt is needed.
    pub fn digest(&self) -> [u8; 32] {
        Sha256::digest(self.0.as_slice()).into()
    }

    /// Takes as long for a near miss as for a wide one.
    pub fn has_digest(&self, digest: &[u8; 32]) -> bool {
        use subtle::ConstantTimeEq;
        self.digest().ct_eq(digest).into()
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(…)")
    }
}

/// What lets a machine join a cluster. `Display` writes it whole, the secret included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Token {
    pub cluster: String,
    /// Controller or agent.
    pub role: Role,
    /// Names the token in lists; no secret.
    pub id: String,
    pub secret: Secret,
    /// SHA-256 of the authority's certificate, which every controller shows.
    pub authority: [u8; 32],
    /// HOST:PORT of controllers.
    pub addresses: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidToken {
    #[error("this is no join token: one begins with {PREFIX:?}; `rctl token create` makes one")]
    Prefix,
    #[error("the join token is not whole ({0}): copy it in one piece, or make another with `rctl token create`")]
    Broken(&'static str),
}

impl Token {
    /// A new one with an id and a secret of its own.
    pub fn mint(cluster: &str, role: Role, authority: [u8; 32], addresses: Vec<String>) -> Self {
        let id = rand::random::<[u8; ID_LENGTH]>().map(|byte| char::from(ID_ALPHABET[usize::from(byte) % 32]));
        Self {
            cluster: cluster.to_owned(),
            role,
            id: id.iter().collect(),
            secret: Secret::random(),
            authority,
            addresses,
        }
    }
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { cluster, role, id, secret, authority, addresses } = self;
        let secret = Zeroizing::new(BASE64.encode(secret.0.as_slice()));
        let authority = BASE64.encode(authority);
        let addresses = BASE64.encode(addresses.join(","));
        write!(f, "{PREFIX}{role}.{cluster}.{id}.{}.{authority}.{addresses}", secret.as_str())
    }
}

impl FromStr for Token {
    type Err = InvalidToken;

    fn from_str(text: &str) -> Result<Self, InvalidToken> {
        let broken = InvalidToken::Broken;
        let rest = text.trim().strip_prefix(PREFIX).ok_or(InvalidToken::Prefix)?;
        if text.len() > MAX_TOKEN {
            return Err(broken("it is too long"));
        }
        let parts: Vec<&str> = rest.split('.').collect();
        let [role, cluster, id, secret, authority, addresses] = parts[..] else {
            return Err(broken("parts are missing"));
        };
        let role: Role = role.parse().map_err(|_| broken("its role is unknown"))?;
        if role.is_person() {
            return Err(broken("its role is not a machine's"));
        }
        let plain = |text: &str| (1..=64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric());
        if !plain(cluster) || !plain(id) {
            return Err(broken("its names are damaged"));
        }
        let mut key = Zeroizing::new([0; 32]);
        decode(secret, &mut key).ok_or(broken("its secret is damaged"))?;
        let mut digest = [0; 32];
        decode(authority, &mut digest).ok_or(broken("its digest is damaged"))?;
        let addresses = BASE64.decode(addresses).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        let addresses = addresses.ok_or(broken("its addresses are damaged"))?;
        let addresses: Vec<String> = addresses.split(',').map(str::to_owned).collect();
        if addresses.iter().any(|address| !is_address(address)) {
            return Err(broken("its addresses are damaged"));
        }
        Ok(Self {
            cluster: cluster.to_owned(),
            role,
            id: id.to_owned(),
            secret: Secret(key),
            authority: digest,
            addresses,
        })
    }
}

fn decode(text: &str, into: &mut [u8; 32]) -> Option<()> {
    let bytes = Zeroizing::new(BASE64.decode(text).ok()?);
    (bytes.len() == into.len()).then(|| into.copy_from_slice(&bytes))
}

fn is_address(text: &str) -> bool {
    text.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && host.bytes().all(|b| b.is_ascii_graphic()) && port.parse::<u16>().is_ok()
    })
}
