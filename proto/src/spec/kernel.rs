//! Kernel settings of a container that neither give nor take rights, and what control groups know beside limits.

use std::{collections::BTreeMap, path::PathBuf};

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct KernelSettings {
    /// By names of setrlimit(2) in lower case without `RLIMIT_`.
    pub ulimits: BTreeMap<String, Ulimit>,
    pub sysctls: BTreeMap<String, String>,
    /// Bytes of `/dev/shm`; `None`: 64 MiB.
    pub shm_size: Option<u64>,
    pub oom_score_adj: Option<i32>,
}

/// `None` is no limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ulimit {
    pub soft: Option<u64>,
    pub hard: Option<u64>,
}

/// What is not said is the kernel's default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Controls {
    /// Bytes of memory and swap together; `None`: as much as memory alone, so none of it is swapped.
    pub memory_swap: Option<MemorySwap>,
    /// Per cent; control groups v1 only.
    pub swappiness: Option<u32>,
    /// Control groups v1 only.
    pub oom_kill_disable: bool,
    pub cpu_shares: Option<u64>,
    /// Microseconds.
    pub cpu_period: Option<u64>,
    pub cpu_quota: Option<u64>,
    /// `0-2,4`.
    pub cpuset: Option<String>,
    pub block: BlockIo,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum MemorySwap {
    Unlimited,
    Bytes(u64),
}

/// Devices by their paths on the node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlockIo {
    pub weight: Option<u16>,
    pub device_weights: BTreeMap<PathBuf, u16>,
    /// Bytes a second.
    pub read_bps: BTreeMap<PathBuf, u64>,
    pub write_bps: BTreeMap<PathBuf, u64>,
    /// Operations a second.
    pub read_iops: BTreeMap<PathBuf, u64>,
    pub write_iops: BTreeMap<PathBuf, u64>,
}
