use roster_tls::{Authority, KeyAndRequest, Role, Subject};

use super::*;

fn identity(authorities: &[&Authority], name: &str) -> Identity {
    let key = KeyAndRequest::generate(name).unwrap();
    let subject = Subject { cluster: "k3vq7m2xw5ot4zpa".into(), role: Role::Agent, name: name.into() };
    let now = std::time::SystemTime::now();
    let certificate = authorities[0].sign(&key.request_der, &subject, Duration::from_secs(3600), now).unwrap();
    Identity {
        certificates: vec![certificate],
        key_pem: key.key_pem,
        authorities: authorities.iter().map(|authority| authority.certificate().to_vec()).collect(),
        cluster: subject.cluster,
        controllers: vec!["192.0.2.1:7640".into()],
        peer: None,
    }
}

fn authority() -> Authority {
    Authority::new("k3vq7m2xw5ot4zpa", std::time::SystemTime::now()).unwrap()
}

#[test]
fn what_is_on_disk_counts_whenever_it_comes_and_goes() {
    let data = tempfile::tempdir().unwrap();
    let membership = Membership::new(data.path(), "vm1".parse().unwrap());
    assert!(membership.look().unwrap().is_none() && !membership.is_stale());
    let authority = authority();
    let first = identity(&[&authority], "vm1");
    directory(data.path()).save(&first).unwrap();
    assert!(membership.is_stale());
    assert_eq!(membership.look().unwrap().unwrap().identity, first);
    assert!(!membership.is_stale());

    directory(data.path()).save(&identity(&[&authority], "vm2")).unwrap();
    let error = membership.look().unwrap_err().to_string();
    assert!(error.contains("--node vm2") && error.contains("--node vm1"), "{error}");
    std::fs::write(directory(data.path()).path(), "{").unwrap();
    let error = membership.look().unwrap_err().to_string();
    assert!(error.contains("is damaged") && error.contains("join again"), "{error}");
    directory(data.path()).remove().unwrap();
    assert!(membership.look().unwrap().is_none());
}

#[test]
fn news_of_the_cluster_never_overwrites_a_newer_identity() {
    let data = tempfile::tempdir().unwrap();
    let membership = Membership::new(data.path(), "vm1".parse().unwrap());
    let (old, new) = (authority(), authority());
    directory(data.path()).save(&identity(&[&old], "vm1")).unwrap();
    membership.look().unwrap();
    let joined_again = identity(&[&new], "vm1");
    directory(data.path()).save(&joined_again).unwrap();
    membership.learn(wire::Controllers { addresses: vec!["192.0.2.7:1".into()], authorities: vec![] }).unwrap();
    assert_eq!(membership.look().unwrap().unwrap().identity, joined_again);
}

#[test]
fn a_certificate_is_due_with_age_or_with_another_authority() {
    let (old, new) = (authority(), authority());
    let mut identity = identity(&[&old, &new], "vm1");
    let wait = due(&identity, None);
    assert!(wait > Duration::from_secs(2000) && wait <= Duration::from_secs(2400), "{wait:?}");
    identity.authorities.reverse();
    assert_eq!(due(&identity, None), Duration::ZERO);
    // One that goes on being signed by the other is not asked for again and again.
    assert!(due(&identity, signing(&identity)) > Duration::from_secs(2000));
}
