use roster_proto::spec::{
    Device, IpcMode, Limits, MemorySwap, Propagation, Protocol, Reservations, Seccomp, TmpfsOptions, Ulimit,
};

use super::*;

fn stack(change: impl FnOnce(&mut ServiceSpec)) -> StackSpec {
    let mut service = ServiceSpec::of_image("hello:1", 2);
    change(&mut service);
    let services = [("web".parse().expect("a name"), service)].into();
    StackSpec { name: "hello".parse().expect("a name"), services }
}

#[track_caller]
fn refused(change: impl FnOnce(&mut ServiceSpec), problem: &str) {
    let error = validated(stack(change)).expect_err("must be refused").to_string();
    assert!(error.contains(problem), "expected {problem:?} in {error:?}");
}

fn bind(source: &str, target: &str) -> Mount {
    Mount::Bind {
        source: source.into(),
        target: target.into(),
        read_only: false,
        create_source: false,
        propagation: Propagation::default(),
    }
}

fn port(target: u16, published: Option<u16>) -> Port {
    Port { target, published, host_ip: None, protocol: Protocol::Tcp }
}

#[test]
fn a_sensible_spec_passes() {
    let sensible = stack(|service| {
        service.task.environment.insert("MODE".into(), "a=b\n".into());
        service.task.mounts = vec![bind("/srv/data", "/data"), bind("/", "/host/")];
        service.task.ports = vec![port(80, Some(8080)), port(80, None), port(443, Some(8443))];
        service.task.stop_signal = Some("SIGRTMIN+3".into());
        service.task.hostname = Some("web-1.lab".into());
        service.task.working_dir = Some("/srv".into());
        service.task.user = Some("1000:www".into());
    });
    assert_eq!(validated(sensible.clone()), Ok(sensible));
}

#[test]
fn what_no_process_can_be_given() {
    refused(|s| s.task.command = Some(vec!["a\0b".into()]), "services.web.command: \"a\\0b\" holds a NUL");
    refused(|s| s.task.entrypoint = Some(vec!["x".repeat(200_000)]), "is longer than 131071 bytes");
    refused(|s| drop(s.task.environment.insert("A=B".into(), "1".into())), "\"A=B\" is not a variable's name");
    refused(|s| drop(s.task.environment.insert(String::new(), "1".into())), "\"\" is not a variable's name");
    refused(|s| s.task.environment = (0..5000).map(|n| (n.to_string(), String::new())).collect(), "5000 entries");
    refused(|s| s.task.hostname = Some("a b".into()), "is not a host name");
    refused(|s| s.task.hostname = Some("-a".into()), "is not a host name");
    refused(|s| s.task.user = Some("a/b".into()), "is not USER[:GROUP]");
    refused(|s| s.task.image = " ".into(), "services.web.image: \" \" is not an image name");
}

#[test]
fn paths_are_absolute_and_do_not_climb() {
    refused(|s| s.task.mounts = vec![bind("/srv/../etc", "/data")], "must be an absolute path without '..'");
    refused(|s| s.task.mounts = vec![bind("/srv", "data")], "\"data\" must be an absolute path");
    refused(|s| s.task.mounts = vec![bind("/srv", "//")], "nothing can be mounted over / itself");
    refused(|s| s.task.mounts = vec![bind("/a", "/data"), bind("/b", "/data/")], "is mounted twice");
    refused(|s| s.task.working_dir = Some("srv".into()), "services.web.working_dir: \"srv\" must be an absolute path");
    let target = "/tmp".into();
    let tmpfs =
        Mount::Tmpfs { target, size: None, mode: Some(0o100_000), read_only: false, options: TmpfsOptions::default() };
    refused(|s| s.task.mounts = vec![tmpfs], "mode 100000 is not a permission");
}

#[test]
fn ports() {
    refused(|s| s.task.ports = vec![port(0, None)], "port 0 cannot be used");
    refused(|s| s.task.ports = vec![port(80, Some(0))], "port 0 cannot be used");
    refused(|s| s.task.ports = vec![port(80, Some(80)), port(81, Some(80))], "port 80 is published twice");
    let host = |s: &mut ServiceSpec| {
        s.task.network = NetworkMode::Host;
        s.task.ports = vec![port(80, Some(80))];
    };
    refused(host, "only a service with the bridge network can publish ports");
}

#[test]
fn amounts() {
    refused(|s| s.mode = Mode::Replicated { replicas: 1_000_000 }, "1000000 replicas; 10000 are allowed");
    refused(|s| s.task.resources.limits.memory = Some(0), "services.web.deploy.resources.limits.memory: must be more");
    refused(|s| s.task.resources.limits.nano_cpus = Some(u64::MAX), "limits.cpus");
    refused(|s| s.task.resources.limits.pids = Some(u64::MAX), "limits.pids");
    refused(|s| s.task.resources.limits.disk = Some(0), "services.web.storage_opt.size: a container cannot be limited");
    refused(|s| s.task.resources.limits.disk = Some(u64::MAX), "write a size from 8m to 1t");
    let reserves_more = |s: &mut ServiceSpec| {
        s.task.resources.limits = Limits { memory: Some(10), ..Limits::default() };
        s.task.resources.reservations = Reservations { memory: Some(11), ..Reservations::default() };
    };
    refused(reserves_more, "reservations.memory: is more than its limit");
    refused(|s| s.task.stop_grace_period = Duration::MAX, "stop_grace_period: is longer than a year");
}

#[test]
fn healthchecks() {
    let check = |change: fn(&mut Healthcheck)| {
        move |s: &mut ServiceSpec| {
            let mut check = Healthcheck::default();
            change(&mut check);
            s.task.healthcheck = Some(check);
        }
    };
    refused(check(|c| c.test = HealthTest::Command(Vec::new())), "healthcheck.test: names no command");
    refused(check(|c| c.interval = Some(Duration::ZERO)), "healthcheck.interval: must be at least 1ms");
    refused(check(|c| c.retries = Some(0)), "healthcheck.retries: must be at least 1");
}

#[test]
fn signals() {
    for signal in ["TERM", "SIGTERM", "sigusr1", "15", "64", "SIGRTMIN", "RTMIN+3", "SIGRTMAX-2"] {
        assert!(is_signal(signal), "{signal}");
    }
    for signal in ["", "0", "65", "-9", "SIGNOPE", "SIG", "RTMIN-1", "RTMAX+1", "RTMIN+99", "SIGSIGTERM"] {
        assert!(!is_signal(signal), "{signal}");
    }
}

#[test]
fn all_problems_are_told_and_only_so_many() {
    let error = validated(stack(|s| {
        s.task.image = String::new();
        s.task.ports = vec![port(0, None); 30];
    }));
    let error = error.expect_err("must be refused").to_string();
    assert!(error.starts_with("stack hello cannot be applied:\n  services.web.image: is missing"), "{error}");
    assert!(error.ends_with("\n  and 11 more"), "{error}");
}

#[test]
fn what_a_container_may_do() {
    refused(|s| s.task.rights.cap_add.extend(["CAP_CHOWN".into()]), "services.web.cap_add: \"CAP_CHOWN\" is not");
    refused(|s| s.task.rights.cap_drop.extend(["ROOT".into()]), "services.web.cap_drop: \"ROOT\" is not");
    refused(|s| s.task.rights.group_add = vec!["a:b".into()], "services.web.group_add: \"a:b\" is not a group");
    refused(
        |s| s.task.rights.seccomp = Seccomp::Profile("{}".into()),
        "security_opt.seccomp: it is no seccomp profile",
    );
    let large = || format!("\"{}\"", "x".repeat(100_000));
    refused(|s| s.task.rights.seccomp = Seccomp::Profile(large()), "65536 are allowed");
    refused(|s| s.task.rights.apparmor = Some("a b".into()), "security_opt.apparmor");
    let device =
        |source: &str, access: &str| Device { source: source.into(), target: "/dev/x".into(), access: access.into() };
    refused(|s| s.task.rights.devices = vec![device("dev/x", "rwm")], "\"dev/x\" is not the path of a device");
    refused(|s| s.task.rights.devices = vec![device("/dev/x", "x")], "\"x\" is not an access");
    refused(|s| s.task.rights.devices = vec![device("/dev/x", "r"); 300], "300 entries; 256 are allowed");
    refused(|s| s.task.rights.device_rules = vec!["everything".into()], "is not a rule for devices");
    refused(|s| s.task.runtime = Some("../runc".into()), "services.web.runtime: \"../runc\" is not");
}

#[test]
fn how_the_kernel_treats_it() {
    let files = |soft, hard| Ulimit { soft, hard };
    refused(|s| s.task.kernel.ulimits.extend([("files".into(), files(None, None))]), "\"files\" is not a ulimit");
    refused(|s| s.task.kernel.ulimits.extend([("nofile".into(), files(None, Some(1)))]), "soft limit above its hard");
    refused(|s| s.task.kernel.sysctls.extend([("kernel.panic".into(), "1".into())]), "is the host's");
    refused(
        |s| {
            s.task.network = NetworkMode::Host;
            s.task.kernel.sysctls.insert("net.core.somaxconn".into(), "1".into());
        },
        "belongs to the network",
    );
    refused(
        |s| {
            s.task.rights.ipc = IpcMode::Host;
            s.task.kernel.sysctls.insert("kernel.sem".into(), "1".into());
        },
        "belongs to the IPC namespace",
    );
    refused(|s| s.task.kernel.shm_size = Some(1), "services.web.shm_size: must be at least 4096");
    refused(|s| s.task.kernel.oom_score_adj = Some(1001), "services.web.oom_score_adj");
    let controls = |change: fn(&mut roster_proto::spec::Controls), problem| {
        refused(|s| change(&mut s.task.resources.controls), problem);
    };
    controls(|c| c.memory_swap = Some(MemorySwap::Bytes(1)), "services.web.memswap_limit: counts memory and swap");
    controls(|c| c.swappiness = Some(101), "services.web.mem_swappiness");
    controls(|c| c.cpu_shares = Some(1), "services.web.cpu_shares: must be from 2 to 262144");
    controls(|c| c.cpu_period = Some(1), "services.web.cpu_period");
    controls(|c| c.cpuset = Some("all".into()), "\"all\" is not a set of processors");
    controls(|c| c.block.weight = Some(5), "a weight must be from 10 to 1000");
    controls(|c| c.block.read_bps.extend([("/dev/sda".into(), 0)]), "a rate must be more than nothing");
    controls(|c| c.block.read_bps.extend([("sda".into(), 1)]), "\"sda\" is not the path of a device");
    refused(
        |s| {
            s.task.resources.limits.nano_cpus = Some(1_000_000_000);
            s.task.resources.controls.cpu_quota = Some(50_000);
        },
        "services.web.cpu_quota: cannot be set beside cpus",
    );
}

#[test]
fn namespaces_are_shared_with_a_service_of_the_same_stack() {
    let shares = |s: &mut ServiceSpec, name: &str| s.task.rights.ipc = IpcMode::Service(name.parse().expect("a name"));
    refused(|s| shares(s, "db"), "services.web: `service:db`: there is no service of this name");
    refused(|s| shares(s, "web"), "services.web: the service web cannot share its own namespaces");
    let two = |change: &dyn Fn(&mut ServiceSpec, &mut ServiceSpec)| {
        let mut all = stack(|service| shares(service, "db"));
        let mut db = ServiceSpec::of_image("db:1", 2);
        let web = all.services.get_mut(&"web".parse().expect("a name")).expect("there");
        change(web, &mut db);
        all.services.insert("db".parse().expect("a name"), db);
        validated(all).map(drop).map_err(|error| error.to_string())
    };
    assert_eq!(two(&|_, _| {}), Ok(()));
    let problem = |change: &dyn Fn(&mut ServiceSpec, &mut ServiceSpec), words: &str| {
        let error = two(change).expect_err("must be refused");
        assert!(error.contains(words), "expected {words:?} in {error:?}");
    };
    problem(&|_, db| shares(db, "web"), "itself shares the namespaces of web");
    problem(&|_, db| db.mode = Mode::Global, "only one of web and db is in global mode");
    problem(
        &|_, db| db.mode = Mode::Replicated { replicas: 1 },
        "2 replicas cannot share the namespaces of the 1 of db",
    );
    problem(&|_, db| db.update.order = UpdateOrder::StartFirst, "the service db is updated `start-first`");
    problem(&|web, _| web.update.order = UpdateOrder::StartFirst, "the service web is updated `start-first`");
    problem(&|_, db| db.task.runtime = Some("kata".into()), "the runtime kata makes the containers of db");
}
