use super::*;

const V1: Version = Version::V1;
const V2: Version = Version::V2;

fn of(version: Version, json: &str) -> Result<Vec<Write>, StartError> {
    writes(&serde_json::from_str(json).unwrap(), version)
}

fn lines(version: Version, json: &str) -> Vec<String> {
    let writes = of(version, json).unwrap_or_else(|error| panic!("{json}: {error}"));
    writes.into_iter().map(|write| format!("{} {}", write.file, write.value)).collect()
}

fn refusal(version: Version, json: &str) -> String {
    match of(version, json) {
        Err(StartError::Impossible { what, reason }) => format!("{what}: {reason}"),
        other => panic!("{json}: {other:?}"),
    }
}

#[test]
fn no_resources_are_no_writes() {
    assert_eq!(of(V1, "{}").unwrap(), []);
    assert_eq!(of(V2, r#"{"cpu": {}, "memory": {}, "blockIO": {}, "unified": {}}"#).unwrap(), []);
}

#[test]
fn a_negative_number_of_pids_is_no_limit() {
    for version in [V1, V2] {
        assert_eq!(lines(version, r#"{"pids": {"limit": 32}}"#), ["pids.max 32"]);
        assert_eq!(lines(version, r#"{"pids": {"limit": -1}}"#), ["pids.max max"]);
    }
}

#[test]
fn processors_are_limited_by_each_versions_names() {
    let json = r#"{"cpu": {"shares": 1024, "quota": 50000, "period": 100000, "burst": 1000, "idle": 1,
                           "cpus": "0-1", "mems": "0"}}"#;
    let v1 = ["cpu.shares 1024", "cpu.cfs_period_us 100000", "cpu.cfs_quota_us 50000", "cpu.cfs_burst_us 1000"];
    assert_eq!(lines(V1, json)[..4], v1);
    assert_eq!(lines(V1, json)[4..], ["cpu.idle 1", "cpuset.cpus 0-1", "cpuset.mems 0"]);
    let v2 = ["cpu.weight 39", "cpu.max 50000 100000", "cpu.max.burst 1000", "cpu.idle 1"];
    assert_eq!(lines(V2, json)[..4], v2);
    assert_eq!(lines(V2, json)[4..], ["cpuset.cpus 0-1", "cpuset.mems 0"]);
}

#[test]
fn no_quota_is_said_in_each_versions_words() {
    assert_eq!(lines(V1, r#"{"cpu": {"quota": -1}}"#), ["cpu.cfs_quota_us -1"]);
    assert_eq!(lines(V2, r#"{"cpu": {"quota": -1}}"#), ["cpu.max max"]);
    assert_eq!(lines(V2, r#"{"cpu": {"period": 50000}}"#), ["cpu.max max 50000"]);
    assert_eq!(lines(V2, r#"{"cpu": {"quota": 7000}}"#), ["cpu.max 7000"]);
}

/// As Docker's `update` says it of all that was not asked for.
#[test]
fn zero_leaves_what_there_is() {
    let json = r#"{"pids": {"limit": 0}, "memory": {"limit": 0, "swap": 0, "reservation": 0},
                   "cpu": {"quota": 0, "period": 0, "shares": 0, "realtimeRuntime": 0, "realtimePeriod": 0, "cpus": ""}}"#;
    for version in [V1, V2] {
        assert_eq!(lines(version, json), Vec::<String>::new());
    }
}

#[test]
fn shares_become_weights_from_end_to_end() {
    let weight = |shares: u64| lines(V2, &format!(r#"{{"cpu": {{"shares": {shares}}}}}"#));
    assert_eq!(weight(1), ["cpu.weight 1"]);
    assert_eq!(weight(2), ["cpu.weight 1"]);
    assert_eq!(weight(262_144), ["cpu.weight 10000"]);
    assert_eq!(weight(u64::MAX), ["cpu.weight 10000"]);
    assert_eq!(weight(0), Vec::<String>::new());
}

#[test]
fn real_time_is_for_v1_alone() {
    let json = r#"{"cpu": {"realtimePeriod": 1000000, "realtimeRuntime": 950000}}"#;
    assert_eq!(lines(V1, json), ["cpu.rt_period_us 1000000", "cpu.rt_runtime_us 950000"]);
    assert!(refusal(V2, json).contains("realtimeRuntime"));
}

#[test]
fn swap_is_counted_with_memory_on_v1_and_alone_on_v2() {
    let json = r#"{"memory": {"limit": 1000, "swap": 1500, "reservation": 500}}"#;
    let v1 = ["memory.limit_in_bytes 1000", "memory.memsw.limit_in_bytes 1500", "memory.soft_limit_in_bytes 500"];
    assert_eq!(lines(V1, json), v1);
    assert_eq!(lines(V2, json), ["memory.max 1000", "memory.swap.max 500", "memory.low 500"]);
    let none = r#"{"memory": {"limit": 1000, "swap": 1000}}"#;
    assert_eq!(lines(V2, none), ["memory.max 1000", "memory.swap.max 0"]);
    assert_eq!(of(V1, none).unwrap()[1].absent, Absent::Skip);
}

#[test]
fn without_a_limit_of_memory_there_is_none_of_swap() {
    let json = r#"{"memory": {"limit": -1}}"#;
    assert_eq!(lines(V1, json), ["memory.limit_in_bytes -1", "memory.memsw.limit_in_bytes -1"]);
    assert_eq!(lines(V2, json), ["memory.max max", "memory.swap.max max"]);
    assert_eq!(lines(V2, r#"{"memory": {"limit": 9, "swap": -1}}"#), ["memory.max 9", "memory.swap.max max"]);
}

#[test]
fn zero_bytes_are_not_said() {
    assert_eq!(
        lines(V1, r#"{"memory": {"limit": 0, "swap": 0, "reservation": 0, "kernel": 5}}"#),
        Vec::<String>::new()
    );
}

#[test]
fn swap_that_cannot_hold_memory_is_refused() {
    for version in [V1, V2] {
        assert!(refusal(version, r#"{"memory": {"limit": 1000, "swap": 999}}"#).contains("memory and swap together"));
        assert!(refusal(version, r#"{"memory": {"limit": -1, "swap": 999}}"#).contains("memory and swap together"));
        assert!(refusal(version, r#"{"memory": {"limit": -2}}"#).contains("-1 is no limit"));
    }
    assert!(refusal(V2, r#"{"memory": {"swap": 999}}"#).contains("memory.limit must be said"));
}

#[test]
fn what_v2_lacks_for_memory_is_refused_there() {
    let json = r#"{"memory": {"swappiness": 60, "disableOOMKiller": true, "kernelTCP": 4096}}"#;
    let v1 = ["memory.kmem.tcp.limit_in_bytes 4096", "memory.swappiness 60", "memory.oom_control 1"];
    assert_eq!(lines(V1, json), v1);
    for one in [r#""swappiness": 0"#, r#""disableOOMKiller": true"#, r#""kernelTCP": 4096"#] {
        let message = refusal(V2, &format!(r#"{{"memory": {{{one}}}}}"#));
        assert!(message.contains("control groups v2, which this host has, know no such limit"), "{message}");
    }
    assert_eq!(lines(V2, r#"{"memory": {"disableOOMKiller": false}}"#), Vec::<String>::new());
    assert!(refusal(V1, r#"{"memory": {"swappiness": 201}}"#).contains("201"));
}

#[test]
fn a_limit_below_what_is_used_is_refused_for_who_asks() {
    let memory = |limit: i64| serde_json::from_str(&format!(r#"{{"limit": {limit}}}"#)).unwrap();
    assert!(refuse_less_than_used(&memory(100), 101).is_err());
    for limit in [-1, 0, 101] {
        refuse_less_than_used(&memory(limit), 101).unwrap();
    }
}

#[test]
fn weights_of_devices_fall_back_to_the_other_scheduler() {
    let json = r#"{"blockIO": {"weight": 505, "weightDevice": [{"major": 8, "minor": 0, "weight": 1000}]}}"#;
    assert_eq!(lines(V1, json), ["blkio.weight 505", "blkio.weight_device 8:0 1000"]);
    assert_eq!(lines(V2, json), ["io.bfq.weight 505", "io.bfq.weight 8:0 1000"]);
    let instead =
        |version: Version| of(version, json).unwrap().into_iter().map(|write| write.absent).collect::<Vec<_>>();
    let to = |file: &str, value: &str| Absent::Instead { file: file.to_owned(), value: value.to_owned() };
    assert_eq!(instead(V1), [to("blkio.bfq.weight", "505"), to("blkio.bfq.weight_device", "8:0 1000")]);
    assert_eq!(instead(V2), [to("io.weight", "5000"), to("io.weight", "8:0 10000")]);
    assert!(refusal(V1, r#"{"blockIO": {"weight": 9}}"#).contains("10..=1000"));
    assert!(refusal(V2, r#"{"blockIO": {"leafWeight": 10}}"#).contains("leafWeight"));
    assert_eq!(lines(V1, r#"{"blockIO": {"leafWeight": 10}}"#), ["blkio.leaf_weight 10"]);
}

#[test]
fn devices_are_throttled_each_by_itself() {
    let json = r#"{"blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 600}],
                               "throttleWriteIOPSDevice": [{"major": 8, "minor": 16, "rate": 0}]}}"#;
    let v1 = ["blkio.throttle.read_bps_device 8:0 600", "blkio.throttle.write_iops_device 8:16 0"];
    assert_eq!(lines(V1, json), v1);
    assert_eq!(lines(V2, json), ["io.max 8:0 rbps=600", "io.max 8:16 wiops=max"]);
    assert!(
        refusal(V2, r#"{"blockIO": {"throttleReadBpsDevice": [{"major": -1, "minor": 0, "rate": 6}]}}"#)
            .contains("-1:0")
    );
}

#[test]
fn huge_pages_are_limited_used_or_reserved() {
    let json = r#"{"hugepageLimits": [{"pageSize": "2MB", "limit": 4194304}]}"#;
    assert_eq!(lines(V1, json), ["hugetlb.2MB.limit_in_bytes 4194304", "hugetlb.2MB.rsvd.limit_in_bytes 4194304"]);
    assert_eq!(lines(V2, json), ["hugetlb.2MB.max 4194304", "hugetlb.2MB.rsvd.max 4194304"]);
    for size in ["../x", "MB", "2", "2MiB", ""] {
        let json = format!(r#"{{"hugepageLimits": [{{"pageSize": "{size}", "limit": 1}}]}}"#);
        assert!(refusal(V2, &json).contains("no page size"));
    }
}

#[test]
fn the_network_is_limited_on_v1_alone() {
    let json = r#"{"network": {"classID": 1048577, "priorities": [{"name": "eth0", "priority": 5}]}}"#;
    assert_eq!(lines(V1, json), ["net_cls.classid 1048577", "net_prio.ifpriomap eth0 5"]);
    assert!(refusal(V2, json).contains("network"));
    assert!(
        refusal(V1, r#"{"network": {"priorities": [{"name": "a b", "priority": 5}]}}"#).contains("no device's name")
    );
}

#[test]
fn rdma_devices_are_limited_one_a_line() {
    let json = r#"{"rdma": {"mlx5_1": {"hcaHandles": 3, "hcaObjects": 10000}, "mlx4_0": {"hcaObjects": 5}}}"#;
    let expected = ["rdma.max mlx4_0 hca_object=5", "rdma.max mlx5_1 hca_handle=3 hca_object=10000"];
    assert_eq!(lines(V1, json), expected);
    assert_eq!(lines(V2, json), expected);
}

#[test]
fn unified_files_come_last_and_by_lines_on_v2_alone() {
    let json = r#"{"unified": {"memory.high": "99", "io.max": "8:0 rbps=1\n8:16 rbps=2"}, "pids": {"limit": 1}}"#;
    assert_eq!(lines(V2, json), ["pids.max 1", "io.max 8:0 rbps=1", "io.max 8:16 rbps=2", "memory.high 99"]);
    assert_eq!(of(V2, json).unwrap()[3].controller, "memory");
    assert!(refusal(V1, json).contains("files of control groups v2"));
    for file in ["../memory.max", "memory", "..", ".max", "memory."] {
        let json = format!(r#"{{"unified": {{"{file}": "1"}}}}"#);
        assert!(refusal(V2, &json).contains("no file of a control group"), "{file}");
    }
}
