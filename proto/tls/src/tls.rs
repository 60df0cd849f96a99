//! TLS made of identities: TLS 1.3, HTTP/2, certificates of the cluster's own authorities only.
//!
//! Sessions are never resumed: a resumed one would not be verified again, and would outlive its authority.

use std::{cell::RefCell, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, Error, RootCertStore, ServerConfig, SignatureScheme,
    client::{
        Resumption, WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::CryptoProvider,
    pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject},
    server::{
        NoServerSessionStorage, WebPkiClientVerifier,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::{CertificateError, Der, Identity, Role, Subject, fingerprint, subject::parse};

/// In every controller's certificate. Addresses change and are not: who connects by an address asks for this name.
pub const SERVER_NAME: &str = "controller.roster";

const ALPN: &[u8] = b"h2";

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("the private key cannot be read")]
    Key(#[source] rustls::pki_types::pem::Error),
    #[error("the certificate, its key and the authorities do not make TLS")]
    Rustls(#[from] Error),
    #[error("no authority is trusted: nothing could be verified")]
    Verifier(#[from] rustls::server::VerifierBuilderError),
    #[error(transparent)]
    Certificate(#[from] CertificateError),
}

/// Why a controller was not believed. Travels inside of rustls' error.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Impostor {
    #[error(
        "it does not hold the authority that the join token names: the token is of another cluster, or the authority \
         was rotated since; make a new token"
    )]
    OtherAuthority,
    #[error("its certificate is {0}'s, and not a controller's of this cluster")]
    NotAController(String),
    #[error("its certificate has no subject of a Roster cluster")]
    NoSubject,
}

impl From<Impostor> for Error {
    fn from(impostor: Impostor) -> Self {
        Error::InvalidCertificate(rustls::CertificateError::Other(rustls::OtherError(Arc::new(impostor))))
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}

fn key(pem: &str) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(TlsError::Key)
}

fn roots(authorities: &[Vec<u8>]) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for authority in authorities {
        roots.add(CertificateDer::from(authority.clone()))?;
    }
    Ok(Arc::new(roots))
}

fn chain<'a>(certificates: impl Iterator<Item = &'a Der>) -> Vec<CertificateDer<'static>> {
    certificates.map(|der| CertificateDer::from(der.clone())).collect()
}

/// Whether `authority` signed `certificate`; only the signature is looked at.
pub(crate) fn signed_by(certificate: &[u8], authority: &[u8]) -> bool {
    match (parse(certificate), parse(authority)) {
        (Ok(certificate), Ok(authority)) => {
            certificate.issuer() == authority.subject()
                && certificate.verify_signature(Some(authority.public_key())).is_ok()
        }
        _ => false,
    }
}

/// Whether the key is the one in the certificate.
pub(crate) fn key_fits(certificate: &[u8], key_pem: &str) -> Result<bool, TlsError> {
    let key = provider().key_provider.load_private_key(key(key_pem)?)?;
    let certified = CertifiedKey::new(vec![CertificateDer::from(certificate.to_vec())], key);
    Ok(certified.keys_match().is_ok())
}

/// For a member that talks to controllers.
pub fn client_config(identity: &Identity) -> Result<Arc<ClientConfig>, TlsError> {
    let inner = WebPkiServerVerifier::builder_with_provider(roots(&identity.authorities)?, provider()).build()?;
    let verifier = ControllersOnly { inner: Inner::Known(inner), cluster: identity.cluster.clone() };
    let config = client_builder(verifier)?;
    let config = config.with_client_auth_cert(chain(identity.certificates.iter()), key(&identity.key_pem)?)?;
    Ok(finished(config))
}

/// For a stranger that holds a token: believes a controller of the token's cluster that shows the authority with this
/// digest, and nobody else.
pub fn anonymous_client_config(cluster: &str, authority: [u8; 32]) -> Result<Arc<ClientConfig>, TlsError> {
    let verifier = ControllersOnly { inner: Inner::Pinned(authority), cluster: cluster.to_owned() };
    Ok(finished(client_builder(verifier)?.with_no_client_auth()))
}

fn client_builder(
    verifier: ControllersOnly,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsError> {
    let builder = ClientConfig::builder_with_provider(provider()).with_protocol_versions(&[&rustls::version::TLS13])?;
    Ok(builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)))
}

fn finished(mut config: ClientConfig) -> Arc<ClientConfig> {
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.resumption = Resumption::disabled();
    Arc::new(config)
}

/// For a controller. Clients may come without a certificate; one that they show must be good.
pub fn server_config(identity: &Identity) -> Result<Arc<ServerConfig>, TlsError> {
    let inner = WebPkiClientVerifier::builder_with_provider(roots(&identity.authorities)?, provider())
        .allow_unauthenticated()
        .build()?;
    // The authorities go with the own certificate: a stranger finds there the one that its token names.
    let shown = identity.certificates.iter().chain(&identity.authorities);
    let verifier = MembersOnly { inner, cluster: identity.cluster.clone() };
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(Arc::new(verifier))
        .with_single_cert(chain(shown), key(&identity.key_pem)?)?;
    config.alpn_protocols = vec![ALPN.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// A controller of the cluster, by its certificate's subject, whoever else the authority has signed for.
#[derive(Debug)]
struct ControllersOnly {
    inner: Inner,
    cluster: String,
}

#[derive(Debug)]
enum Inner {
    Known(Arc<WebPkiServerVerifier>),
    /// SHA-256 of the authority's certificate.
    Pinned([u8; 32]),
}

impl ServerCertVerifier for ControllersOnly {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let pinned;
        let verifier = match &self.inner {
            Inner::Known(verifier) => verifier,
            Inner::Pinned(digest) => {
                let authority = intermediates.iter().find(|shown| fingerprint(shown) == *digest);
                let authority = authority.ok_or(Impostor::OtherAuthority)?;
                let mut roots = RootCertStore::empty();
                roots.add(authority.clone().into_owned())?;
                pinned = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider())
                    .build()
                    .map_err(|error| Error::General(error.to_string()))?;
                &pinned
            }
        };
        let verified = verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)?;
        let subject = Subject::from_certificate(end_entity).map_err(|_| Impostor::NoSubject)?;
        if subject.role != Role::Controller || subject.cluster != self.cluster {
            return Err(Impostor::NotAController(format!("{subject} of {}", subject.cluster)).into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &provider().signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        provider().signature_verification_algorithms.supported_schemes()
    }
}

tokio::task_local! {
    /// Whom the certificate names that the client of the handshake under way has shown, believed or not. rustls' error
    /// does not say, and a refusal is to be logged with the name.
    pub(crate) static SHOWN: RefCell<Option<String>>;
}

/// Members of the cluster, by its authorities and by the subject.
#[derive(Debug)]
struct MembersOnly {
    inner: Arc<dyn ClientCertVerifier>,
    cluster: String,
}

impl MembersOnly {
    fn subject(&self, end_entity: &[u8]) -> Result<Subject, Error> {
        let subject = Subject::from_certificate(end_entity);
        let shown = match &subject {
            Ok(subject) => format!("{subject} of {:?}", subject.cluster),
            Err(error) => error.to_string(),
        };
        // Outside of `accept` nobody asks.
        let _ = SHOWN.try_with(|slot| slot.replace(Some(shown)));
        subject.map_err(|_| Impostor::NoSubject.into())
    }
}

impl ClientCertVerifier for MembersOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let subject = self.subject(end_entity)?;
        let verified = self.inner.verify_client_cert(end_entity, intermediates, now)?;
        if subject.cluster != self.cluster {
            return Err(Impostor::NoSubject.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("TLS 1.2 is not spoken".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}
