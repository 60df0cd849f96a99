//! Kernel settings and control groups.

use std::{collections::BTreeMap, path::PathBuf};

use super::{ConvertError, optional, spec::path_text};
use crate::{
    spec::{BlockIo, Controls, KernelSettings, MemorySwap, Ulimit},
    wire,
};

impl From<KernelSettings> for wire::KernelSettings {
    fn from(kernel: KernelSettings) -> Self {
        let ulimit = |limit: Ulimit| wire::kernel_settings::Ulimit { soft: limit.soft, hard: limit.hard };
        Self {
            ulimits: kernel.ulimits.into_iter().map(|(name, limit)| (name, ulimit(limit))).collect(),
            sysctls: kernel.sysctls,
            shm_size: kernel.shm_size,
            oom_score_adj: kernel.oom_score_adj,
        }
    }
}

impl From<wire::KernelSettings> for KernelSettings {
    fn from(kernel: wire::KernelSettings) -> Self {
        let ulimit = |limit: wire::kernel_settings::Ulimit| Ulimit { soft: limit.soft, hard: limit.hard };
        Self {
            ulimits: kernel.ulimits.into_iter().map(|(name, limit)| (name, ulimit(limit))).collect(),
            sysctls: kernel.sysctls,
            shm_size: kernel.shm_size,
            oom_score_adj: kernel.oom_score_adj,
        }
    }
}

impl From<Controls> for wire::Controls {
    fn from(controls: Controls) -> Self {
        Self {
            memory_swap: controls.memory_swap.map(|swap| match swap {
                MemorySwap::Unlimited => -1,
                MemorySwap::Bytes(bytes) => i64::try_from(bytes).unwrap_or(i64::MAX),
            }),
            swappiness: controls.swappiness,
            oom_kill_disable: controls.oom_kill_disable,
            cpu_shares: controls.cpu_shares,
            cpu_period: controls.cpu_period,
            cpu_quota: controls.cpu_quota,
            cpuset: controls.cpuset,
            block: (controls.block != BlockIo::default()).then(|| controls.block.into()),
        }
    }
}

impl TryFrom<wire::Controls> for Controls {
    type Error = ConvertError;
    fn try_from(controls: wire::Controls) -> Result<Self, ConvertError> {
        Ok(Self {
            memory_swap: controls
                .memory_swap
                .map(|bytes| u64::try_from(bytes).map_or(MemorySwap::Unlimited, MemorySwap::Bytes)),
            swappiness: controls.swappiness,
            oom_kill_disable: controls.oom_kill_disable,
            cpu_shares: controls.cpu_shares,
            cpu_period: controls.cpu_period,
            cpu_quota: controls.cpu_quota,
            cpuset: controls.cpuset,
            block: optional("block", controls.block)?.unwrap_or_default(),
        })
    }
}

fn texts<T>(map: BTreeMap<PathBuf, T>) -> BTreeMap<String, T> {
    map.into_iter().map(|(path, value)| (path_text(path), value)).collect()
}

fn paths<T>(map: BTreeMap<String, T>) -> BTreeMap<PathBuf, T> {
    map.into_iter().map(|(path, value)| (path.into(), value)).collect()
}

impl From<BlockIo> for wire::BlockIo {
    fn from(block: BlockIo) -> Self {
        Self {
            weight: block.weight.map(Into::into),
            device_weights: block.device_weights.into_iter().map(|(path, w)| (path_text(path), w.into())).collect(),
            read_bps: texts(block.read_bps),
            write_bps: texts(block.write_bps),
            read_iops: texts(block.read_iops),
            write_iops: texts(block.write_iops),
        }
    }
}

impl TryFrom<wire::BlockIo> for BlockIo {
    type Error = ConvertError;
    fn try_from(block: wire::BlockIo) -> Result<Self, ConvertError> {
        let weight = |weight: u32| {
            u16::try_from(weight).map_err(|_| ConvertError::new("weight", format!("{weight} is too much")))
        };
        Ok(Self {
            weight: block.weight.map(weight).transpose()?,
            device_weights: block
                .device_weights
                .into_iter()
                .map(|(path, number)| Ok((path.into(), weight(number)?)))
                .collect::<Result<_, ConvertError>>()?,
            read_bps: paths(block.read_bps),
            write_bps: paths(block.write_bps),
            read_iops: paths(block.read_iops),
            write_iops: paths(block.write_iops),
        })
    }
}
