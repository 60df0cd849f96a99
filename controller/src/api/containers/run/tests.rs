use roster_proto::{
    id::Version,
    spec::{Port, Protocol},
    time::Timestamp,
};

use super::*;
use crate::state::command::{Entry, Outcome};

fn state() -> ClusterState {
    let mut web = ServiceSpec::of_image("app:1", 3);
    web.task.command = Some(vec!["serve".into()]);
    web.task.entrypoint = Some(vec!["/bin/app".into()]);
    web.task.environment = BTreeMap::from([("KEPT".into(), "yes".into()), ("MODE".into(), "web".into())]);
    web.task.ports = vec![Port { target: 80, published: Some(8080), host_ip: None, protocol: Protocol::Tcp }];
    web.task.user = Some("app".into());
    let services = BTreeMap::from([("web".parse().unwrap(), web)]);
    let stack = StackSpec { name: "shop".parse().unwrap(), services };
    let mut state = ClusterState::default();
    apply(&mut state, Command::PutStack { stack, prune: false, base: None });
    state
}

fn apply(state: &mut ClusterState, command: Command) {
    let applied = state.apply(Version(state.version.0 + 1), &Entry::new(Timestamp(1), command));
    assert_eq!(applied.outcome, Outcome::Applied);
}

fn request(command: &[&str]) -> wire::RunRequest {
    let values = command.iter().map(ToString::to_string).collect();
    wire::RunRequest {
        service: "web".into(),
        command: Some(wire::StringList { values }),
        attended: true,
        ..Default::default()
    }
}

fn made(request: wire::RunRequest, id: &str) -> (ServiceId, OneOff, ServiceSpec) {
    match command(&state(), request, Some(id)) {
        Ok((id, Command::RunOnce { service, one_off, spec })) => {
            assert_eq!(id, service);
            (id, one_off, *spec)
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn it_is_the_services_spec_once() {
    let (id, one_off, spec) = made(request(&["migrate", "--all"]), "one");
    assert!(id.to_string().starts_with("shop/web-run-") && id.name.as_str().len() == "web-run-".len() + SUFFIX, "{id}");
    assert_eq!(one_off, OneOff { of: "web".parse().unwrap(), remove_when_ended: false });
    assert_eq!(spec.mode, Mode::Replicated { replicas: 1 });
    assert_eq!(spec.restart.condition, RestartCondition::Never);
    assert_eq!(spec.task.entrypoint, Some(vec!["/bin/app".to_owned()]));
    assert_eq!(spec.task.command, Some(vec!["migrate".to_owned(), "--all".to_owned()]));
    assert!(spec.task.ports.is_empty() && spec.task.attended && !spec.task.tty && !spec.task.stdin_open);
    assert_eq!(spec.task.healthcheck.map(|check| check.test), Some(HealthTest::Disabled));
    assert_eq!((spec.task.environment["KEPT"].as_str(), spec.task.user.as_deref()), ("yes", Some("app")));
}

#[test]
fn what_is_said_takes_the_place_of_what_the_service_says() {
    let entrypoint = Some(wire::StringList { values: vec!["sh".into()] });
    let env = [("MODE".to_owned(), "once".to_owned())].into();
    let name = Some("migration".to_owned());
    let (user, working_dir) = (Some("root".to_owned()), Some("/srv".to_owned()));
    let wanted = wire::RunRequest { command: None, entrypoint, env, name, user, working_dir, ..request(&[]) };
    let (id, _, spec) = made(wanted, "one");
    assert_eq!(id.to_string(), "shop/migration");
    assert_eq!((spec.task.entrypoint, spec.task.command), (Some(vec!["sh".to_owned()]), None));
    assert_eq!(spec.task.environment["MODE"], "once");
    assert_eq!((spec.task.user.as_deref(), spec.task.working_dir.as_deref()), (Some("root"), Some("/srv")));
}

#[test]
fn the_same_request_is_the_same_one_off() {
    assert_eq!(made(request(&["x"]), "one").0, made(request(&["x"]), "one").0);
    assert_ne!(made(request(&["x"]), "one").0, made(request(&["x"]), "other").0);
    // Whatever the service's name is, the one-off's is one too.
    let long = "a".repeat(63);
    assert!(ServiceName::new(format!("{}-run-{}", stem(&long), suffix(Some("one")))).is_ok());
}

#[test]
fn what_cannot_be_is_refused() {
    let refused = |request: wire::RunRequest, words: &str| {
        let status = command(&state(), request, Some("one")).expect_err("it cannot be");
        assert!(status.message().contains(words), "{status:?}");
    };
    refused(wire::RunRequest { service: "wep".into(), ..request(&[]) }, "did you mean \"web\"?");
    refused(wire::RunRequest { name: Some("No Name".into()), ..request(&[]) }, "is not allowed");
    refused(wire::RunRequest { working_dir: Some("here".into()), ..request(&[]) }, "must be an absolute path");
    refused(request(&["a\0b"]), "holds a NUL");
    refused(wire::RunRequest { user: Some("a/b".into()), ..request(&[]) }, "is not USER[:GROUP]");
    refused(wire::RunRequest { env: [("A=B".into(), String::new())].into(), ..request(&[]) }, "variable's name");
}

#[test]
fn one_that_shares_namespaces_is_refused() {
    let mut db = ServiceSpec::of_image("db:1", 3);
    db.task.rights.pid = roster_proto::spec::PidMode::Service("web".parse().unwrap());
    let refused = once(&db, request(&["sh"])).expect_err("it has no replica to go with");
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("share the namespaces of service web"), "{refused:?}");
}
