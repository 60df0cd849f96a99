//! The doors without a network: who is admitted, and who makes way.

use std::time::Duration;

use roster_tls::Subject;

use super::{
    connections::{Full, MAX_PER_SUBJECT, MAX_SHAKING, MAX_STRANGERS},
    *,
};
use crate::state::command::{Command, Entry};
use roster_proto::id::Version;

const DAY: Duration = Duration::from_secs(86_400);

fn now() -> Timestamp {
    SystemTime::now().into()
}

fn certificate(role: Role, name: &str) -> Arc<Certificate> {
    let subject = Subject { cluster: "abcdefghij234567".to_owned(), role, name: name.to_owned() };
    Arc::new(Certificate { subject, serial: "01".to_owned(), issued: Timestamp(0), expires: now().plus(DAY) })
}

fn member(role: Role, name: &str) -> Caller {
    Caller { who: Who::Member(certificate(role, name)), address: None }
}

fn doors(commands: Vec<Command>) -> Doors {
    let mut state = ClusterState::default();
    let authority = crate::state::AuthorityRecord {
        certificate: vec![1],
        key: Some(crate::state::Secret::new("x")),
        since: Timestamp(0),
        cross: None,
    };
    let init = Command::InitCluster { cluster: "abcdefghij234567".parse().expect("an id"), authority };
    for (version, command) in std::iter::once(init).chain(commands).enumerate() {
        let applied = state.apply(Version(version as u64 + 1), &Entry::new(Timestamp(10), command));
        assert!(matches!(applied.outcome, crate::state::command::Outcome::Applied), "{applied:?}");
    }
    Doors::new(watch::Sender::new(Arc::new(state)).subscribe())
}

fn ask(doors: &Doors, caller: &Caller, path: &str, for_whom: Option<&str>) -> Result<Origin, tonic::Code> {
    let mut headers = HeaderMap::new();
    if let Some(for_whom) = for_whom {
        headers.insert(call::FORWARDED_FOR, for_whom.parse().expect("a value"));
    }
    doors.admit(caller, path, &headers).map_err(|status| status.code())
}

const APPLY: &str = "/roster.v1.Control/Apply";
const LIST: &str = "/roster.v1.Control/ListTasks";
const TOKEN: &str = "/roster.v1.Cluster/CreateToken";
const SESSION: &str = "/roster.v1.Dispatch/Session";
const RAFT: &str = "/roster.v1.Raft/Messages";
const ENROLL: &str = "/roster.v1.Enroll/Enroll";
const INIT: &str = "/roster.v1.Local/Init";

#[test]
fn each_role_gets_where_it_belongs_and_nowhere_else() {
    let doors = doors(vec![]);
    let open = |caller: &Caller| {
        let all = [APPLY, LIST, TOKEN, SESSION, RAFT, ENROLL, INIT];
        all.into_iter().filter(|path| ask(&doors, caller, path, None).is_ok()).collect::<Vec<_>>()
    };
    assert_eq!(open(&Caller { who: Who::Local, address: None }), [APPLY, LIST, TOKEN, SESSION, RAFT, ENROLL, INIT]);
    assert_eq!(open(&Caller { who: Who::Stranger, address: None }), [ENROLL]);
    assert_eq!(open(&member(Role::Viewer, "v")), [LIST, ENROLL]);
    assert_eq!(open(&member(Role::Operator, "o")), [APPLY, LIST, ENROLL]);
    assert_eq!(open(&member(Role::Admin, "a")), [APPLY, LIST, TOKEN, ENROLL]);
    assert_eq!(open(&member(Role::Agent, "vm1")), [SESSION, ENROLL]);
    assert_eq!(open(&member(Role::Controller, "c1")), [RAFT, ENROLL]);
    assert_eq!(
        ask(&doors, &Caller { who: Who::Stranger, address: None }, LIST, None),
        Err(tonic::Code::Unauthenticated)
    );
    assert_eq!(ask(&doors, &member(Role::Agent, "vm1"), LIST, None), Err(tonic::Code::PermissionDenied));
}

#[test]
fn only_controllers_speak_for_others() {
    let doors = doors(vec![]);
    let controller = member(Role::Controller, "c1");
    let origin = ask(&doors, &controller, APPLY, Some("operator/eve")).expect("admitted");
    assert_eq!(origin, Origin { caller: "operator/eve".to_owned(), forwarded: true });
    // The role is checked again where the call arrives.
    assert_eq!(ask(&doors, &controller, TOKEN, Some("operator/eve")), Err(tonic::Code::PermissionDenied));
    assert_eq!(ask(&doors, &controller, INIT, Some("admin/root")), Err(tonic::Code::PermissionDenied));
    assert!(ask(&doors, &controller, ENROLL, Some("stranger")).is_ok());
    assert_eq!(ask(&doors, &controller, LIST, Some("stranger")), Err(tonic::Code::InvalidArgument));
    for nonsense in ["", "root", "king/arthur", "/"] {
        assert_eq!(ask(&doors, &controller, LIST, Some(nonsense)), Err(tonic::Code::InvalidArgument), "{nonsense:?}");
    }
    for other in [member(Role::Viewer, "v"), member(Role::Agent, "vm1"), member(Role::Operator, "o")] {
        let refused = ask(&doors, &other, TOKEN, Some("admin/ann"));
        assert_eq!(refused, Err(tonic::Code::PermissionDenied), "{other}");
    }
    let origin = ask(&doors, &member(Role::Viewer, "v"), LIST, Some("admin/ann")).expect("admitted as itself");
    assert_eq!(origin, Origin { caller: "viewer/v".to_owned(), forwarded: false });
}

#[test]
fn a_certificate_that_was_taken_back_or_outlived_counts_no_more() {
    let grant = |serial: &str| crate::state::Grant {
        serial: serial.to_owned(),
        request: [0; 32],
        authority: [0; 32],
        issued: Timestamp(10),
        expires: now().plus(DAY),
    };
    let add = |role, serial| Command::PutUser { name: "eve".to_owned(), role, grant: grant(serial) };
    let eve = member(Role::Admin, "eve");
    assert!(ask(&doors(vec![add(UserRole::Admin, "01")]), &eve, LIST, None).is_ok());
    let removed = doors(vec![add(UserRole::Admin, "01"), Command::RemoveUser { name: "eve".to_owned() }]);
    assert_eq!(ask(&removed, &eve, LIST, None), Err(tonic::Code::Unauthenticated));
    assert_eq!(ask(&removed, &eve, ENROLL, None), Err(tonic::Code::Unauthenticated));
    assert!(ask(&removed, &member(Role::Agent, "eve"), SESSION, None).is_ok(), "a node of that name is another");

    let demoted = doors(vec![add(UserRole::Admin, "01"), add(UserRole::Viewer, "02")]);
    assert_eq!(ask(&demoted, &eve, LIST, None), Err(tonic::Code::Unauthenticated));
    assert!(ask(&demoted, &member(Role::Viewer, "eve"), LIST, None).is_ok());

    let mut expired = Certificate::clone(&certificate(Role::Admin, "ann"));
    expired.expires = now();
    let expired = Caller { who: Who::Member(Arc::new(expired)), address: None };
    assert_eq!(ask(&doors(vec![]), &expired, LIST, None), Err(tonic::Code::Unauthenticated));
}

#[test]
fn a_flood_of_the_unproven_pushes_out_its_own() {
    let connections = Connections::default();
    let ann = connections.begin();
    ann.settle(Some(&certificate(Role::Admin, "ann")), Some([1; 32])).expect("there is room");
    let shaking: Vec<_> = (0..MAX_SHAKING + 10).map(|_| connections.begin()).collect();
    assert!(shaking[..10].iter().all(|place| place.ended.is_cancelled()), "the oldest make way");
    assert!(!shaking[10..].iter().any(|place| place.ended.is_cancelled()));
    let strangers: Vec<_> = (0..MAX_STRANGERS + 5)
        .map(|_| {
            let place = connections.begin();
            place.settle(None, None).expect("strangers make way for strangers");
            place
        })
        .collect();
    assert_eq!(strangers.iter().filter(|place| place.ended.is_cancelled()).count(), 5);
    assert!(!ann.ended.is_cancelled());
    assert!(connections.count() <= (MAX_SHAKING, MAX_STRANGERS, 1), "{:?}", connections.count());
    drop((shaking, strangers, ann));
    assert_eq!(connections.count(), (0, 0, 0));
}

#[test]
fn nobody_takes_all_the_room_of_the_proven() {
    let connections = Connections::default();
    let eve = certificate(Role::Viewer, "eve");
    let place = || connections.begin();
    let mut held: Vec<_> = (0..MAX_PER_SUBJECT).map(|_| place()).collect();
    assert!(held.iter().all(|place| place.settle(Some(&eve), Some([1; 32])).is_ok()));
    assert_eq!(place().settle(Some(&eve), Some([1; 32])), Err(Full::Subject));
    assert_eq!(place().settle(Some(&certificate(Role::Viewer, "ann")), Some([2; 32])), Ok(()));
    held.pop();
    assert_eq!(place().settle(Some(&eve), Some([1; 32])), Ok(()));
    connections.end_refused(|certificate| if certificate.subject.name == "eve" { Err("gone".into()) } else { Ok(()) });
    assert!(held.iter().all(|place| place.ended.is_cancelled()));
}

#[test]
fn an_authority_that_goes_takes_its_connections_along() {
    let connections = Connections::default();
    let open = |name, signer| {
        let place = connections.begin();
        place.settle(Some(&certificate(Role::Agent, name)), signer).expect("there is room");
        place
    };
    let (old, new, unknown) = (open("vm1", Some([1; 32])), open("vm2", Some([2; 32])), open("vm3", None));
    let stranger = connections.begin();
    stranger.settle(None, None).expect("there is room");
    connections.end_others_than(&[[2; 32], [1; 32]]);
    assert!(!old.ended.is_cancelled() && unknown.ended.is_cancelled());
    connections.end_others_than(&[[2; 32]]);
    assert!(old.ended.is_cancelled());
    assert!(!new.ended.is_cancelled() && !stranger.ended.is_cancelled());
}

#[test]
fn a_loopback_caller_is_an_admin_and_not_root() {
    let doors = doors(vec![]);
    let caller = Caller { who: Who::Loopback, address: None };
    assert!(ask(&doors, &caller, TOKEN, None).is_ok());
    assert_eq!(ask(&doors, &caller, INIT, None), Err(tonic::Code::PermissionDenied));
}

#[test]
fn a_removal_that_the_other_controller_has_not_heard_of_counts() {
    let grant = crate::state::Grant {
        serial: "01".to_owned(),
        request: [0; 32],
        authority: [0; 32],
        issued: Timestamp(10),
        expires: now().plus(DAY),
    };
    let add = Command::PutUser { name: "eve".to_owned(), role: UserRole::Viewer, grant };
    let here = doors(vec![add.clone()]);
    let other = member(Role::Controller, "c2");
    assert!(ask(&here, &other, LIST, Some("viewer/eve")).is_ok());
    assert_eq!(ask(&here, &other, APPLY, Some("admin/eve")), Err(tonic::Code::Unauthenticated), "she is a viewer");
    let here = doors(vec![add, Command::RemoveUser { name: "eve".to_owned() }]);
    assert_eq!(ask(&here, &other, LIST, Some("viewer/eve")), Err(tonic::Code::Unauthenticated));
}

#[test]
fn each_caller_has_so_many_turns() {
    let doors = doors(vec![]);
    let turn = |caller: &Caller| {
        let origin = doors.admit(caller, "/grpc.health.v1.Health/Check", &HeaderMap::new()).expect("everybody's");
        doors.turn(caller, &origin).map_err(|status| status.code())
    };
    let at = |port| Caller { who: Who::Stranger, address: Some(([127, 0, 0, 1], port).into()) };
    let held: Vec<_> = (0..MAX_CALLS_OF_STRANGER).map(|_| turn(&at(1)).expect("there is room")).collect();
    assert_eq!(turn(&at(1)).expect_err("one too many"), tonic::Code::ResourceExhausted);
    assert!(turn(&at(2)).is_ok(), "another connection");
    drop(held);
    assert!(turn(&at(1)).is_ok(), "room again");
    let eve = member(Role::Viewer, "eve");
    let held: Vec<_> = (0..MAX_CALLS_OF_PERSON).map(|_| turn(&eve).expect("there is room")).collect();
    assert_eq!(turn(&eve).expect_err("one too many"), tonic::Code::ResourceExhausted);
    assert!(held.iter().all(Option::is_some));
    for unbounded in [member(Role::Agent, "vm1"), member(Role::Controller, "c1")] {
        assert!(turn(&unbounded).expect("room").is_none(), "{unbounded}");
    }
}
