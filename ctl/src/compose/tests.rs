//! The loader as a whole.

use std::{collections::BTreeMap, path::Path, time::Duration};

use proptest::prelude::*;
use roster_proto::spec::{
    Device, HealthTest, IpcMode, MemorySwap, Mode, Mount, NetworkMode, PidMode, Port, Propagation, Protocol,
    RestartCondition, Seccomp, ServiceSpec, TmpfsOptions, Ulimit, UpdatePolicy,
};

use super::*;

/// Reads a spec whose folder is /srv/shop, with these variables in the process's environment.
fn read_with(text: &str, environment: &[(&str, &str)]) -> Result<(StackSpec, Vec<Problem>), Problems> {
    let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    let options = Options { project_name: None, environment, env_file: None };
    let mut diagnostics = Diagnostics::default();
    let stack = read(&Source::new("spec.yaml", text), Path::new("/srv/shop"), &options, &mut diagnostics);
    diagnostics.finish(stack)
}

/// The first service's task of a spec that has nothing wrong with it.
fn service(body: &str) -> ServiceSpec {
    let text = format!("services:\n  web:\n    image: nginx\n{}", indent(body));
    let (stack, warnings) = read_with(&text, &[("HOME", "/home/ann"), ("OUTSIDE", "from outside")])
        .unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    assert!(warnings.is_empty(), "{warnings:#?}");
    stack.services.into_values().next().expect("one service")
}

fn service_with_warnings(body: &str) -> ServiceSpec {
    let text = format!("services:\n  web:\n    image: nginx\n{}", indent(body));
    let (stack, _) = read_with(&text, &[]).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    stack.services.into_values().next().expect("one service")
}

fn indent(body: &str) -> String {
    body.lines().map(|line| format!("    {line}\n")).collect()
}

/// Everything said about a spec, warnings too.
fn said(text: &str) -> Vec<String> {
    let problems = match read_with(text, &[]) {
        Ok((_, warnings)) => warnings,
        Err(problems) => problems.found,
    };
    problems.into_iter().map(|problem| problem.message).collect()
}

#[test]
fn a_large_spec_reads_as_written() {
    let environment = BTreeMap::from([("HOME", "/home/ann"), ("TAG", "1.27"), ("OUTSIDE", "from outside")]);
    let options = Options {
        environment: environment.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect(),
        ..Options::default()
    };
    let loaded = load(Path::new("tests/good/shop.yaml"), &options).unwrap_or_else(|problems| panic!("{problems}"));
    let folder = std::env::current_dir().expect("a working directory").join("tests/good");
    let text = serde_json::to_string_pretty(&loaded.stack).expect("specs are JSON");
    insta::assert_snapshot!(text.replace(folder.to_str().expect("a path in UTF-8"), "FOLDER"));
    let warnings: Vec<String> = loaded.warnings.iter().map(ToString::to_string).collect();
    insta::assert_snapshot!(warnings.join("\n\n"));
}

#[test]
fn the_least_spec_has_the_defaults() {
    assert_eq!(service(""), ServiceSpec::of_image("nginx", 1));
}

#[test]
fn commands_and_entrypoints_keep_null_empty_and_words_apart() {
    assert_eq!(service("command:").task.command, None);
    assert_eq!(service("command: []").task.command, Some(vec![]));
    assert_eq!(service("entrypoint: ''").task.entrypoint, Some(vec![]));
    let words = |text: &str| service(text).task.command.expect("a command");
    assert_eq!(words(r#"command: run "two words" --flag='a b' c\ d"#), ["run", "two words", "--flag=a b", "c d"]);
    assert_eq!(words("command: [run, 1, true, '']"), ["run", "1", "true", ""]);
    assert_eq!(words("command: >\n  run\n  --fast"), ["run", "--fast"]);
    let warned = said("services:\n  web: {image: nginx, command: 'a && b'}");
    assert_eq!(warned, ["`command` is not run by a shell: `&&` is passed on as a word"]);
}

#[test]
fn the_environment_takes_both_forms_and_what_is_outside() {
    let want = BTreeMap::from([("A".to_owned(), "1".to_owned()), ("OUTSIDE".to_owned(), "from outside".to_owned())]);
    assert_eq!(service("environment: {A: 1, OUTSIDE: null, NOWHERE: null}").task.environment, want);
    assert_eq!(service("environment: [A=1, OUTSIDE, NOWHERE]").task.environment, want);
    assert_eq!(service("environment: ['A=x=y', 'B=']").task.environment["A"], "x=y");
}

#[test]
fn ports_take_every_notation() {
    let port = |target, published, host_ip: Option<&str>, protocol| Port {
        target,
        published,
        host_ip: host_ip.map(|ip| ip.parse().expect("an address")),
        protocol,
    };
    let cases = [
        ("80", vec![port(80, None, None, Protocol::Tcp)]),
        ("'8080:80'", vec![port(80, Some(8080), None, Protocol::Tcp)]),
        ("'53:53/udp'", vec![port(53, Some(53), None, Protocol::Udp)]),
        ("'127.0.0.1:8080:80'", vec![port(80, Some(8080), Some("127.0.0.1"), Protocol::Tcp)]),
        ("'127.0.0.1::80'", vec![port(80, None, Some("127.0.0.1"), Protocol::Tcp)]),
        ("'0.0.0.0:1:2'", vec![port(2, Some(1), None, Protocol::Tcp)]),
        ("'90-91:80-81'", vec![port(80, Some(90), None, Protocol::Tcp), port(81, Some(91), None, Protocol::Tcp)]),
        (
            "{target: 80, published: '8080', host_ip: 127.0.0.1, protocol: udp, mode: host, name: web, app_protocol: http}",
            vec![port(80, Some(8080), Some("127.0.0.1"), Protocol::Udp)],
        ),
    ];
    for (text, want) in cases {
        assert_eq!(service(&format!("ports:\n- {text}")).task.ports, want, "{text}");
    }
}

#[test]
fn mounts_take_every_notation() {
    let bind = |source: &str, read_only, create_source, propagation| Mount::Bind {
        source: source.into(),
        target: "/data".into(),
        read_only,
        create_source,
        propagation,
    };
    let tmpfs = |size, mode, read_only| Mount::Tmpfs {
        target: "/data".into(),
        size,
        mode,
        read_only,
        options: TmpfsOptions::default(),
    };
    let cases = [
        ("volumes: ['./a/../b:/data']", bind("/srv/shop/b", false, true, Propagation::Rprivate)),
        ("volumes: ['../b:/data/.:ro,rslave']", bind("/srv/b", true, true, Propagation::Rslave)),
        ("volumes: ['~/b:/data:rw']", bind("/home/ann/b", false, true, Propagation::Rprivate)),
        (
            "volumes: [{type: bind, source: b, target: /data, read_only: true}]",
            bind("/srv/shop/b", true, false, Propagation::Rprivate),
        ),
        (
            "volumes: [{type: bind, source: /b, target: /data, bind: {create_host_path: true, propagation: shared}}]",
            bind("/b", false, true, Propagation::Shared),
        ),
        (
            "volumes: [{type: tmpfs, target: /data, tmpfs: {size: 64m, mode: 0755}}]",
            tmpfs(Some(64 << 20), Some(0o755), false),
        ),
        ("tmpfs: /data", tmpfs(None, None, false)),
        ("tmpfs: ['/data:size=1g,mode=1777,ro']", tmpfs(Some(1 << 30), Some(0o1777), true)),
    ];
    for (text, want) in cases {
        assert_eq!(service(text).task.mounts, [want], "{text}");
    }
}

#[test]
fn healthchecks_take_every_form() {
    let test = |text: &str| service(&format!("healthcheck: {{{text}}}")).task.healthcheck.expect("a healthcheck").test;
    assert_eq!(test("test: curl localhost"), HealthTest::Shell("curl localhost".to_owned()));
    assert_eq!(test("test: [CMD-SHELL, 'a | b']"), HealthTest::Shell("a | b".to_owned()));
    assert_eq!(test("test: [CMD, a, b]"), HealthTest::Command(vec!["a".to_owned(), "b".to_owned()]));
    assert_eq!(test("test: [NONE]"), HealthTest::Disabled);
    assert_eq!(test("disable: true"), HealthTest::Disabled);
    assert_eq!(test("interval: 5s"), HealthTest::Inherit);
    let check =
        service("healthcheck: {interval: 1m30s, timeout: 0s, retries: 4, start_period: 1.5s, start_interval: 250ms}");
    let check = check.task.healthcheck.expect("a healthcheck");
    assert_eq!((check.interval, check.timeout, check.retries), (Some(Duration::from_secs(90)), None, Some(4)));
    assert_eq!(check.start_period, Some(Duration::from_millis(1500)));
    assert_eq!(check.start_interval, Some(Duration::from_millis(250)));
}

#[test]
fn restart_takes_every_form_and_the_restart_policy_wins() {
    let policy = |text: &str| service(text).restart;
    assert_eq!(policy("restart: 'no'").condition, RestartCondition::Never);
    assert_eq!(policy("restart: no").condition, RestartCondition::Never);
    assert_eq!(policy("restart: unless-stopped").condition, RestartCondition::Always);
    let on_failure = policy("restart: on-failure:5");
    assert_eq!((on_failure.condition, on_failure.max_attempts), (RestartCondition::OnFailure, Some(5)));
    let long = policy("deploy: {restart_policy: {condition: none, delay: 0s, max_attempts: 3, window: 2m}}");
    assert_eq!((long.condition, long.delay), (RestartCondition::Never, Some(Duration::ZERO)));
    assert_eq!((long.max_attempts, long.window), (Some(3), Some(Duration::from_secs(120))));

    let both = "services: {web: {image: nginx, restart: always, deploy: {restart_policy: {condition: none}}}}";
    let (stack, warnings) = read_with(both, &[]).expect("only a warning");
    let restart = &stack.services.values().next().expect("one service").restart;
    assert_eq!(restart.condition, RestartCondition::Never);
    assert_eq!(warnings[0].message, "`restart` has no effect: `deploy.restart_policy` is set too");
}

#[test]
fn deploy_scale_and_network_modes() {
    assert_eq!(service("scale: 3").mode, Mode::Replicated { replicas: 3 });
    assert_eq!(service("scale: 0").mode, Mode::Replicated { replicas: 0 });
    assert_eq!(service("scale: 3\ndeploy: {replicas: 3}").mode, Mode::Replicated { replicas: 3 });
    assert_eq!(service("deploy: {mode: global}").mode, Mode::Global);
    assert_eq!(service("deploy: {update_config: {}}").update, UpdatePolicy::default());
    assert_eq!(service("network_mode: host").task.network, NetworkMode::Host);
    let limits =
        service("deploy: {resources: {limits: {cpus: '0.25', memory: 1.5g, pids: 100}}}").task.resources.limits;
    assert_eq!((limits.nano_cpus, limits.memory, limits.pids), (Some(250_000_000), Some(3 << 29), Some(100)));
    let none = service("deploy: {resources: {limits: {cpus: 0, memory: 0, pids: -1}}}").task.resources.limits;
    assert_eq!(none, Default::default());
}

#[test]
fn the_stack_is_named_by_option_then_environment_then_key_then_folder() {
    let spec = "name: from-key\nservices: {web: {image: nginx, hostname: $COMPOSE_PROJECT_NAME}}";
    let name = |text: &str, option: Option<&str>, environment: &[(&str, &str)]| {
        let environment = environment.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        let options = Options { project_name: option.map(str::to_owned), environment, env_file: None };
        let mut diagnostics = Diagnostics::default();
        let source = Source::new("spec.yaml", text);
        let stack = read(&source, Path::new("/srv/_My Shop.d"), &options, &mut diagnostics);
        let (stack, _) = diagnostics.finish(stack).unwrap_or_else(|problems| panic!("{problems}"));
        let hostname = stack.services.values().next().and_then(|service| service.task.hostname.clone());
        assert!(hostname.is_none_or(|hostname| hostname == stack.name.as_str()));
        stack.name.to_string()
    };
    let outside = [("COMPOSE_PROJECT_NAME", "from-environment")];
    assert_eq!(name(spec, Some("from-option"), &outside), "from-option");
    assert_eq!(name(spec, None, &outside), "from-environment");
    assert_eq!(name(spec, None, &[]), "from-key");
    assert_eq!(name("services: {web: {image: nginx}}", None, &[]), "myshopd");
}

#[test]
fn what_stands_behind_an_alias_is_told_once() {
    let text =
        "x-base: &base {imagee: nginx}\nservices:\n  a: *base\n  b: {<<: *base}\n  c: {<<: [*base], image: nginx}";
    assert_eq!(said(text), ["unknown key \"imagee\" in a service"]);
}

#[test]
fn merges_keep_what_is_written_and_then_the_earlier() {
    let text = "x-a: &a {image: a, init: true}\nx-b: &b {image: b, read_only: true}\n\
                services:\n  web: {<<: [*a, *b], hostname: web}";
    let (stack, _) = read_with(text, &[]).unwrap_or_else(|problems| panic!("{problems}"));
    let task = &stack.services.values().next().expect("one service").task;
    assert_eq!((task.image.as_str(), task.init, task.read_only), ("a", true, true));
}

#[test]
fn values_of_variables_cannot_grow_a_file_without_bounds() {
    let text = format!("services: {{web: {{image: nginx, command: [{}]}}}}", "'$BIG', ".repeat(1000));
    let big = "x".repeat(100_000);
    let problems = read_with(&text, &[("BIG", &big)]).expect_err("100 MB");
    assert!(problems.found[0].message.contains("larger than 8 MiB"), "{problems}");
}

#[test]
fn no_part_of_a_spec_reaches_the_terminal_raw() {
    let text = r#"services: {web: {image: "${A:?\e[2J}", env_file: "\e[31m", tmpfs: ["/a\rb", "/a\rb"], "\e[1m": 1}}"#;
    let shown = read_with(text, &[]).expect_err("four mistakes").to_string();
    assert!(!shown.contains(|c: char| c.is_control() && c != '\n'), "{shown:?}");
    assert!(shown.contains("4 errors"), "{shown}");
}

#[test]
fn variables_come_from_the_process_then_the_env_file() {
    let folder = tempfile::tempdir().expect("a folder");
    let write = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).expect("a file");
        path
    };
    let spec = write("spec.yaml", "name: s\nservices: {web: {image: 'nginx:$TAG', environment: [TAG]}}");
    write(".env", "TAG=beside");
    let other = write("other.env", "TAG=other");
    let wrong = write("wrong.env", "TAG=1\n\nwrong line");
    let load = |env_file: Option<&PathBuf>, tag: Option<&str>| {
        let environment = tag.map(|tag| ("TAG".to_owned(), tag.to_owned())).into_iter().collect();
        super::load(&spec, &Options { project_name: None, environment, env_file: env_file.cloned() })
    };
    let image = |env_file, tag| {
        let loaded = load(env_file, tag).unwrap_or_else(|problems| panic!("{problems}"));
        let task = &loaded.stack.services.values().next().expect("one service").task;
        assert_eq!(format!("nginx:{}", task.environment["TAG"]), task.image);
        task.image.clone()
    };
    assert_eq!(image(None, None), "nginx:beside");
    assert_eq!(image(None, Some("process")), "nginx:process");
    assert_eq!(image(Some(&other), None), "nginx:other");
    assert_eq!(image(Some(&other), Some("process")), "nginx:process");
    let problems = load(Some(&wrong), None).expect_err("a line that is no variable");
    let location = problems.found[0].location.as_ref().expect("a place");
    assert_eq!((location.file.as_str(), location.line), (wrong.to_str().expect("UTF-8"), 3));
}

/// Each nearly as large as a file may be. What is linear takes a second or two even in a debug build; what is quadratic
/// takes many minutes.
#[test]
fn hostile_files_are_done_with_in_bounded_time() {
    let fill = |unit: &str| unit.repeat(1_000_000 / unit.len());
    let numbered = |count: usize, unit: &dyn Fn(usize) -> String| (0..count).map(unit).collect::<String>();
    let web = "services:\n  web:\n    image: nginx\n";
    let files = [
        ("flow opened", fill("[")),
        ("braces opened", fill("{")),
        ("block lists opened", fill("- ")),
        ("explicit keys", fill("? ")),
        ("quotes", fill("'")),
        ("anchors", numbered(90_000, &|number| format!("&a{number} "))),
        ("unknown keys", format!("{web}{}", numbered(60_000, &|number| format!("    k{number}: 1\n")))),
        ("one key again and again", format!("{web}{}", fill("    image: a\n"))),
        ("labels", format!("{web}    labels:\n{}", numbered(60_000, &|number| format!("    - l{number}=\n")))),
        ("variables", format!("{web}    command: \"{}\"", numbered(100_000, &|number| format!("$V{number} ")))),
        ("dollars", format!("{web}    command: \"{}\"", fill("${A:-"))),
        ("operators", format!("{web}    command: \"{}\"", fill("& "))),
        ("ports", format!("{web}    ports:\n{}", fill("    - 1-999\n"))),
        ("mounts", format!("{web}    tmpfs:\n{}", numbered(60_000, &|number| format!("    - /a{number}\n")))),
        ("env files", format!("{web}    env_file:\n{}", fill("    - ./a\n"))),
        ("one line", format!("{{services: {{web: {{image: nginx{}}}}}}}", numbered(60_000, &|n| format!(", k{n}: 1")))),
        ("services", format!("services:\n{}", numbered(40_000, &|number| format!("  s{number}: {{a: 1}}\n")))),
        ("merges", format!("x-a: &a {{a: 1}}\nservices:\n  web:\n    <<: [{}]", fill("*a, "))),
    ];
    for (name, text) in files {
        let start = std::time::Instant::now();
        let shown = read_with(&text, &[]).map_err(|problems| problems.to_string());
        assert!(start.elapsed() < Duration::from_secs(60), "{name} took {:?}", start.elapsed());
        if let Err(shown) = shown {
            assert!(shown.len() < 64 << 10, "{name}: {} bytes of text", shown.len());
        }
    }
}

/// Text that looks like a spec often enough to reach every reader.
fn nearly_a_spec() -> impl Strategy<Value = String> {
    let words = [
        "services:",
        "web:",
        "image:",
        "deploy:",
        "ports:",
        "volumes:",
        "tmpfs:",
        "environment:",
        "env_file:",
        "healthcheck:",
        "test:",
        "resources:",
        "limits:",
        "reservations:",
        "memory:",
        "cpus:",
        "restart:",
        "command:",
        "update_config:",
        "restart_policy:",
        "x-a:",
        "name:",
        "&a",
        "*a",
        "<<:",
        "- ",
        "{",
        "}",
        "[",
        "]",
        ", ",
        "\n",
        "\n  ",
        "\n    ",
        "\n      ",
        "'",
        "\"",
        "\\",
        "${",
        "$A",
        "}",
        ":-",
        ":?",
        "$$",
        "80:80",
        "1-2:3-4/udp",
        "5s",
        "64m",
        "0.5",
        "null",
        "true",
        "|\n",
        ">\n",
        "#",
        "---\n",
        "!reset ",
        "!!str ",
        "\t",
        "é",
        "./a:/b:ro",
        "/run",
    ];
    prop::collection::vec(prop::sample::select(words.to_vec()), 0..60).prop_map(|words| words.join(""))
}

proptest! {
    #[test]
    fn no_text_makes_the_loader_panic(text in "\\PC{0,200}") {
        let _ = read_with(&text, &[]).map_err(|problems| problems.to_string());
    }

    #[test]
    fn no_near_spec_makes_the_loader_panic(text in nearly_a_spec()) {
        match read_with(&text, &[("A", "b")]) {
            Ok(_) => {}
            Err(problems) => {
                prop_assert!(problems.found.iter().any(|problem| problem.severity == Severity::Error));
                prop_assert!(!problems.to_string().is_empty());
            }
        }
    }

    #[test]
    fn a_service_of_any_field_reads_or_says_why(key in prop::sample::select(keys::SERVICE.known.to_vec()), value in nearly_a_spec()) {
        let text = format!("services:\n  web:\n    image: nginx\n    {key}: {value}");
        let _ = read_with(&text, &[]).map_err(|problems| problems.to_string());
    }
}

#[test]
fn what_a_container_may_do_is_read_in_every_notation() {
    let rights = |text: &str| service(text).task.rights;
    let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(rights("cap_add: [NET_ADMIN, cap_sys_time]").cap_add, set(&["NET_ADMIN", "SYS_TIME"]));
    assert_eq!(rights("cap_drop: [all]").cap_drop, set(&["ALL"]));
    assert_eq!(rights("group_add: [audio, 44]").group_add, ["audio", "44"]);
    for (text, want) in [
        ("no-new-privileges", Some(true)),
        ("no-new-privileges:true", Some(true)),
        ("no-new-privileges=false", Some(false)),
        ("label=disable", None),
    ] {
        assert_eq!(rights(&format!("security_opt: ['{text}']")).no_new_privileges, want, "{text}");
    }
    assert_eq!(rights("security_opt: ['seccomp:unconfined']").seccomp, Seccomp::Unconfined);
    let other = rights("security_opt: [apparmor=mine, systempaths=unconfined]");
    assert_eq!((other.apparmor.as_deref(), other.unmasked), (Some("mine"), true));
    let device = |source: &str, target: &str, access: &str| Device {
        source: source.into(),
        target: target.into(),
        access: access.into(),
    };
    for (text, want) in [
        ("/dev/snd", device("/dev/snd", "/dev/snd", "rwm")),
        ("/dev/sda:/dev/xvda", device("/dev/sda", "/dev/xvda", "rwm")),
        ("/dev/sda:r", device("/dev/sda", "/dev/sda", "r")),
        ("/dev/sda:/dev/xvda:rw", device("/dev/sda", "/dev/xvda", "rw")),
        ("{source: /dev/a, target: /dev/b, permissions: m}", device("/dev/a", "/dev/b", "m")),
        ("{source: /dev/a}", device("/dev/a", "/dev/a", "rwm")),
    ] {
        assert_eq!(rights(&format!("devices:\n- {text}")).devices, [want], "{text}");
    }
    assert_eq!(rights("device_cgroup_rules: ['c 189:* rmw']").device_rules, ["c 189:* rmw"]);
    let namespaces = rights("ipc: host\npid: host\nuserns_mode: host\nprivileged: true");
    assert_eq!((namespaces.ipc, namespaces.pid, namespaces.privileged), (IpcMode::Host, PidMode::Host, true));
    assert_eq!(
        said("services:\n  web: {image: nginx, privileged: true, cap_add: [KILL]}"),
        ["`cap_add` has no effect: a privileged container has every capability"]
    );
}

#[test]
fn a_seccomp_profile_goes_along_without_its_blanks() {
    let folder = tempfile::tempdir().expect("a folder");
    let file = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).expect("written");
    file("mine.json", "{\n  \"defaultAction\": \"SCMP_ACT_ALLOW\",\n  \"syscalls\": []\n}\n");
    file("spec.yaml", "name: a\nservices:\n  web: {image: nginx, security_opt: [seccomp=mine.json]}\n");
    let loaded = load(&folder.path().join("spec.yaml"), &Options::default()).expect("a good spec");
    let task = loaded.stack.services.into_values().next().expect("one service").task;
    let Seccomp::Profile(profile) = task.rights.seccomp else { panic!("{:?}", task.rights.seccomp) };
    assert!(!profile.contains(char::is_whitespace) && profile.contains("SCMP_ACT_ALLOW"), "{profile}");
}

#[test]
fn the_kernels_part_is_read_in_every_notation() {
    let kernel = |text: &str| service(text).task.kernel;
    let both = |soft, hard| Ulimit { soft, hard };
    let ulimits = kernel("ulimits: {nproc: 65535, core: -1, nofile: {soft: 20000, hard: 40000}}").ulimits;
    assert_eq!(ulimits["nproc"], both(Some(65_535), Some(65_535)));
    assert_eq!(ulimits["core"], both(None, None));
    assert_eq!(ulimits["nofile"], both(Some(20_000), Some(40_000)));
    let map = kernel("sysctls: {net.core.somaxconn: 1024, kernel.sem: '1 2 3 4'}").sysctls;
    assert_eq!(map, kernel("sysctls: [net.core.somaxconn=1024, 'kernel.sem=1 2 3 4']").sysctls);
    assert_eq!((map["kernel.sem"].as_str(), map.len()), ("1 2 3 4", 2));
    assert_eq!(kernel("shm_size: 1g").shm_size, Some(1 << 30));
    assert_eq!(kernel("oom_score_adj: -500").oom_score_adj, Some(-500));
    assert_eq!(service("runtime: runsc").task.runtime.as_deref(), Some("runsc"));
    assert!(service("tty: true\nstdin_open: true").task.tty);
}

#[test]
fn limits_of_the_service_itself_are_those_of_deploy() {
    let resources = |text: &str| service(text).task.resources;
    let plain = resources("cpus: 0.5\nmem_limit: 64m\nmem_reservation: 32m\npids_limit: 10");
    let deploy = "deploy: {resources: {limits: {cpus: 0.5, memory: 64m, pids: 10}, reservations: {memory: 32m}}}";
    assert_eq!(plain, resources(deploy));
    assert_eq!(plain, resources(&format!("mem_limit: 64m\n{deploy}")));
    assert_eq!(resources("pids_limit: -1").limits.pids, None);
    assert_eq!(resources("storage_opt: {size: 1.5G}").limits.disk, Some(3 << 29));
    let controls = |text: &str| resources(text).controls;
    assert_eq!(controls("mem_limit: 64m\nmemswap_limit: 128m").memory_swap, Some(MemorySwap::Bytes(128 << 20)));
    assert_eq!(controls("mem_limit: 64m\nmemswap_limit: -1").memory_swap, Some(MemorySwap::Unlimited));
    assert_eq!(controls("memswap_limit: 0").memory_swap, None);
    assert_eq!(controls("mem_swappiness: 0").swappiness, Some(0));
    assert_eq!(controls("cpu_period: 50ms\ncpu_quota: 25000").cpu_period, Some(50_000));
    assert_eq!(controls("cpu_period: 50ms\ncpu_quota: 25000").cpu_quota, Some(25_000));
    assert_eq!((controls("cpu_shares: 512").cpu_shares, controls("cpu_shares: 0").cpu_shares), (Some(512), None));
    assert_eq!(controls("cpuset: 0-1").cpuset.as_deref(), Some("0-1"));
    let block = controls(
        "blkio_config:\n  weight: 300\n  weight_device: [{path: /dev/sda, weight: 400}]\n  \
         device_read_bps: [{path: /dev/sdb, rate: 12mb}]\n  device_write_iops: [{path: /dev/sdb, rate: 30}]",
    )
    .block;
    assert_eq!((block.weight, block.device_weights[Path::new("/dev/sda")]), (Some(300), 400));
    assert_eq!((block.read_bps[Path::new("/dev/sdb")], block.write_iops[Path::new("/dev/sdb")]), (12 << 20, 30));
}

#[test]
fn a_tmpfs_takes_its_file_systems_options() {
    let mounts = service("tmpfs: ['/t:uid=5,gid=6,nr_inodes=7,exec,suid,nodev', '/u:noexec,nosuid']").task.mounts;
    let options = |mount: &Mount| match mount {
        Mount::Tmpfs { options, .. } => *options,
        Mount::Bind { .. } => panic!("{mount:?}"),
    };
    let all = TmpfsOptions { uid: Some(5), gid: Some(6), inodes: Some(7), exec: true, suid: true };
    assert_eq!((options(&mounts[0]), options(&mounts[1])), (all, TmpfsOptions::default()));
}

#[test]
fn what_is_printed_of_a_container_reads_back_as_the_same() {
    let written = service_with_warnings(
        "privileged: true\ngroup_add: [5]\ncap_drop: [KILL]\n\
         security_opt: ['no-new-privileges:true', seccomp=unconfined, apparmor=mine, systempaths=unconfined]\n\
         devices: ['/dev/sda:/dev/xvda:r']\ndevice_cgroup_rules: ['c 1:3 r']\nipc: host\npid: host\n\
         ulimits: {nofile: {soft: 1, hard: -1}, core: 0}\nsysctls: {net.core.somaxconn: 5}\noom_score_adj: -5\n\
         mem_limit: 64m\nmemswap_limit: -1\nmem_swappiness: 5\noom_kill_disable: true\ncpu_shares: 5\n\
         cpu_period: 20ms\ncpu_quota: 5ms\ncpuset: 0-1\nruntime: runsc\ntty: true\nstdin_open: true\n\
         tmpfs: ['/t:uid=5,exec,size=1m,ro']\n\
         blkio_config: {weight: 10, weight_device: [{path: /dev/a, weight: 20}], \
         device_write_bps: [{path: /dev/a, rate: 5}]}",
    );
    let printed = crate::render::spec::compose(&written);
    let text = serde_json::json!({"services": {"web": printed}}).to_string();
    let (stack, _) = read_with(&text, &[]).unwrap_or_else(|problems| panic!("{text}\n{problems}"));
    assert_eq!(stack.services.into_values().next(), Some(written));
}
