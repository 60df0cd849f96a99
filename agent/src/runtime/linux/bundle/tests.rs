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
        paused: false,
        shares_with: None,
    }
}

fn spec_of(image: &ImageConfiguration, task: TaskSpec) -> Result<Spec, StartError> {
    spec_with(image, task, &HostDevices::default())
}

fn spec_with(image: &ImageConfiguration, task: TaskSpec, devices: &HostDevices) -> Result<Spec, StartError> {
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
        platform: Platform { kernel: (6, 1) },
        devices,
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
    assert_eq!(options, ["rbind", "rslave", "rnodev", "rro"]);
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
    assert_eq!(limits::quota(500_000_000), (50_000, 100_000));
    assert_eq!(limits::quota(2_000_000_000), (200_000, 100_000));
    assert_eq!(limits::quota(1), (1_000, 100_000));
}

fn json_of(task: TaskSpec, devices: &HostDevices) -> serde_json::Value {
    let spec = spec_with(&image(&["/e"], &[], &[]), task, devices).expect("bundle");
    serde_json::to_value(spec).expect("json")
}

fn mount_of<'j>(spec: &'j serde_json::Value, target: &str) -> Option<&'j serde_json::Value> {
    spec["mounts"].as_array().expect("mounts").iter().find(|mount| mount["destination"] == target)
}

#[test]
fn every_capability_of_a_spec_is_one_of_the_bundles() {
    let rights = Rights { privileged: true, ..Rights::default() };
    assert_eq!(rights::capabilities(&rights).len(), roster_proto::spec::rules::CAPABILITIES.len());
}

#[test]
fn a_privileged_container_is_held_back_by_nothing() {
    let mut task = TaskSpec::of_image("i");
    task.rights.privileged = true;
    let spec = json_of(task, &HostDevices::default());
    let linux = &spec["linux"];
    assert_eq!(linux["resources"]["devices"], serde_json::json!([{"allow": true, "access": "rwm"}]));
    assert!(linux["seccomp"].is_null(), "{linux}");
    assert_eq!((&linux["maskedPaths"], &linux["readonlyPaths"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(spec["process"]["noNewPrivileges"], false);
    let options = |target| mount_of(&spec, target).expect("mount")["options"].to_string();
    assert!(options("/sys").contains("\"rw\"") && !options("/dev").contains("nodev"));
    assert_eq!(mount_of(&spec, "/sys/fs/cgroup").expect("mount")["type"], "cgroup");
}

#[test]
fn devices_come_with_their_rules_and_nothing_else_is_allowed() {
    let mut task = TaskSpec::of_image("i");
    task.rights.device_rules = vec!["c 189:* rw".to_owned()];
    let device = crate::runtime::linux::devices::HostDevice {
        target: "/dev/xvda".into(),
        is_block: true,
        major: 8,
        minor: 1,
        mode: 0o660,
        uid: 0,
        gid: 6,
        access: "r".to_owned(),
    };
    let spec = json_of(task, &HostDevices { nodes: vec![device], ..HostDevices::default() });
    insta::assert_snapshot!(spec["linux"]["devices"], @r#"[{"fileMode":432,"gid":6,"major":8,"minor":1,"path":"/dev/xvda","type":"b","uid":0}]"#);
    insta::assert_snapshot!(spec["linux"]["resources"]["devices"], @r#"[{"access":"rwm","allow":false},{"access":"r","allow":true,"major":8,"minor":1,"type":"b"},{"access":"rw","allow":true,"major":189,"minor":-1,"type":"c"}]"#);
}

#[test]
fn the_kernels_part_is_all_there() {
    use roster_proto::spec::{BlockIo, Controls, Limits, MemorySwap, Reservations, Resources, Ulimit};
    let mut task = TaskSpec::of_image("i");
    task.resources = Resources {
        limits: Limits { memory: Some(100), ..Limits::default() },
        reservations: Reservations { memory: Some(50), nano_cpus: None },
        controls: Controls {
            memory_swap: Some(MemorySwap::Unlimited),
            swappiness: Some(3),
            oom_kill_disable: true,
            cpu_shares: Some(10),
            cpu_period: Some(20_000),
            cpu_quota: Some(10_000),
            cpuset: Some("0-1".to_owned()),
            block: BlockIo {
                weight: Some(11),
                device_weights: [("/dev/sda".into(), 12)].into(),
                write_iops: [("/dev/sda".into(), 13)].into(),
                ..BlockIo::default()
            },
        },
    };
    task.kernel.ulimits = [("nofile".to_owned(), Ulimit { soft: Some(5), hard: None })].into();
    task.kernel.sysctls = [("net.ipv4.ip_unprivileged_port_start".to_owned(), "99".to_owned())].into();
    task.kernel.shm_size = Some(1 << 20);
    task.kernel.oom_score_adj = Some(-7);
    task.network = roster_proto::spec::NetworkMode::None;
    task.rights.group_add = vec!["audio".to_owned(), "44".to_owned()];
    let devices = HostDevices { block: [("/dev/sda".into(), (8, 0))].into(), ..HostDevices::default() };
    let spec = json_of(task, &devices);
    insta::assert_snapshot!(spec["linux"]["resources"]["memory"], @r#"{"disableOOMKiller":true,"limit":100,"reservation":50,"swap":-1,"swappiness":3}"#);
    insta::assert_snapshot!(spec["linux"]["resources"]["cpu"], @r#"{"cpus":"0-1","period":20000,"quota":10000,"shares":10}"#);
    insta::assert_snapshot!(spec["linux"]["resources"]["blockIO"], @r#"{"throttleWriteIOPSDevice":[{"major":8,"minor":0,"rate":13}],"weight":11,"weightDevice":[{"major":8,"minor":0,"weight":12}]}"#);
    insta::assert_snapshot!(spec["process"]["rlimits"], @r#"[{"hard":18446744073709551615,"soft":5,"type":"RLIMIT_NOFILE"}]"#);
    assert_eq!(spec["linux"]["sysctl"]["net.ipv4.ip_unprivileged_port_start"], "99");
    assert_eq!(spec["process"]["oomScoreAdj"], -7);
    assert_eq!(spec["process"]["user"]["username"], "0:,audio,44");
    assert!(mount_of(&spec, "/dev/shm").expect("mount")["options"].to_string().contains("size=1024k"));
}

#[test]
fn shared_namespaces_of_the_host_are_not_made() {
    let mut task = TaskSpec::of_image("i");
    task.rights.pid = PidMode::Host;
    task.rights.ipc = IpcMode::Host;
    let spec = json_of(task, &HostDevices::default());
    let types: Vec<&str> =
        spec["linux"]["namespaces"].as_array().expect("list").iter().filter_map(|one| one["type"].as_str()).collect();
    assert_eq!(types, ["mount", "uts", "cgroup", "network"]);
    assert_eq!(mount_of(&spec, "/dev/shm").expect("mount")["type"], "bind");
}
