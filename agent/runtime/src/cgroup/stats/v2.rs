//! From the files of v2, in the units and sums of v1.

use std::collections::BTreeMap;

use super::{Blkio, BlkioEntry, Cpu, CpuUsage, Entry, Files, Memory, Stats, Throttling, device, field};

pub(super) fn stats(files: &Files<'_>) -> Stats {
    Stats { cpu: cpu(files), memory: memory(files), blkio: blkio(files), hugetlb: hugetlb(files), ..Stats::default() }
}

fn cpu(files: &Files<'_>) -> Cpu {
    let stat = files.table("cpu.stat").unwrap_or_default();
    let count = |key: &str| stat.get(key).copied();
    let nanoseconds = |key: &str| count(key).map(|microseconds| microseconds.saturating_mul(1_000));
    Cpu {
        usage: CpuUsage {
            total: nanoseconds("usage_usec"),
            kernel: nanoseconds("system_usec"),
            user: nanoseconds("user_usec"),
            ..CpuUsage::default()
        },
        throttling: Throttling {
            periods: count("nr_periods"),
            throttled_periods: count("nr_throttled"),
            throttled_time: nanoseconds("throttled_usec"),
        },
        psi: files.pressure("cpu.pressure"),
    }
}

fn memory(files: &Files<'_>) -> Memory {
    let raw = files.table("memory.stat");
    let of_raw = |key: &str| raw.as_ref().and_then(|raw| raw.get(key).copied());
    let usage = Entry {
        limit: files.limit("memory.max"),
        usage: files.number("memory.current"),
        max: files.number("memory.peak"),
        failcnt: failures(files, "memory.events"),
    };
    let with_memory = |swap: Option<u64>, memory: Option<u64>| Some(swap?.saturating_add(memory?));
    let swap = Entry {
        limit: with_memory(files.limit("memory.swap.max"), usage.limit),
        usage: with_memory(files.number("memory.swap.current"), usage.usage),
        max: None,
        failcnt: failures(files, "memory.swap.events"),
    };
    Memory {
        cache: of_raw("file"),
        usage,
        swap,
        kernel: Entry { usage: of_raw("kernel"), ..Entry::default() },
        kernel_tcp: Entry { usage: of_raw("sock"), ..Entry::default() },
        raw,
        psi: files.pressure("memory.pressure"),
    }
}

/// How often the limit was met.
fn failures(files: &Files<'_>, events: &str) -> Option<u64> {
    files.table(events)?.get("max").copied()
}

fn hugetlb(files: &Files<'_>) -> BTreeMap<String, Entry> {
    let entry = |size: &String| {
        let entry = Entry {
            limit: files.limit(&format!("hugetlb.{size}.max")),
            usage: files.number(&format!("hugetlb.{size}.current")),
            max: None,
            failcnt: failures(files, &format!("hugetlb.{size}.events")),
        };
        (size.clone(), entry)
    };
    files.page_sizes.iter().map(entry).collect()
}

/// Lines such as `8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0`.
fn blkio(files: &Files<'_>) -> Blkio {
    let text = files.text("io.stat");
    let entries = |operations: [(&str, &str); 3]| {
        let mut entries = Vec::new();
        for line in text.as_ref()?.lines() {
            let Some((major, minor)) = line.split(' ').next().and_then(device) else { continue };
            entries.extend(operations.iter().filter_map(|(key, op)| {
                Some(BlkioEntry { major, minor, op: (*op).to_owned(), value: field(line, key)? })
            }));
        }
        Some(entries)
    };
    Blkio {
        io_service_bytes_recursive: entries([("rbytes=", "Read"), ("wbytes=", "Write"), ("dbytes=", "Discard")]),
        io_serviced_recursive: entries([("rios=", "Read"), ("wios=", "Write"), ("dios=", "Discard")]),
        psi: files.pressure("io.pressure"),
    }
}
