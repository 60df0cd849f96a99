use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::*;

fn with<T>(files: &[(&str, &str)], page_sizes: &[&str], work: impl FnOnce(&Files<'_>) -> T) -> T {
    let files: BTreeMap<&str, &str> = files.iter().copied().collect();
    let read = |name: &str| files.get(name).map(|text| (*text).to_owned());
    work(&Files { read: &read, page_sizes: page_sizes.iter().map(|size| (*size).to_owned()).collect() })
}

fn json(stats: &Stats) -> Value {
    serde_json::to_value(stats).unwrap()
}

#[test]
fn v1_files_become_figures() {
    let files = [
        ("cpu.stat", "nr_periods 9\nnr_throttled 2\nthrottled_time 300\n"),
        ("cpuacct.usage", "1000\n"),
        ("cpuacct.usage_percpu", "400 600 \n"),
        ("memory.stat", "cache 4096\nrss 8192\n"),
        ("memory.usage_in_bytes", "12288\n"),
        ("memory.limit_in_bytes", "9223372036854771712\n"),
        ("memory.failcnt", "0\n"),
        ("memory.memsw.usage_in_bytes", "12289\n"),
        ("blkio.throttle.io_service_bytes_recursive", "8:16 Read 4096\n8:16 Write 0\nTotal 4096\n"),
        ("hugetlb.2MB.usage_in_bytes", "0\n"),
    ];
    let stats = json(&with(&files, &["2MB"], v1::stats));
    assert_eq!(stats["cpu"]["usage"], json!({"total": 1000, "percpu": [400, 600]}));
    assert_eq!(stats["cpu"]["throttling"], json!({"periods": 9, "throttledPeriods": 2, "throttledTime": 300}));
    assert_eq!(stats["memory"]["cache"], 4096);
    assert_eq!(stats["memory"]["usage"], json!({"limit": 9_223_372_036_854_771_712_u64, "usage": 12288, "failcnt": 0}));
    assert_eq!(stats["memory"]["swap"], json!({"usage": 12289}));
    assert_eq!(stats["memory"]["raw"]["rss"], 8192);
    let io = json!([{"major": 8, "minor": 16, "op": "Read", "value": 4096},
                    {"major": 8, "minor": 16, "op": "Write", "value": 0}]);
    assert_eq!(stats["blkio"], json!({"ioServiceBytesRecursive": io}));
    assert_eq!(stats["hugetlb"], json!({"2MB": {"usage": 0}}));
}

#[test]
fn v2_files_become_the_same_figures_in_the_units_of_v1() {
    let files = [
        ("cpu.stat", "usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 1\nnr_throttled 1\nthrottled_usec 7\n"),
        ("cpu.pressure", "some avg10=1.50 avg60=0.00 avg300=0.00 total=77\n"),
        ("memory.stat", "anon 8192\nfile 4096\nkernel 512\n"),
        ("memory.current", "12288\n"),
        ("memory.max", "max\n"),
        ("memory.events", "low 0\nmax 4\noom_kill 1\n"),
        ("memory.swap.current", "100\n"),
        ("memory.swap.max", "200\n"),
        ("io.stat", "8:0 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\n"),
        ("hugetlb.1GB.max", "max\n"),
    ];
    let stats = json(&with(&files, &["1GB"], v2::stats));
    assert_eq!(stats["cpu"]["usage"], json!({"total": 5000, "user": 3000, "kernel": 2000}));
    assert_eq!(stats["cpu"]["throttling"]["throttledTime"], 7000);
    assert_eq!(stats["cpu"]["psi"]["some"], json!({"avg10": 1.5, "avg60": 0.0, "avg300": 0.0, "total": 77}));
    assert_eq!(stats["memory"]["cache"], 4096);
    assert_eq!(stats["memory"]["usage"], json!({"limit": u64::MAX, "usage": 12288, "failcnt": 4}));
    assert_eq!(stats["memory"]["swap"], json!({"limit": u64::MAX, "usage": 12388}));
    assert_eq!(stats["memory"]["kernel"], json!({"usage": 512}));
    assert_eq!(
        stats["blkio"]["ioServiceBytesRecursive"][1],
        json!({"major": 8, "minor": 0, "op": "Write", "value": 20})
    );
    assert_eq!(stats["blkio"]["ioServicedRecursive"][0]["value"], 1);
    assert_eq!(stats["hugetlb"], json!({"1GB": {"limit": u64::MAX}}));
}

#[test]
fn what_the_kernel_does_not_count_is_absent() {
    let empty = json!({"cpu": {"usage": {}, "throttling": {}},
                       "memory": {"usage": {}, "swap": {}, "kernel": {}, "kernelTCP": {}},
                       "pids": {}, "blkio": {}, "hugetlb": {}});
    assert_eq!(json(&with(&[], &[], v1::stats)), empty);
    assert_eq!(json(&with(&[], &[], v2::stats)), empty);
}
