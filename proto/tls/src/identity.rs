//! What a member of the cluster holds, and where it keeps it.
//!
//! One file holds all of it, so that key and certificate can never be from different days: replaced by rename, synced
//! before, mode 0600 in a directory of mode 0700.

use std::{
    fmt, fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use base64::{Engine, engine::general_purpose::STANDARD as BASE64};
use roster_proto::{time::Timestamp, wire};
use rustls::pki_types::{PrivateKeyDer, pem::PemObject};
use serde::{Deserialize, Serialize};
use zeroize::Zeroizing;

use crate::{
    Certificate, CertificateError, Der, KeyAndRequest, SignError, Subject, TlsError, fingerprint, renew_at,
    tls::{key_fits, signed_by},
};

const FILE: &str = "identity.json";
/// While a cluster is asked to sign.
const ASKING: &str = "asking.json";
/// A sound one has a few KB.
const MAX_FILE: u64 = 1024 * 1024;

/// Who somebody is in a cluster, with the proof, and whom they trust.
#[derive(Clone, PartialEq, Eq)]
pub struct Identity {
    /// The holder's, then those between it and the authority.
    pub certificates: Vec<Der>,
    /// PKCS #8.
    pub key_pem: Zeroizing<String>,
    /// Every one to be trusted, the one that signs first.
    pub authorities: Vec<Der>,
    pub cluster: String,
    /// HOST:PORT of every controller, as last heard.
    pub controllers: Vec<String>,
    /// Of a controller: its raft id.
    pub peer: Option<u64>,
}

#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    #[error("cannot {verb} {path}")]
    File { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("{path} is damaged and cannot be used ({why}): restore it, or move it away and join again")]
    Damaged { path: PathBuf, why: String },
    #[error("the credentials hold no certificate")]
    Empty,
    #[error("the credentials are for another key")]
    OtherKey,
    #[error("the credentials are for cluster {0:?}, not for {1:?}")]
    OtherCluster(String, String),
    #[error("no authority among the credentials has signed the certificate")]
    Unsigned,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error(transparent)]
    Key(#[from] SignError),
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl Identity {
    /// From what an enrolment, a renewal or `AddUser` answered. Refused unless it fits the key and itself.
    pub fn assemble(key: KeyAndRequest, credentials: wire::Credentials) -> Result<Self, IdentityError> {
        Self::with_key(key.key_pem, credentials)
    }

    pub(crate) fn with_key(key_pem: Zeroizing<String>, given: wire::Credentials) -> Result<Self, IdentityError> {
        let identity = Self {
            certificates: given.certificates.into_iter().map(Der::from).collect(),
            key_pem,
            authorities: given.authorities.into_iter().map(Der::from).collect(),
            cluster: given.cluster,
            controllers: given.controllers,
            peer: (given.peer != 0).then_some(given.peer),
        };
        identity.check()?;
        Ok(identity)
    }

    /// Whether the parts belong together; not whether the certificate still holds.
    fn check(&self) -> Result<(), IdentityError> {
        let own = self.certificates.first().ok_or(IdentityError::Empty)?;
        let subject = Subject::from_certificate(own)?;
        if subject.cluster != self.cluster {
            return Err(IdentityError::OtherCluster(subject.cluster, self.cluster.clone()));
        }
        if !key_fits(own, &self.key_pem)? {
            return Err(IdentityError::OtherKey);
        }
        if !self.authorities.iter().any(|authority| signed_by(own, authority)) {
            return Err(IdentityError::Unsigned);
        }
        Ok(())
    }

    /// The holder's own certificate.
    pub fn certificate(&self) -> Result<Certificate, IdentityError> {
        Ok(Certificate::read(self.certificates.first().ok_or(IdentityError::Empty)?)?)
    }

    pub fn subject(&self) -> Result<Subject, IdentityError> {
        Ok(self.certificate()?.subject)
    }

    /// When to ask for a newer certificate.
    pub fn renew_at(&self) -> Result<Timestamp, IdentityError> {
        Ok(renew_at(&self.certificate()?))
    }

    /// Whether to ask for a newer certificate now: two thirds of this one's life are over, or another authority signs.
    pub fn is_due(&self, now: Timestamp) -> Result<bool, IdentityError> {
        let signs = self.authorities.first().map(|authority| fingerprint(authority));
        Ok(now >= self.renew_at()? || signs != self.signer())
    }

    /// SHA-256 of the authority that signed the own certificate.
    pub fn signer(&self) -> Option<[u8; 32]> {
        self.signer_of(self.certificates.first()?)
    }

    /// The same of somebody else's certificate, among the authorities that are trusted here.
    pub fn signer_of(&self, certificate: &[u8]) -> Option<[u8; 32]> {
        self.authorities.iter().find(|authority| signed_by(certificate, authority)).map(|found| fingerprint(found))
    }

    /// Reads one that [`Identity::write`] wrote; `None` when there is no such file.
    pub fn read(path: &Path) -> Result<Option<Self>, IdentityError> {
        let failed = |source| IdentityError::File { verb: "read", path: path.to_owned(), source };
        let damaged = |why: String| IdentityError::Damaged { path: path.to_owned(), why };
        let file = match fs::File::open(path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        let mut text = Zeroizing::new(String::new());
        io::Read::read_to_string(&mut io::Read::take(file, MAX_FILE), &mut text).map_err(failed)?;
        let written: Written = serde_json::from_str(&text).map_err(|error| damaged(error.to_string()))?;
        let identity = written.identity().map_err(|error| damaged(error.to_string()))?;
        identity.check().map_err(|error| damaged(error.to_string()))?;
        Ok(Some(identity))
    }

    /// Replaces the file at once and for good, for its owner's eyes only. Its directory is made when it is missing.
    pub fn write(&self, path: &Path) -> Result<(), IdentityError> {
        write_private(path, &Written::of(self))
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.subject() {
            Ok(subject) => write!(f, "Identity({subject} of {})", self.cluster),
            Err(_) => write!(f, "Identity(of {})", self.cluster),
        }
    }
}

/// The file. Certificates are PEM, so that `openssl x509` reads what one cuts out.
#[derive(Serialize, Deserialize)]
struct Written {
    cluster: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    peer: Option<u64>,
    #[serde(default)]
    controllers: Vec<String>,
    certificates: Vec<String>,
    authorities: Vec<String>,
    key: Zeroizing<String>,
}

impl Written {
    fn of(identity: &Identity) -> Self {
        let pem = |ders: &[Der]| ders.iter().map(|der| certificate_pem(der)).collect();
        Self {
            cluster: identity.cluster.clone(),
            peer: identity.peer,
            controllers: identity.controllers.clone(),
            certificates: pem(&identity.certificates),
            authorities: pem(&identity.authorities),
            key: identity.key_pem.clone(),
        }
    }

    fn identity(self) -> Result<Identity, rustls::pki_types::pem::Error> {
        let ders = |pems: &[String]| -> Result<Vec<Der>, _> {
            let der = |pem: &String| rustls::pki_types::CertificateDer::from_pem_slice(pem.as_bytes());
            pems.iter().map(|pem| der(pem).map(|der| der.to_vec())).collect()
        };
        PrivateKeyDer::from_pem_slice(self.key.as_bytes())?;
        Ok(Identity {
            certificates: ders(&self.certificates)?,
            key_pem: self.key,
            authorities: ders(&self.authorities)?,
            cluster: self.cluster,
            controllers: self.controllers,
            peer: self.peer,
        })
    }
}

fn certificate_pem(der: &[u8]) -> String {
    let text = BASE64.encode(der);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.extend(line.iter().copied().map(char::from));
        pem.push('\n');
    }
    pem.push_str("-----END CERTIFICATE-----\n");
    pem
}

/// The directory of a machine's identity.
#[derive(Clone, Debug)]
pub struct IdentityDir(pub PathBuf);

/// What somebody asks to have signed, kept until it is.
#[derive(Serialize, Deserialize)]
struct Asking {
    cluster: String,
    name: String,
    key: Zeroizing<String>,
    /// PKCS #10, base64.
    request: String,
}

impl IdentityDir {
    pub fn path(&self) -> PathBuf {
        self.0.join(FILE)
    }

    /// The key to join `cluster` with as `name`: the one of an attempt that was cut off, or a new one, which is kept. With
    /// the same key the cluster answers again; for another one the name would be taken.
    pub fn key_to_join(&self, cluster: &str, name: &str) -> Result<KeyAndRequest, IdentityError> {
        let path = self.0.join(ASKING);
        let kept = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice::<Asking>(&Zeroizing::new(bytes)).ok(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => return Err(IdentityError::File { verb: "read", path, source }),
        };
        // One that cannot be read is of a crash before anything was asked.
        let kept = kept.filter(|kept| kept.cluster == cluster && kept.name == name);
        if let Some(Asking { key, request, .. }) = kept
            && let Ok(request_der) = BASE64.decode(request)
        {
            return Ok(KeyAndRequest { key_pem: key, request_der });
        }
        let new = KeyAndRequest::generate(name)?;
        let asking = Asking {
            cluster: cluster.to_owned(),
            name: name.to_owned(),
            key: new.key_pem.clone(),
            request: BASE64.encode(&new.request_der),
        };
        write_private(&path, &asking)?;
        Ok(new)
    }

    pub fn load(&self) -> Result<Option<Identity>, IdentityError> {
        Identity::read(&self.path())
    }

    pub fn save(&self, identity: &Identity) -> Result<(), IdentityError> {
        identity.write(&self.path())?;
        remove_file(&self.0.join(ASKING))
    }

    /// For one that leaves its cluster. No identity there is no error.
    pub fn remove(&self) -> Result<(), IdentityError> {
        remove_file(&self.0.join(ASKING))?;
        remove_file(&self.path())
    }
}

fn remove_file(path: &Path) -> Result<(), IdentityError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(IdentityError::File { verb: "remove", path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Replaces the file at once and for good, for its owner's eyes only. Its directory is made when it is missing.
fn write_private(path: &Path, content: &impl Serialize) -> Result<(), IdentityError> {
    let failed = |verb| move |source| IdentityError::File { verb, path: path.to_owned(), source };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed("make the directory of"))?;
    let text = serde_json::to_string_pretty(content).map(Zeroizing::new);
    let text = text.map_err(|error| failed("write")(error.into()))?;
    // tempfile makes it with mode 0600 and removes it when something fails.
    let mut file = tempfile::NamedTempFile::new_in(parent).map_err(failed("write"))?;
    file.write_all(text.as_bytes()).map_err(failed("write"))?;
    file.as_file().sync_all().map_err(failed("sync"))?;
    file.persist(path).map_err(|error| failed("replace")(error.error))?;
    let directory = fs::OpenOptions::new().read(true).custom_flags(nix::libc::O_DIRECTORY).open(parent);
    directory.and_then(|directory| directory.sync_all()).map_err(failed("sync the directory of"))
}
