use std::sync::Arc;

use oci_spec::image::{ConfigBuilder, ImageConfigurationBuilder, RootFsBuilder};
use roster_proto::{
    id::{ServiceId, ServiceName, Slot, StackName, TaskId},
    spec::TaskSpec,
    task::Desired,
};

use super::*;

fn image(entrypoint: &[&str], cmd: &[&str], env: &[&str]) -> ImageConfiguration {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let config =
        ConfigBuilder::default().entrypoint(strings(entrypoint)).cmd(strings(cmd)).env(strings(env)).working_dir("srv");
    ImageConfigurationBuilder::default()
        .architecture("amd64")
        .os("linux")
        .config(config.build().expect("config"))
        .rootfs(RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build().expect("rootfs"))
        .build()
        .expect("image configuration")
}

fn assignment(spec: TaskSpec) -> Assignment {
    Assignment {
        task: TaskId::new("t1").expect("id"),
        service: ServiceId::new(StackName::new("shop").expect("id"), ServiceName::new("web_x").expect("id")),
        slot: Slot::Replica(2),
        desired: Desired::Run,
        spec: Arc::new(spec),
        ports: Vec::new(),
    }
}

fn spec_of(image: &ImageConfiguration, task: TaskSpec) -> Result<Spec, StartError> {
    let assignment = assignment(task);
    let node = NodeId::new("vm1").expect("id");
    spec(&Contents {
        assignment: &assignment,
        node: &node,
        image,
        lower: vec!["/layers/2".into(), "/layers/1".into()],
        upper: "/c/upper".into(),
        work: "/c/work".into(),
        files: Path::new("/run/t1"),
        network: Network::None,
        cgroup: "/roster/t1".into(),
        cgroup2: false,
    })
}

fn args(image: &ImageConfiguration, entrypoint: Option<&[&str]>, command: Option<&[&str]>) -> String {
    let strings = |list: &[&str]| list.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
    let mut task = TaskSpec::of_image("i");
    task.entrypoint = entrypoint.map(strings);
    task.command = command.map(strings);
    match spec_of(image, task) {
        Ok(spec) => spec.process().as_ref().and_then(|p| p.args().clone()).unwrap_or_default().join(" "),
        Err(error) => error.to_string(),
    }
}

#[test]
fn entrypoint_and_command_combine_as_dockers() {
    let both = image(&["/entry"], &["serve"], &[]);
    assert_eq!(args(&both, None, None), "/entry serve");
    assert_eq!(args(&both, None, Some(&["migrate"])), "/entry migrate");
    assert_eq!(args(&both, Some(&["/other"]), None), "/other");
    assert_eq!(args(&both, Some(&["/other"]), Some(&["x"])), "/other x");
    assert_eq!(args(&both, Some(&[]), Some(&["x"])), "x");
    assert_eq!(args(&both, None, Some(&[])), "/entry");
    assert!(args(&both, Some(&[]), None).contains("set `command`"));
    assert!(args(&image(&[], &[], &[]), None, None).contains("set `command`"));
}

#[test]
fn environment_layers_from_image_to_spec() {
    let mut task = TaskSpec::of_image("i");
    task.environment.insert("A".to_owned(), "spec".to_owned());
    task.environment.insert("HOSTNAME".to_owned(), "mine".to_owned());
    let spec = spec_of(&image(&["/e"], &[], &["A=image", "B=a=b", "C"]), task).expect("bundle");
    let env = spec.process().as_ref().and_then(|p| p.env().clone()).unwrap_or_default();
    insta::assert_snapshot!(env.join("\n"), @r"
    A=spec
    B=a=b
    C=
    HOSTNAME=mine
    PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
    ROSTER_NODE=vm1
    ROSTER_SERVICE=web_x
    ROSTER_SLOT=2
    ROSTER_STACK=shop
    ROSTER_TASK_ID=t1
    ROSTER_TASK_NAME=web_x.2
    ");
}

#[test]
fn the_rest_follows_the_spec_and_the_image() {
    let mut task = TaskSpec::of_image("i");
    task.read_only = true;
    task.init = true;
    task.user = Some("www".to_owned());
    let bind = |target: &str| Mount::Bind {
        source: "/host".into(),
        target: target.into(),
        read_only: true,
        create_source: target == "/a",
        propagation: Propagation::Rslave,
    };
    task.mounts = vec![bind("/a/b"), bind("/a")];
    let spec = spec_of(&image(&["/e"], &[], &[]), task).expect("bundle");
    assert_eq!(spec.hostname().as_deref(), Some("web-x-2"));
    let process = spec.process().as_ref().expect("process");
    assert_eq!(process.cwd(), Path::new("/srv"));
    assert_eq!(process.user().username().as_deref(), Some("www"));
    assert_eq!(process.no_new_privileges(), Some(true));
    let mounts = spec.mounts().as_ref().expect("mounts");
    let targets: Vec<_> = mounts.iter().map(|m| m.destination().display().to_string()).collect();
    assert_eq!(targets[0], "/");
    assert_eq!(targets[targets.len() - 2..], ["/a", "/a/b"]);
    let options = mounts[mounts.len() - 1].options().clone().unwrap_or_default();
    assert_eq!(options, ["rbind", "rnodev", "rslave", "rro"]);
    let annotations = spec.annotations().as_ref().expect("annotations");
    assert_eq!(annotations[ANNOTATION_CREATE], "/host");
    assert_eq!(annotations[ANNOTATION_INIT], "true");
    // It survives its own file format.
    let text = serde_json::to_string(&spec).expect("json");
    assert_eq!(serde_json::from_str::<Spec>(&text).expect("parses"), spec);
}

#[test]
fn resolv_conf_drops_loopback_only() {
    let host = "# c\nnameserver 127.0.0.53\nnameserver 10.0.0.2\nnameserver ::1\nsearch lan\noptions edns0";
    assert_eq!(resolv_conf(host), "# c\nnameserver 10.0.0.2\nsearch lan\noptions edns0\n");
}

#[test]
fn cpus_become_a_quota() {
    assert_eq!(quota(500_000_000), (50_000, 100_000));
    assert_eq!(quota(2_000_000_000), (200_000, 100_000));
    assert_eq!(quota(1), (1_000, 100_000));
}
