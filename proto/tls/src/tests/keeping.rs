//! Tokens, certificates, files.

use std::{fs, os::unix::fs::PermissionsExt, time::SystemTime};

use roster_proto::{time::Timestamp, wire};

use super::*;
use crate::{Certificate, IdentityDir, IdentityError, InvalidToken, Token, fingerprint};

fn token() -> Token {
    Token::mint(CLUSTER, Role::Agent, [7; 32], vec!["192.0.2.1:7640".into(), "[2001:db8::1]:7640".into()])
}

#[test]
fn a_token_comes_back_as_it_went() {
    let token = token();
    let text = token.to_string();
    assert!(text.starts_with("roster-join-v1.agent.k3vq7m2xw5ot4zpa."), "{text}");
    assert!(text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b)), "needs no quotes: {text}");
    let read: Token = format!(" {text}\n").parse().expect("it is whole");
    assert_eq!(read, token);
    assert!(read.secret.has_digest(&token.secret.digest()));
    assert!(!read.secret.has_digest(&Token::mint(CLUSTER, Role::Agent, [7; 32], vec![]).secret.digest()));
}

#[test]
fn a_token_that_was_cut_or_changed_is_refused_with_words() {
    let text = token().to_string();
    for end in 0..text.len() {
        let error = text[..end].parse::<Token>();
        // Only an end of the last part can go unnoticed, where base64 happens to be whole: then an address is missing.
        if let Ok(cut) = error {
            assert!(cut.addresses.len() <= 2 && cut.secret == text.parse::<Token>().expect("whole").secret);
        }
    }
    assert_eq!("hello".parse::<Token>(), Err(InvalidToken::Prefix));
    let person = text.replace(".agent.", ".admin.");
    assert!(person.parse::<Token>().expect_err("people join by rctl user add").to_string().contains("machine's"));
    let long = format!("{text}{}", "A".repeat(10_000));
    assert_eq!(long.parse::<Token>(), Err(InvalidToken::Broken("it is too long")));
    for part in ["..", "roster-join-v1.......", "roster-join-v1.agent.a.b.c.d.e"] {
        assert!(part.parse::<Token>().is_err(), "{part}");
    }
}

#[test]
fn nothing_shows_a_secret_in_debug() {
    let token = token();
    let text = token.to_string();
    let secret = text.split('.').nth(4).expect("the secret");
    assert!(!format!("{token:?}").contains(secret));
    let authority = authority();
    let identity = identity(&authority, Role::Agent, "vm1");
    let key = KeyAndRequest::generate("vm1").expect("a key");
    for shown in [format!("{authority:?}"), format!("{identity:?}"), format!("{key:?}")] {
        assert!(!shown.contains("PRIVATE") && shown.len() < 100, "{shown}");
    }
    assert_eq!(format!("{identity:?}"), format!("Identity(agent/vm1 of {CLUSTER})"));
}

#[test]
fn a_certificate_says_who_and_how_long() {
    let authority = authority();
    let before = Timestamp::from(SystemTime::now());
    let one = identity(&authority, Role::Operator, "eve");
    let certificate = one.certificate().expect("readable");
    assert_eq!(certificate.subject, subject(Role::Operator, "eve"));
    // Whole seconds.
    assert!(certificate.issued.since(before) <= Duration::from_secs(2), "{certificate:?}");
    assert_eq!(certificate.expires.since(certificate.issued), HOUR);
    assert_eq!(one.renew_at().expect("readable").since(certificate.issued), HOUR / 3 * 2);
    assert_eq!(one.signer(), Some(authority.digest()));
    let other = identity(&authority, Role::Operator, "eve").certificate().expect("readable");
    assert_ne!(certificate.serial, other.serial);
    assert_eq!(certificate.serial.len(), 32);
}

#[test]
fn a_request_decides_nothing_but_its_key() {
    use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyPair};
    let authority = authority();
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(vec!["controller.roster".to_owned()]).expect("params");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let request = params.serialize_request(&key).expect("a request");
    let der = authority.sign(request.der(), &subject(Role::Viewer, "eve"), HOUR, SystemTime::now()).expect("signed");
    let signed = crate::subject::parse(&der).expect("readable");
    assert!(!signed.is_ca());
    assert!(signed.subject_alternative_name().expect("readable").is_none());
    assert_eq!(Certificate::read(&der).expect("readable").subject, subject(Role::Viewer, "eve"));

    // A key of another kind, a request that its key has not signed, and noise.
    let other = KeyPair::generate_for(&rcgen::PKCS_ED25519).expect("a key");
    let other = CertificateParams::default().serialize_request(&other).expect("a request");
    let mut forged = request.der().to_vec();
    let last = forged.len() - 1;
    forged[last] ^= 1;
    for bad in [other.der().to_vec(), forged, b"noise".to_vec(), vec![0; 100_000]] {
        let error = authority.sign(&bad, &subject(Role::Viewer, "eve"), HOUR, SystemTime::now());
        assert!(error.expect_err("refused").to_string().contains("signing request is refused"));
    }
}

#[test]
fn no_certificate_outlives_its_authority() {
    let authority = authority();
    let key = KeyAndRequest::generate("vm1").expect("a key");
    let year = Duration::from_secs(365 * 24 * 3600);
    let sign = |now| authority.sign(&key.request_der, &subject(Role::Agent, "vm1"), year * 5, now);
    let late = Certificate::read(&sign(SystemTime::now() + year * 8).expect("signed")).expect("readable");
    let ends = crate::subject::validity(&crate::subject::parse(authority.certificate()).expect("readable")).1;
    assert_eq!(late.expires, ends);
    assert!(sign(SystemTime::now() + year * 11).expect_err("it has ended").to_string().contains("rotate it"));
}

#[test]
fn an_identity_is_kept_privately_and_comes_back() {
    let dir = tempfile::tempdir().expect("a directory");
    let dir = IdentityDir(dir.path().join("deep/identity"));
    assert!(dir.load().expect("no file is no error").is_none());
    let mut one = identity(&authority(), Role::Controller, "c1");
    one.peer = Some(u64::MAX);
    dir.save(&one).expect("saved");
    let mode = |path: &std::path::Path| fs::metadata(path).expect("it exists").permissions().mode() & 0o777;
    assert_eq!((mode(&dir.0), mode(&dir.path())), (0o700, 0o600));
    assert!(dir.load().expect("readable").expect("there") == one);

    let two = identity(&authority(), Role::Controller, "c1");
    dir.save(&two).expect("replaced");
    assert!(dir.load().expect("readable").expect("there") == two);
    assert_eq!(fs::read_dir(&dir.0).expect("listed").count(), 1, "nothing is left behind");

    let text = fs::read_to_string(dir.path()).expect("read");
    fs::write(dir.path(), &text[..text.len() / 2]).expect("damaged");
    let error = dir.load().expect_err("damaged").to_string();
    assert!(error.contains("identity.json is damaged") && error.contains("join again"), "{error}");
    dir.remove().expect("removed");
    dir.remove().expect("again is no error");
}

#[test]
fn the_key_of_an_attempt_that_was_cut_off_is_used_again() {
    let parent = tempfile::tempdir().expect("a directory");
    let dir = IdentityDir(parent.path().join("identity"));
    let first = dir.key_to_join(CLUSTER, "vm1").expect("a key");
    let path = dir.0.join("asking.json");
    assert_eq!(fs::metadata(&path).expect("it is kept").permissions().mode() & 0o777, 0o600);
    let again = dir.key_to_join(CLUSTER, "vm1").expect("a key");
    assert!(first.key_pem == again.key_pem && first.request_der == again.request_der);
    // Somebody else, or elsewhere, is asked anew; so it is after what no crash leaves behind.
    let other = dir.key_to_join(CLUSTER, "vm2").expect("a key");
    assert!(first.request_der != other.request_der);
    assert!(other.request_der != dir.key_to_join("other", "vm2").expect("a key").request_der);
    fs::write(&path, "{").expect("damaged");
    let last = dir.key_to_join(CLUSTER, "vm1").expect("a key");
    assert!(last.request_der == dir.key_to_join(CLUSTER, "vm1").expect("a key").request_der);

    dir.save(&identity(&authority(), Role::Agent, "vm1")).expect("saved");
    assert!(!path.exists(), "the identity has it now");
}

#[test]
fn credentials_that_do_not_fit_are_refused() {
    let (ours, theirs) = (authority(), authority());
    let key = || KeyAndRequest::generate("vm1").expect("a key");
    let credentials = |key: &KeyAndRequest, trusted: &Authority| {
        let own = ours.sign(&key.request_der, &subject(Role::Agent, "vm1"), HOUR, SystemTime::now()).expect("signed");
        wire::Credentials {
            cluster: CLUSTER.into(),
            certificates: vec![own.into()],
            authorities: vec![trusted.certificate().to_vec().into()],
            ..Default::default()
        }
    };
    let mine = key();
    let good = credentials(&mine, &ours);
    assert!(matches!(Identity::assemble(key(), good.clone()), Err(IdentityError::OtherKey)));
    let other = wire::Credentials { cluster: "other".into(), ..good.clone() };
    let again = |pem: &str| Zeroizing::new(pem.to_owned());
    assert!(matches!(Identity::with_key(again(&mine.key_pem), other), Err(IdentityError::OtherCluster(..))));
    let unsigned = credentials(&mine, &theirs);
    assert!(matches!(Identity::with_key(again(&mine.key_pem), unsigned), Err(IdentityError::Unsigned)));
    let kept = Identity::assemble(mine, good).expect("it fits");
    assert_ne!(fingerprint(&kept.certificates[0]), fingerprint(&kept.authorities[0]));
}
