//! What a container uses, in the JSON shape of `runc events --stats` (its `data`), which monitoring tools read.
//!
//! A figure whose file the kernel or the container's groups do not have is absent. On v1 the time of processors needs
//! the controller cpuacct, which a container has where it is mounted together with cpu, as systemd does. Absent from
//! runc's shape as well: the network's counters, the settings of cpusets, and Intel RDT.

#[cfg(test)]
mod tests;
mod v1;
mod v2;

use std::{collections::BTreeMap, fs, str::FromStr};

use serde::Serialize;

use super::CgroupDirs;

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Stats {
    pub cpu: Cpu,
    pub memory: Memory,
    pub pids: Pids,
    pub blkio: Blkio,
    /// By the page's size.
    pub hugetlb: BTreeMap<String, Entry>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Cpu {
    pub usage: CpuUsage,
    pub throttling: Throttling,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

/// Nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct CpuUsage {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percpu: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percpu_kernel: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub percpu_user: Option<Vec<u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<u64>,
}

/// Counts of periods, and nanoseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Throttling {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub periods: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_periods: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub throttled_time: Option<u64>,
}

/// Bytes. Swap is counted together with memory, on v2 too.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache: Option<u64>,
    pub usage: Entry,
    pub swap: Entry,
    pub kernel: Entry,
    #[serde(rename = "kernelTCP")]
    pub kernel_tcp: Entry,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub raw: Option<BTreeMap<String, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Entry {
    /// The kernel's greatest number where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usage: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub failcnt: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pids {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub current: Option<u64>,
    /// Absent where there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<u64>,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Blkio {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_service_bytes_recursive: Option<Vec<BlkioEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub io_serviced_recursive: Option<Vec<BlkioEntry>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub psi: Option<Pressure>,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct BlkioEntry {
    pub major: u64,
    pub minor: u64,
    pub op: String,
    pub value: u64,
}

/// How long some or all processes waited for a resource: the kernel's Documentation/accounting/psi.rst.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct Pressure {
    pub some: PressureShare,
    pub full: PressureShare,
}

/// Percent of the last seconds, and microseconds.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct PressureShare {
    pub avg10: f64,
    pub avg60: f64,
    pub avg300: f64,
    pub total: u64,
}

impl CgroupDirs {
    pub fn stats(&self) -> Stats {
        let read = |file: &str| self.0.iter().find_map(|dir| fs::read_to_string(dir.join(file)).ok());
        let files = Files { read: &read, page_sizes: self.page_sizes() };
        let mut stats = if self.is_v2() { v2::stats(&files) } else { v1::stats(&files) };
        stats.pids = Pids { current: files.number("pids.current"), limit: files.number("pids.max") };
        stats
    }

    /// For which there are files, such as `hugetlb.2MB.max`.
    fn page_sizes(&self) -> Vec<String> {
        let names = self.0.iter().filter_map(|dir| fs::read_dir(dir).ok()).flatten().flatten();
        let size = |name: &str| {
            let name = name.strip_prefix("hugetlb.")?;
            name.strip_suffix(".max")
                .or(name.strip_suffix(".limit_in_bytes"))
                .filter(|size| !size.contains('.'))
                .map(str::to_owned)
        };
        names.filter_map(|entry| size(entry.file_name().to_str()?)).collect()
    }
}

/// A group's files by their names, which are different in every controller.
struct Files<'a> {
    read: &'a dyn Fn(&str) -> Option<String>,
    page_sizes: Vec<String>,
}

impl Files<'_> {
    fn text(&self, file: &str) -> Option<String> {
        (self.read)(file)
    }

    fn number(&self, file: &str) -> Option<u64> {
        self.text(file)?.trim().parse().ok()
    }

    /// Of `max`, the greatest number.
    fn limit(&self, file: &str) -> Option<u64> {
        let text = self.text(file)?;
        if text.trim() == "max" { Some(u64::MAX) } else { text.trim().parse().ok() }
    }

    fn numbers(&self, file: &str) -> Option<Vec<u64>> {
        self.text(file)?.split_ascii_whitespace().map(|number| number.parse().ok()).collect()
    }

    /// Lines of a key and a number.
    fn table(&self, file: &str) -> Option<BTreeMap<String, u64>> {
        let text = self.text(file)?;
        let row = |line: &str| {
            let (key, number) = line.split_once(' ')?;
            Some((key.to_owned(), number.trim().parse().ok()?))
        };
        Some(text.lines().filter_map(row).collect())
    }

    fn pressure(&self, file: &str) -> Option<Pressure> {
        let text = self.text(file)?;
        let share = |name: &str| {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            Some(PressureShare {
                avg10: field(line, "avg10=")?,
                avg60: field(line, "avg60=")?,
                avg300: field(line, "avg300=")?,
                total: field(line, "total=")?,
            })
        };
        // Of the processors, older kernels have no `full`.
        Some(Pressure { some: share("some ")?, full: share("full ").unwrap_or_default() })
    }
}

fn field<T: FromStr>(line: &str, key: &str) -> Option<T> {
    line.split_ascii_whitespace().find_map(|word| word.strip_prefix(key)).and_then(|value| value.parse().ok())
}

fn device(number: &str) -> Option<(u64, u64)> {
    let (major, minor) = number.split_once(':')?;
    Some((major.parse().ok()?, minor.parse().ok()?))
}
