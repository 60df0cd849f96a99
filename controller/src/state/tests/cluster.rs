//! The commands about the cluster itself: controllers, whom it trusts, requests.

use roster_proto::{
    id::{ClusterId, PeerId, Version},
    time::Timestamp,
};

use super::{apply, id, put, web};
use crate::state::{
    AuthorityRecord, ClusterState, Grant, Holder, MAX_CONTROLLERS, MAX_REQUEST_ID, MAX_REVOKED, MAX_TOKENS,
    REQUESTS_KEPT, Secret, TokenRole, UserRole,
    command::{Command, Entry, Outcome, Refusal},
    controllers::Settings,
};

fn cluster_id() -> ClusterId {
    "abcdefghij234567".parse().expect("a cluster's id")
}

fn authority(key: Option<&[u8]>, since: u64) -> AuthorityRecord {
    AuthorityRecord { certificate: vec![1, 2, 3], key: key.map(Secret::new), since: Timestamp(since), cross: None }
}

pub(super) fn founded() -> ClusterState {
    let mut state = ClusterState::default();
    let init = Command::InitCluster { cluster: cluster_id(), authority: authority(Some(b"key"), 1) };
    assert_eq!(apply(&mut state, init), Outcome::Applied);
    state
}

fn controller(id: u64, name: &str) -> Command {
    Command::PutController {
        id: PeerId(id),
        name: name.parse().expect("a controller's name"),
        address: format!("10.0.0.{id}:7640"),
        release: "0.1.0".to_owned(),
        protocol: 1,
        spare: false,
    }
}

fn token(id: &str, uses: u32, expires: u64) -> Command {
    let (digest, expires) = (Secret::new(*b"digest"), Timestamp(expires));
    Command::PutToken { id: id.to_owned(), role: TokenRole::Agent, digest, expires, uses }
}

/// Of a signing request, until a moment.
fn grant(request: u8, expires: u64) -> Grant {
    Grant {
        serial: format!("{request:02x}"),
        request: [request; 32],
        authority: [1; 32],
        issued: Timestamp(0),
        expires: Timestamp(expires),
    }
}

fn use_token_as(id: &str, name: &str, request: u8) -> Command {
    let (digest, grant) = (Secret::new(*b"digest"), grant(request, 1_000));
    Command::UseToken { id: id.to_owned(), digest, name: name.to_owned(), grant }
}

fn use_token(id: &str, digest: &[u8], name: &str) -> Command {
    let (digest, grant) = (Secret::new(digest), grant(1, 1_000));
    Command::UseToken { id: id.to_owned(), digest, name: name.to_owned(), grant }
}

pub(super) fn last_event(state: &ClusterState) -> String {
    state.events().next_back().map(|event| event.message.clone()).unwrap_or_default()
}

pub(super) fn refused(outcome: Outcome) -> Refusal {
    match outcome {
        Outcome::Refused(refusal) => refusal,
        other => panic!("not refused: {other:?}"),
    }
}

#[test]
fn a_cluster_is_founded_once() {
    let mut state = founded();
    let again = Command::InitCluster { cluster: cluster_id(), authority: authority(Some(b"key"), 1) };
    assert_eq!(apply(&mut state, again), Outcome::Refused(Refusal::AlreadyInitialised(cluster_id())));
    let keyless = Command::InitCluster { cluster: cluster_id(), authority: authority(None, 1) };
    assert_eq!(apply(&mut ClusterState::default(), keyless), Outcome::Refused(Refusal::NoAuthority));
    let early = apply(&mut ClusterState::default(), token("a", 1, 99));
    assert_eq!(early, Outcome::Refused(Refusal::NotInitialised));
}

#[test]
fn secrets_are_shown_nowhere_and_kept_in_the_snapshot() {
    let mut state = founded();
    apply(&mut state, token("a", 1, 99));
    let shown = format!("{state:?} {:?} {:?}", token("a", 1, 99), state.security);
    for secret in [b"key".as_slice(), b"digest"] {
        let numbers = format!("{secret:?}");
        assert!(!shown.contains(numbers.trim_matches(['[', ']'])), "{shown}");
    }
    let restored = ClusterState::decode(&state.encode()).expect("a good snapshot");
    assert_eq!(restored.security.signing().and_then(|a| a.key.clone()), Some(Secret::new(*b"key")));
    assert_eq!(restored, state);
}

#[test]
fn a_snapshot_from_before_there_were_clusters_is_read() {
    #[derive(serde::Serialize)]
    struct Old {
        version: Version,
        plan_base: Version,
        intent_base: Version,
        services: [(); 0],
        tasks: [(); 0],
        nodes: [(); 0],
        events: [(); 0],
    }
    let version = Version(3);
    let old = Old { version, plan_base: version, intent_base: version, services: [], tasks: [], nodes: [], events: [] };
    let mut bytes = b"roster-state\x01".to_vec();
    rmp_serde::encode::write_named(&mut bytes, &old).expect("memory");
    let state = ClusterState::decode(&bytes).expect("a good snapshot");
    assert_eq!((state.version, state.settings.clone()), (version, Settings::default()));

    #[derive(serde::Serialize)]
    struct OldEntry {
        at: Timestamp,
        command: Command,
    }
    let mut bytes = vec![1];
    let command = put(&[("web", web(1))]);
    rmp_serde::encode::write_named(&mut bytes, &OldEntry { at: Timestamp(1), command: command.clone() })
        .expect("memory");
    assert_eq!(Entry::decode(&bytes).expect("a good entry"), Entry::new(Timestamp(1), command));
}

#[test]
fn a_controller_that_left_is_refused_until_it_joins_anew() {
    let mut state = founded();
    assert_eq!(apply(&mut state, controller(1, "c1")), Outcome::Applied);
    assert_eq!(apply(&mut state, controller(1, "c1")), Outcome::Unchanged);
    apply(&mut state, controller(2, "c2"));
    assert_eq!(apply(&mut state, Command::RemoveController { id: PeerId(2) }), Outcome::Applied);
    let holder = Holder::Controller("c2".to_owned());
    assert!(state.security.is_revoked(&holder, Timestamp(state.version.0)));
    assert!(!state.security.is_revoked(&holder, Timestamp(state.version.0 + 1)));
    assert!(!state.security.is_revoked(&Holder::Agent("c2".to_owned()), Timestamp(1)));
    for n in 2..=MAX_CONTROLLERS as u64 {
        assert_eq!(apply(&mut state, controller(n + 100, &format!("d{n}"))), Outcome::Applied);
    }
    assert!(matches!(refused(apply(&mut state, controller(999, "e"))), Refusal::Limit(_)));
}

#[test]
fn tokens_admit_as_often_and_as_long_as_they_say() {
    let mut state = founded();
    apply(&mut state, token("a", 2, 1_000));
    assert_eq!(apply(&mut state, token("a", 2, 1_000)), Outcome::Refused(Refusal::TokenExists("a".to_owned())));
    assert_eq!(apply(&mut state, use_token("a", b"guessed", "vm1")), Outcome::Refused(Refusal::UnknownToken));
    assert_eq!(apply(&mut state, use_token("b", b"digest", "vm1")), Outcome::Refused(Refusal::UnknownToken));
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm1")), Outcome::Applied);
    assert_eq!(last_event(&state), "agent vm1 is admitted by join token a (uses left: 1)");
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm2")), Outcome::Applied);
    let used_up = Refusal::TokenUsedUp("a".to_owned());
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm3")), Outcome::Refused(used_up));

    apply(&mut state, token("late", 1, 2));
    let expired = Refusal::TokenExpired { id: "late".to_owned(), at: Timestamp(2) };
    assert_eq!(apply(&mut state, use_token("late", b"digest", "vm3")), Outcome::Refused(expired));

    let revoke = || Command::RevokeToken { id: "a".to_owned() };
    assert_eq!(apply(&mut state, revoke()), Outcome::Applied);
    assert_eq!(apply(&mut state, revoke()), Outcome::Refused(Refusal::NoSuchToken("a".to_owned())));
    assert_eq!(apply(&mut state, use_token("a", b"digest", "vm3")), Outcome::Refused(Refusal::UnknownToken));
}

#[test]
fn nobody_joins_under_the_name_of_another() {
    let mut state = founded();
    apply(&mut state, token("a", 9, 10_000));
    let left = |state: &ClusterState| state.security.tokens["a"].uses_left;
    assert_eq!(apply(&mut state, use_token_as("a", "vm1", 1)), Outcome::Applied);
    let vm1 = Holder::Agent("vm1".to_owned());
    assert_eq!(refused(apply(&mut state, use_token_as("a", "vm1", 2))), Refusal::NameTaken(vm1.clone()));
    // An answer that was lost is asked for again.
    assert_eq!(apply(&mut state, use_token_as("a", "vm1", 1)), Outcome::Applied);
    assert_eq!(left(&state), 8);
    // Whoever let the certificate expire may come anew.
    let late = Entry::new(Timestamp(5_000), use_token_as("a", "vm1", 2));
    assert_eq!(state.apply(Version(state.version.0 + 1), &late).outcome, Outcome::Applied);
    assert_eq!((left(&state), state.security.grants[&vm1].request), (7, [2; 32]));
    assert_eq!(ClusterState::decode(&state.encode()).expect("a good snapshot"), state);
}

#[test]
fn who_was_removed_does_not_renew() {
    let mut state = founded();
    let ann = Holder::User("ann".to_owned());
    let add = |request| Command::PutUser { name: "ann".to_owned(), role: UserRole::Viewer, grant: grant(request, 99) };
    let renew = |request, expires| Command::PutGrant { holder: ann.clone(), grant: grant(request, expires) };
    apply(&mut state, add(1));
    assert_eq!(apply(&mut state, renew(2, 199)), Outcome::Applied);
    assert_eq!(state.security.users["ann"].expires, Timestamp(199));
    apply(&mut state, Command::RemoveUser { name: "ann".to_owned() });
    let removed = Timestamp(state.version.0);
    assert_eq!(refused(apply(&mut state, renew(3, 299))), Refusal::Removed(ann.clone()));
    assert!(state.security.refuses(&ann, removed, "03"));

    // Added again: what was granted last counts even if it says the second of the removal, everything older does not.
    apply(&mut state, add(4));
    assert!(!state.security.refuses(&ann, Timestamp(0), "04"));
    assert!(state.security.refuses(&ann, Timestamp(0), "02"));
    assert_eq!(apply(&mut state, renew(5, 399)), Outcome::Applied);
}

#[test]
fn who_is_behind_in_a_rotation() {
    let mut state = founded();
    apply(&mut state, token("a", 9, 10_000));
    apply(&mut state, use_token_as("a", "vm1", 1));
    let names = |state: &ClusterState, signer, now| {
        state.security.behind(signer, Timestamp(now)).map(ToString::to_string).collect::<Vec<_>>()
    };
    assert_eq!(names(&state, [1; 32], 9), Vec::<String>::new());
    assert_eq!(names(&state, [2; 32], 9), ["node vm1"]);
    assert_eq!(names(&state, [2; 32], 1_000), Vec::<String>::new(), "its certificate has expired");
}

#[test]
fn tokens_are_bounded_and_old_ones_make_room() {
    let mut state = founded();
    for n in 0..MAX_TOKENS {
        assert_eq!(apply(&mut state, token(&format!("t{n}"), 1, 2)), Outcome::Applied);
    }
    assert!(matches!(refused(apply(&mut state, token("more", 1, 99))), Refusal::Limit(_)));
    let two_days = Timestamp(2 * 24 * 3_600_000_000);
    let version = Version(state.version.0 + 1);
    let applied = state.apply(version, &Entry::new(two_days, token("more", 1, u64::MAX)));
    assert_eq!(applied.outcome, Outcome::Applied);
    assert_eq!(state.security.tokens.keys().collect::<Vec<_>>(), ["more"]);
}

#[test]
fn a_removed_user_is_refused_until_given_a_new_certificate() {
    let mut state = founded();
    let add = |role| Command::PutUser { name: "ann".to_owned(), role, grant: grant(1, 99) };
    assert_eq!(apply(&mut state, add(UserRole::Viewer)), Outcome::Applied);
    assert_eq!(apply(&mut state, add(UserRole::Admin)), Outcome::Applied);
    assert_eq!(last_event(&state), "user ann is admin instead of viewer now");
    let issued = Timestamp(state.version.0);
    let remove = || Command::RemoveUser { name: "ann".to_owned() };
    assert_eq!(apply(&mut state, remove()), Outcome::Applied);
    assert_eq!(apply(&mut state, remove()), Outcome::Refused(Refusal::NoSuchUser("ann".to_owned())));
    assert!(state.security.is_revoked(&Holder::User("ann".to_owned()), issued));
    apply(&mut state, add(UserRole::Viewer));
    assert!(state.security.is_revoked(&Holder::User("ann".to_owned()), issued));
    assert!(!state.security.is_revoked(&Holder::User("ann".to_owned()), Timestamp(state.version.0)));
}

#[test]
fn a_rotation_forgets_the_refusals_it_makes_superfluous() {
    let mut state = founded();
    for n in 0..MAX_REVOKED {
        apply(&mut state, Command::PutUser { name: format!("u{n}"), role: UserRole::Viewer, grant: grant(1, 9) });
        assert_eq!(apply(&mut state, Command::RemoveUser { name: format!("u{n}") }), Outcome::Applied);
    }
    apply(&mut state, Command::PutUser { name: "ann".to_owned(), role: UserRole::Viewer, grant: grant(1, 9) });
    let remove = || Command::RemoveUser { name: "ann".to_owned() };
    assert!(matches!(refused(apply(&mut state, remove())), Refusal::Limit(_)));
    let both = vec![authority(Some(b"new"), 1_000_000), authority(None, 1)];
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: both }), Outcome::Applied);
    assert_eq!(state.security.revoked.len(), MAX_REVOKED);
    let one = vec![authority(Some(b"new"), 1_000_000)];
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: one.clone() }), Outcome::Applied);
    assert_eq!(apply(&mut state, Command::SetAuthorities { authorities: one }), Outcome::Unchanged);
    assert!(state.security.revoked.is_empty());
    assert_eq!(apply(&mut state, remove()), Outcome::Applied);
    let none = apply(&mut state, Command::SetAuthorities { authorities: vec![authority(None, 1)] });
    assert_eq!(none, Outcome::Refused(Refusal::NoAuthority));
}

#[test]
fn settings_have_bounds() {
    let mut state = ClusterState::default();
    let forever = Settings { brake_for: 0, replace_controller_after: 0, ..Settings::default() };
    assert_eq!(apply(&mut state, Command::Configure { settings: forever.clone() }), Outcome::Applied);
    assert_eq!(apply(&mut state, Command::Configure { settings: forever }), Outcome::Unchanged);
    for wrong in [
        Settings { certificate_lifetime: 1_000_000, ..Settings::default() },
        Settings { certificate_lifetime: u64::MAX, ..Settings::default() },
        Settings { brake_for: 1, ..Settings::default() },
    ] {
        let refusal = refused(apply(&mut state, Command::Configure { settings: wrong }));
        assert!(matches!(refusal, Refusal::OutOfRange { .. }), "{refusal}");
    }
}

#[test]
fn a_request_that_comes_again_is_answered_and_not_done_again() {
    let mut state = ClusterState::default();
    let mut ask = |request: &str, replicas: u32| {
        let version = Version(state.version.0 + 1);
        let request = Some(request.to_owned());
        let entry = Entry { at: Timestamp(version.0), request, command: put(&[("web", web(replicas))]) };
        let applied = state.apply(version, &entry);
        assert_eq!(state.version, version);
        (applied.version, applied.outcome, state.services.get(&id("web")).map(|s| s.version))
    };
    assert_eq!(ask("a", 1), (Version(1), Outcome::Applied, Some(Version(1))));
    assert_eq!(ask("b", 1), (Version(2), Outcome::Unchanged, Some(Version(1))));
    assert_eq!(ask("c", 3), (Version(3), Outcome::Applied, Some(Version(3))));
    assert_eq!(ask("a", 1), (Version(1), Outcome::Applied, Some(Version(3))));
    assert_eq!(ask("b", 1), (Version(2), Outcome::Unchanged, Some(Version(3))));
    let (version, refusal, _) = ask("d", u32::MAX);
    assert!(matches!(refusal, Outcome::Refused(Refusal::Limit(_))));
    assert_eq!(ask("d", 1).0, version);
    let long = "x".repeat(MAX_REQUEST_ID + 1);
    let first = ask(&long, 4).0;
    assert!(ask(&long, 4).0 > first, "too long to be remembered");

    for n in 0..REQUESTS_KEPT {
        ask(&n.to_string(), 4);
    }
    assert!(ask("a", 4).0 > Version(9), "forgotten");
    let restored = ClusterState::decode(&state.encode()).expect("a good snapshot");
    assert_eq!(restored, state);
}
