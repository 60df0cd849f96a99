//! From the files of v1.

use super::{Blkio, BlkioEntry, Cpu, CpuUsage, Entry, Files, Memory, Stats, Throttling, device};

pub(super) fn stats(files: &Files<'_>) -> Stats {
    Stats { cpu: cpu(files), memory: memory(files), blkio: blkio(files), hugetlb: hugetlb(files), ..Stats::default() }
}

fn cpu(files: &Files<'_>) -> Cpu {
    let throttling = files.table("cpu.stat").unwrap_or_default();
    let throttling = |key: &str| throttling.get(key).copied();
    Cpu {
        usage: CpuUsage {
            total: files.number("cpuacct.usage"),
            percpu: files.numbers("cpuacct.usage_percpu"),
            percpu_kernel: files.numbers("cpuacct.usage_percpu_sys"),
            percpu_user: files.numbers("cpuacct.usage_percpu_user"),
            kernel: files.number("cpuacct.usage_sys"),
            user: files.number("cpuacct.usage_user"),
        },
        throttling: Throttling {
            periods: throttling("nr_periods"),
            throttled_periods: throttling("nr_throttled"),
            throttled_time: throttling("throttled_time"),
        },
        psi: None,
    }
}

fn memory(files: &Files<'_>) -> Memory {
    let raw = files.table("memory.stat");
    let entry = |kind: &str| entry(files, &format!("memory.{kind}"));
    Memory {
        cache: raw.as_ref().and_then(|raw| raw.get("cache").copied()),
        usage: entry(""),
        swap: entry("memsw."),
        kernel: entry("kmem."),
        kernel_tcp: entry("kmem.tcp."),
        raw,
        psi: None,
    }
}

fn hugetlb(files: &Files<'_>) -> std::collections::BTreeMap<String, Entry> {
    files.page_sizes.iter().map(|size| (size.clone(), entry(files, &format!("hugetlb.{size}.")))).collect()
}

fn entry(files: &Files<'_>, prefix: &str) -> Entry {
    let number = |name: &str| files.number(&format!("{prefix}{name}"));
    Entry {
        limit: number("limit_in_bytes"),
        usage: number("usage_in_bytes"),
        max: number("max_usage_in_bytes"),
        failcnt: number("failcnt"),
    }
}

/// What is throttled is all there is, whichever scheduler a device has.
fn blkio(files: &Files<'_>) -> Blkio {
    let entries = |name: &str| {
        let text = files.text(&format!("blkio.throttle.{name}_recursive"));
        text.or_else(|| files.text(&format!("blkio.throttle.{name}"))).map(|text| entries(&text))
    };
    Blkio {
        io_service_bytes_recursive: entries("io_service_bytes"),
        io_serviced_recursive: entries("io_serviced"),
        psi: None,
    }
}

/// Lines such as `8:0 Read 4096`. A last one adds them all up, and belongs to no device.
fn entries(text: &str) -> Vec<BlkioEntry> {
    let entry = |line: &str| {
        let mut words = line.split_ascii_whitespace();
        let (major, minor) = device(words.next()?)?;
        Some(BlkioEntry { major, minor, op: words.next()?.to_owned(), value: words.next()?.parse().ok()? })
    };
    text.lines().filter_map(entry).collect()
}
