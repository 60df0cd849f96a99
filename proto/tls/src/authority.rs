//! The cluster's own certificate authority, and the keys it signs. All keys are ECDSA P-256.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType, SerialNumber,
};
use rustls::pki_types::{CertificateDer, CertificateSigningRequestDer};
use time::OffsetDateTime;
use zeroize::Zeroizing;

use crate::{
    BACKDATED, Der, Role, Subject, fingerprint,
    subject::{CertificateError, hex, parse, validity},
    tls::SERVER_NAME,
};

/// Of an authority, unless it is rotated earlier.
const AUTHORITY_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A request of ours has under 300 bytes.
const MAX_REQUEST: usize = 4 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum SignError {
    #[error("cannot make a key")]
    Key(#[source] rcgen::Error),
    #[error("the signing request is refused: it is not a sound PKCS #10 request of an ECDSA P-256 key")]
    Request(#[source] rcgen::Error),
    #[error("the signing request is refused: it must hold an ECDSA P-256 key in at most {MAX_REQUEST} bytes")]
    Kind,
    #[error("the authority's certificate or key cannot be used")]
    Authority(#[source] rcgen::Error),
    #[error("the authority's key is not the one of its certificate")]
    Mismatch,
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    #[error("the authority has expired, or its end is nearer than its beginning: rotate it")]
    Expired,
    #[error("cannot sign")]
    Sign(#[source] rcgen::Error),
}

/// A fresh key, and the request to sign it. The key never leaves its holder.
pub struct KeyAndRequest {
    /// PKCS #8.
    pub key_pem: Zeroizing<String>,
    /// PKCS #10.
    pub request_der: Der,
}

impl KeyAndRequest {
    /// The name in the request is for people who look at one; the authority writes the subject itself.
    pub fn generate(name: &str) -> Result<Self, SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::Key)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::CommonName, name);
        let request = params.serialize_request(&key).map_err(SignError::Key)?;
        Ok(Self { key_pem: Zeroizing::new(key.serialize_pem()), request_der: request.der().to_vec() })
    }
}

impl fmt::Debug for KeyAndRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("KeyAndRequest(…)")
    }
}

/// An authority's certificate and its key.
#[derive(Clone)]
pub struct Authority {
    certificate: Der,
    key_pem: Zeroizing<String>,
}

impl Authority {
    pub fn new(cluster: &str, now: SystemTime) -> Result<Self, SignError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(SignError::Key)?;
        let params = authority_params(cluster, &key, now, now + AUTHORITY_LIFETIME);
        let certificate = params.self_signed(&key).map_err(SignError::Sign)?;
        Ok(Self { certificate: certificate.der().to_vec(), key_pem: Zeroizing::new(key.serialize_pem()) })
    }

    /// One that was kept. Fails now rather than at the first signature.
    pub fn from_parts(certificate: Der, key_pem: String) -> Result<Self, SignError> {
        let authority = Self { certificate, key_pem: Zeroizing::new(key_pem) };
        authority.issuer()?;
        Ok(authority)
    }

    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// PKCS #8, PEM.
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    pub fn digest(&self) -> [u8; 32] {
        fingerprint(&self.certificate)
    }

    /// A certificate for the key in `request`, whose holder has proven to have it. The subject is ours to say: whatever
    /// else the request asks for is not looked at. It ends with the authority at the latest.
    pub fn sign(
        &self,
        request: &[u8],
        subject: &Subject,
        lifetime: Duration,
        now: SystemTime,
    ) -> Result<Der, SignError> {
        if request.len() > MAX_REQUEST {
            return Err(SignError::Kind);
        }
        let request = CertificateSigningRequestDer::from(request);
        let request = CertificateSigningRequestParams::from_der(&request).map_err(SignError::Request)?;
        if request.public_key.algorithm() != &PKCS_ECDSA_P256_SHA256 {
            return Err(SignError::Kind);
        }
        let (_, authority_ends) = validity(&parse(&self.certificate)?);
        let authority_ends = SystemTime::UNIX_EPOCH + Duration::from_micros(authority_ends.0);
        let ends = (now + lifetime).min(authority_ends);
        if ends <= now {
            return Err(SignError::Expired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, subject.cluster.as_str());
        params.distinguished_name.push(DnType::OrganizationalUnitName, subject.role.as_str());
        params.distinguished_name.push(DnType::CommonName, subject.name.as_str());
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        if subject.role == Role::Controller {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
            let name = SERVER_NAME.try_into().map_err(SignError::Sign)?;
            params.subject_alt_names = vec![SanType::DnsName(name)];
        }
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(serial());
        params.not_before = OffsetDateTime::from(now - BACKDATED);
        params.not_after = OffsetDateTime::from(ends);
        let signed = params.signed_by(&request.public_key, &self.issuer()?).map_err(SignError::Sign)?;
        Ok(signed.der().to_vec())
    }

    /// A certificate for the key of `next`, so that who trusts only this one believes what `next` signs.
    pub fn cross_sign(&self, next: &Authority, now: SystemTime) -> Result<Der, SignError> {
        let (_, ends) = validity(&parse(&self.certificate)?);
        let ends = SystemTime::UNIX_EPOCH + Duration::from_micros(ends.0);
        let next_certificate = parse(&next.certificate)?;
        let cluster = next_certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
        let key = KeyPair::from_pem(&next.key_pem).map_err(SignError::Authority)?;
        let mut params = authority_params(cluster.unwrap_or_default(), &key, now, ends);
        params.use_authority_key_identifier_extension = true;
        let signed = params.signed_by(&key, &self.issuer()?).map_err(SignError::Sign)?;
        Ok(signed.der().to_vec())
    }

    fn issuer(&self) -> Result<Issuer<'static, KeyPair>, SignError> {
        let key = KeyPair::from_pem(&self.key_pem).map_err(SignError::Authority)?;
        let certificate = CertificateDer::from(self.certificate.as_slice());
        if parse(&self.certificate)?.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
            return Err(SignError::Mismatch);
        }
        Issuer::from_ca_cert_der(&certificate, key).map_err(SignError::Authority)
    }
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Authority({})", hex(&self.digest()))
    }
}

/// Of the same name for the same key, whoever signs.
fn authority_params(cluster: &str, key: &KeyPair, now: SystemTime, ends: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, cluster);
    // A name of its own for each: a certificate names its issuer, and during a rotation there are two.
    let own = &hex(&fingerprint(key.public_key_raw()))[..16];
    params.distinguished_name.push(DnType::CommonName, format!("Roster authority {own}"));
    // One further authority beneath it: the next one, while they overlap.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.serial_number = Some(serial());
    params.not_before = OffsetDateTime::from(now - BACKDATED);
    params.not_after = OffsetDateTime::from(ends);
    params
}

/// Positive and of fixed length, as RFC 5280 asks.
fn serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = bytes[0] & 0x3f | 0x40;
    SerialNumber::from_slice(&bytes)
}
