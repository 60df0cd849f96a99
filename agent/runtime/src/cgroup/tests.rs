//! With the kernel's control groups: each test in groups of its own, below one that has the test's name.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use nix::{sys::signal::Signal, unistd::Pid};
use oci_spec::runtime::LinuxResources;

use super::{
    hierarchies::{Layout, restrict_devices},
    *,
};

const PATIENCE: Duration = Duration::from_secs(10);

/// Removed with all that is in it, also when its test fails.
struct Group {
    hierarchies: Hierarchies,
    top: PathBuf,
    path: PathBuf,
}

impl Group {
    fn named(test: &str) -> Self {
        Self::within(Hierarchies::open().unwrap(), test)
    }

    fn within(hierarchies: Hierarchies, test: &str) -> Self {
        let top = PathBuf::from(format!("/roster-test-{}-{test}", std::process::id()));
        let path = top.join("container");
        Self { hierarchies, top, path }
    }

    fn create(&self, resources: &str) -> CgroupDirs {
        self.hierarchies.create(&self.path, &parse(resources), false).unwrap()
    }

    fn update(&self, resources: &str) -> Result<(), crate::error::StartError> {
        self.hierarchies.update(&self.path, &parse(resources))
    }

    fn dirs(&self) -> CgroupDirs {
        self.hierarchies.dirs(&self.path).unwrap()
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        for path in [&self.path, &self.top] {
            self.hierarchies.dirs(path).unwrap().remove().unwrap();
        }
    }
}

fn parse(resources: &str) -> LinuxResources {
    serde_json::from_str(resources).unwrap()
}

fn start(dirs: &CgroupDirs, script: &str) -> Child {
    let mut command = Command::new("/bin/sh");
    command.stdin(Stdio::null()).stderr(Stdio::null());
    if dirs.is_v2() {
        // It goes on at the end of its input, which comes once it is in.
        let script = format!("read line; {script}");
        let mut child = command.args(["-c", &script]).stdin(Stdio::piped()).spawn().unwrap();
        fs::write(dirs.0[0].join("cgroup.procs"), child.id().to_string()).unwrap();
        drop(child.stdin.take());
        return child;
    }
    command.args(["-c", script]);
    let mut door = Some(dirs.door().unwrap());
    // SAFETY: the child has one thread and only writes to descriptors that are open.
    unsafe { command.pre_exec(move || door.take().map_or(Ok(()), Door::enter)) };
    command.spawn().unwrap()
}

fn read(dirs: &CgroupDirs, v1: &str, v2: &str) -> String {
    let name = if dirs.is_v2() { v2 } else { v1 };
    let text = dirs.0.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok());
    text.unwrap_or_else(|| panic!("{dirs:?} have no {name}")).trim().to_owned()
}

fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "{what} did not come true");
        std::thread::yield_now();
    }
}

fn is_there(pid: u32) -> bool {
    nix::sys::signal::kill(Pid::from_raw(pid as i32), None::<Signal>).is_ok()
}

#[test]
fn a_group_is_made_with_its_limits_listed_joined_and_removed() {
    let group = Group::named("made");
    let dirs = group
        .create(r#"{"pids": {"limit": 20}, "memory": {"limit": 33554432}, "cpu": {"quota": 50000, "period": 100000}}"#);
    assert_eq!(dirs, group.dirs());
    assert_eq!(read(&dirs, "pids.max", "pids.max"), "20");
    assert_eq!(read(&dirs, "memory.limit_in_bytes", "memory.max"), "33554432");
    assert_eq!(dirs.out_of_memory(), OutOfMemory { kills: 0, limit: Some(33_554_432) });
    assert_eq!(group.hierarchies.list(&group.top).unwrap(), ["container"]);
    let mut child = start(&dirs, "sleep 60 & wait");
    until("two processes", || dirs.processes().unwrap().len() == 2);
    let stats = dirs.stats();
    assert_eq!((stats.pids.current, stats.pids.limit), (Some(2), Some(20)));
    assert!(stats.memory.usage.usage > Some(0), "{stats:?}");
    dirs.remove().unwrap();
    child.wait().unwrap();
    assert!(group.hierarchies.list(&group.top).unwrap().is_empty());
}

#[test]
fn limits_that_bound_each_other_move_up_and_down_together() {
    let group = Group::named("updated");
    let dirs = group.create(r#"{"memory": {"limit": 33554432, "swap": 33554432}}"#);
    for bytes in [67_108_864, 16_777_216, 33_554_432] {
        group.update(&format!(r#"{{"memory": {{"limit": {bytes}, "swap": {bytes}}}}}"#)).unwrap();
        assert_eq!(read(&dirs, "memory.limit_in_bytes", "memory.max"), bytes.to_string());
    }
    group.update(r#"{"memory": {"limit": -1}, "cpu": {"quota": 100000, "burst": 100000}}"#).unwrap();
    group.update(r#"{"cpu": {"quota": 50000, "burst": 20000}}"#).unwrap();
    assert_eq!(dirs.out_of_memory().limit, None);
    assert_eq!(read(&dirs, "cpu.cfs_burst_us", "cpu.max.burst"), "20000");
    let error = group.update(r#"{"cpu": {"quota": 50000, "burst": 60000}}"#).unwrap_err().to_string();
    assert!(error.contains("burst") && error.contains("60000"), "{error}");
}

#[test]
fn a_group_that_is_gone_is_not_made_again_by_changing_it() {
    let group = Group::named("gone");
    let error = group.update(r#"{"pids": {"limit": 5}}"#).unwrap_err().to_string();
    assert!(error.contains("find the cgroup"), "{error}");
    assert!(group.hierarchies.freeze(&group.path, PATIENCE).is_err());
    assert!(group.dirs().0.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_limit_below_what_is_used_is_refused_when_asked_to_check() {
    let group = Group::named("checked");
    let dirs = group.create("{}");
    let mut child = start(&dirs, "exec sleep 60");
    until("some use of memory", || dirs.stats().memory.usage.usage > Some(4096));
    let error = group.update(r#"{"memory": {"limit": 4096, "checkBeforeUpdate": true}}"#).unwrap_err().to_string();
    assert!(error.contains("are used"), "{error}");
    dirs.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_set_of_processors_can_be_joined_also_when_it_is_asked_for_later() {
    let group = Group::named("cpuset");
    let mut child = start(&group.create("{}"), "exec sleep 60");
    group.update(r#"{"cpu": {"cpus": "0"}}"#).unwrap();
    let dirs = group.dirs();
    assert_eq!(read(&dirs, "cpuset.cpus", "cpuset.cpus"), "0");
    assert!(dirs.0.last().unwrap().is_dir());
    let with_cpus = dirs.0.iter().find(|dir| dir.join("cpuset.cpus").exists()).unwrap();
    assert_eq!(fs::read_to_string(with_cpus.join("cgroup.procs")).unwrap().trim(), child.id().to_string());
    dirs.remove().unwrap();
    child.wait().unwrap();
    let dirs = group.create(r#"{"cpu": {"cpus": "0"}}"#);
    assert!(start(&dirs, "exit 0").wait().unwrap().success());
}

#[test]
fn a_group_in_use_is_not_given_to_a_second_container() {
    let group = Group::named("used");
    let dirs = group.create("{}");
    group.create(r#"{"pids": {"limit": 5}}"#);
    let mut child = start(&dirs, "exec sleep 60");
    let error = group.hierarchies.create(&group.path, &parse("{}"), false).unwrap_err().to_string();
    assert!(error.contains(&format!("[{}]", child.id())), "{error}");
    assert!(is_there(child.id()));
    dirs.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_group_whose_limits_cannot_be_set_is_not_left_behind() {
    let group = Group::named("failed");
    let error =
        group.hierarchies.create(&group.path, &parse(r#"{"cpu": {"cpus": "9999"}}"#), false).unwrap_err().to_string();
    assert!(error.contains("9999") && error.contains("cpuset.cpus"), "{error}");
    assert!(group.dirs().0.iter().all(|dir| !dir.exists()));
}

const REALTIME: &str = r#"{"cpu": {"realtimeRuntime": 20000, "realtimePeriod": 1000000}}"#;

#[test]
fn a_real_time_budget_that_cannot_be_says_what_is_in_its_way() {
    let group = Group::named("realtime");
    let refusal =
        |resources: &str| group.hierarchies.create(&group.path, &parse(resources), false).unwrap_err().to_string();
    let error = refusal(REALTIME);
    match &group.hierarchies.layout {
        Layout::V2(_) => assert!(error.contains("control groups v2"), "{error}"),
        Layout::V1(roots) => {
            let root = roots.get("cpu").unwrap();
            let file = root.join(group.top.strip_prefix("/").unwrap()).join(realtime::RUNTIME);
            if !root.join(realtime::RUNTIME).exists() {
                return assert!(error.contains("this kernel has no such limit"), "{error}");
            }
            let words = format!("{} is 0, and nothing below has more: write there first", file.display());
            assert!(error.contains(&words), "{error}");
            fs::write(&file, "10000").unwrap();
            let error = refusal(REALTIME);
            assert!(error.contains(&format!("{} is 10000, which is for all groups", file.display())), "{error}");
            let error = refusal(r#"{"cpu": {"realtimeRuntime": 20000, "realtimePeriod": 15000}}"#);
            assert!(error.contains("more than the whole period, which is 15000"), "{error}");
            fs::write(&file, "20000").unwrap();
            group.create(REALTIME);
        }
    }
    assert!(!group.path.starts_with(OWN_PARENT));
}

#[test]
fn above_a_group_of_the_runtimes_own_there_is_as_much_real_time_as_below() {
    let group = Group::named("room");
    let Layout::V1(roots) = &group.hierarchies.layout else { return };
    let root = roots.get("cpu").unwrap();
    if !root.join(realtime::RUNTIME).exists() {
        return;
    }
    let ours = group.top.to_str().unwrap();
    let top = root.join(group.top.strip_prefix("/").unwrap());
    let budget = |dir: &Path| fs::read_to_string(dir.join(realtime::RUNTIME)).unwrap().trim().parse::<u64>().unwrap();
    let ask = |name: &str, resources: &str| {
        let path = group.top.strip_prefix("/").unwrap().join(name);
        fs::create_dir_all(root.join(&path)).unwrap();
        let writes = resources::writes(&parse(resources), Version::V1).unwrap();
        realtime::make_room(root, ours, &path, &writes)?;
        write::apply(&writes, |_| Ok(root.join(&path)))
    };
    ask("container", "{}").unwrap();
    assert_eq!(budget(&top), 0, "nobody asked");
    ask("between/container", REALTIME).unwrap();
    assert_eq!((budget(&top.join("between/container")), budget(&top.join("between"))), (20_000, 20_000));
    // Another period; as many as fit, whatever order they come in.
    ask("container", r#"{"cpu": {"realtimeRuntime": 5000, "realtimePeriod": 100000}}"#).unwrap();
    assert!((69_999..=70_000).contains(&budget(&top)), "{}", budget(&top));
    ask("container", r#"{"cpu": {"realtimePeriod": 50000}}"#).unwrap();
    assert!((119_999..=120_000).contains(&budget(&top)), "{}", budget(&top));
    ask("container", r#"{"cpu": {"realtimeRuntime": 1000}}"#).unwrap();
    assert_eq!(budget(&top.join("container")), 1000);
    realtime::give_back(root, ours, group.path.strip_prefix("/").unwrap()).unwrap();
    assert!((39_999..=40_000).contains(&budget(&top)), "{}", budget(&top));

    // The host keeps something for itself.
    let error = ask("container", r#"{"cpu": {"realtimeRuntime": 49500}}"#).unwrap_err().to_string();
    assert!(error.contains(&format!("{} is ", root.join(realtime::RUNTIME).display())), "{error}");
    assert_eq!(budget(&top.join("container")), 1000);
    let error = ask("container", r#"{"cpu": {"realtimeRuntime": 50001}}"#).unwrap_err().to_string();
    assert!(error.contains("a budget of 50001 is more than the whole period, which is 50000"), "{error}");
    let below = group.top.strip_prefix("/").unwrap().join("between/container");
    realtime::release(root, ours, &below).unwrap();
    fs::remove_dir(root.join(below)).unwrap();
    assert_eq!(budget(&top.join("between")), 0);
    assert!((19_999..=20_000).contains(&budget(&top)), "{}", budget(&top));
    fs::remove_dir(top.join("between")).unwrap();
}

#[test]
fn only_groups_below_the_root_are_touched() {
    let hierarchies = Hierarchies::open().unwrap();
    for path in ["/", "", "/a/../../b", ".."] {
        let error = hierarchies.create(Path::new(path), &parse("{}"), false).unwrap_err().to_string();
        assert!(error.contains("below the root"), "{error}");
    }
}

#[test]
fn devices_that_are_not_allowed_cannot_be_opened() {
    let group = Group::named("devices");
    let dirs = group.create(r#"{"devices": [{"allow": false, "access": "rwm"}]}"#);
    let opens = |device: &str| start(&dirs, &format!("exec 3<{device}")).wait().unwrap().success();
    assert!(opens("/dev/null"));
    assert!(!opens("/dev/kmsg"));
}

/// A group of v2 without controllers, for what needs none; on hybrid hosts too.
fn unified(test: &str) -> Option<(Group, CgroupDirs)> {
    let root = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(PathBuf::from);
    let root = root.into_iter().find(|root| root.join("cgroup.controllers").exists())?;
    let group = Group::within(Hierarchies { layout: Layout::V2(root) }, test);
    let dirs = group.dirs();
    fs::create_dir_all(&dirs.0[0]).unwrap();
    Some((group, dirs))
}

#[test]
fn devices_are_restricted_by_a_program_on_v2() {
    let Some((_group, dirs)) = unified("program") else { return };
    let denied = |rules: &str| {
        let rules = devices::rules(&serde_json::from_str::<Vec<_>>(rules).unwrap()).unwrap();
        restrict_devices(&dirs.0[0], &rules).unwrap();
        !start(&dirs, "exec 3</dev/null; exec 3</dev/kmsg").wait().unwrap().success()
    };
    assert!(!denied(r#"[{"allow": false}, {"allow": true, "type": "c", "major": 1, "minor": 11, "access": "r"}]"#));
    assert!(denied(r#"[{"allow": false}]"#));
}

fn freeze_and_thaw(group: &Group) {
    let Group { hierarchies, path, .. } = group;
    assert!(!hierarchies.is_frozen(path).unwrap());
    hierarchies.thaw(path).unwrap();
    // Makes processes all the time.
    let mut child = start(&group.dirs(), "while :; do /bin/true; done");
    for _ in 0..3 {
        hierarchies.freeze(path, PATIENCE).unwrap();
        assert!(hierarchies.is_frozen(path).unwrap());
        let then = group.dirs().processes().unwrap();
        assert!(then.contains(&(child.id() as i32)));
        assert_eq!(group.dirs().processes().unwrap(), then);
        hierarchies.thaw(path).unwrap();
        until("thawed", || !hierarchies.is_frozen(path).unwrap());
        until("going on", || group.dirs().processes().unwrap() != then);
    }
    hierarchies.freeze(path, PATIENCE).unwrap();
    group.dirs().remove().unwrap();
    child.wait().unwrap();
    assert!(group.dirs().0.iter().all(|dir| !dir.exists()));
}

#[test]
fn a_frozen_container_stands_still_goes_on_and_can_be_removed() {
    let group = Group::named("frozen");
    group.create("{}");
    freeze_and_thaw(&group);
}

#[test]
fn a_group_of_v2_is_frozen_by_itself() {
    let Some((group, _)) = unified("frozen-v2") else { return };
    freeze_and_thaw(&group);
}
