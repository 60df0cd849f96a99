//! `update`: other limits for a container that exists.

use std::{
    fs,
    io::{self, Read},
    path::PathBuf,
};

use clap::Args;
use oci_spec::runtime::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxPidsBuilder, LinuxResources};

use super::{Context, Doing, Error, Outcome};
use crate::store::Status;

#[derive(Debug, Args)]
pub(super) struct Update {
    /// The container
    #[arg(value_name = "ID")]
    id: String,
    /// A JSON file with the `linux.resources` object of config.json; - for standard input
    #[arg(short, long, value_name = "FILE")]
    resources: Option<PathBuf>,
    /// Microseconds of each CPU period; -1: no limit
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_quota: Option<i64>,
    /// Length of a CPU period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_period: Option<u64>,
    /// Microseconds that it may use above its quota when it left as many unused before
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_burst: Option<u64>,
    /// Microseconds of each real-time period
    #[arg(long, value_name = "MICROSECONDS", allow_hyphen_values = true)]
    cpu_rt_runtime: Option<i64>,
    /// Length of a real-time period
    #[arg(long, value_name = "MICROSECONDS")]
    cpu_rt_period: Option<u64>,
    /// Part of the CPU relative to other containers
    #[arg(long, alias = "cpu-shares", value_name = "SHARES")]
    cpu_share: Option<u64>,
    /// 1: only what others leave of the CPU; 0: as others
    #[arg(long, value_name = "0|1", value_parser = clap::value_parser!(i64).range(0..=1))]
    cpu_idle: Option<i64>,
    /// CPUs it may use, as 0-2,4
    #[arg(long, value_name = "LIST")]
    cpuset_cpus: Option<String>,
    /// Memory nodes it may use
    #[arg(long, value_name = "LIST")]
    cpuset_mems: Option<String>,
    /// Bytes of memory; -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory: Option<i64>,
    /// Bytes of memory that it is left when memory is short
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_reservation: Option<i64>,
    /// Bytes of memory and swap together; -1: no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    memory_swap: Option<i64>,
    /// Part of the disks relative to other containers
    #[arg(long, value_name = "WEIGHT", value_parser = clap::value_parser!(u16).range(10..=1000))]
    blkio_weight: Option<u16>,
    /// Processes; -1: no limit
    #[arg(long, value_name = "COUNT", allow_hyphen_values = true)]
    pids_limit: Option<i64>,
}

pub(super) fn update(context: &Context, update: &Update) -> Outcome {
    let resources = update.resources()?;
    let (_, record) = context.found(&update.id, "update", &[Status::Created, Status::Running, Status::Paused])?;
    context.hierarchies.update(&record.cgroup, &resources)?;
    Ok(0)
}

impl Update {
    fn resources(&self) -> Result<LinuxResources, Error> {
        if let Some(file) = &self.resources {
            let doing = || format!("read {}", file.display());
            let mut bytes = Vec::new();
            match file.as_os_str() == "-" {
                true => io::stdin().read_to_end(&mut bytes).map(drop).doing(doing)?,
                false => bytes = fs::read(file).doing(doing)?,
            }
            return serde_json::from_slice(&bytes)
                .map_err(|error| Error::Refused(format!("{} is not understood: {error}", file.display())));
        }
        let mut cpu = LinuxCpu::default();
        cpu.set_quota(self.cpu_quota)
            .set_period(self.cpu_period)
            .set_burst(self.cpu_burst)
            .set_realtime_runtime(self.cpu_rt_runtime)
            .set_realtime_period(self.cpu_rt_period)
            .set_idle(self.cpu_idle)
            .set_shares(self.cpu_share)
            .set_cpus(self.cpuset_cpus.clone())
            .set_mems(self.cpuset_mems.clone());
        let mut memory = LinuxMemory::default();
        memory.set_limit(self.memory).set_reservation(self.memory_reservation).set_swap(self.memory_swap);
        let mut resources = LinuxResources::default();
        resources.set_cpu(Some(cpu)).set_memory(Some(memory));
        if self.blkio_weight.is_some() {
            let mut blocks = LinuxBlockIo::default();
            blocks.set_weight(self.blkio_weight);
            resources.set_block_io(Some(blocks));
        }
        if let Some(limit) = self.pids_limit {
            let pids = LinuxPidsBuilder::default().limit(limit).build();
            resources.set_pids(Some(pids.map_err(io::Error::other).doing(|| "read --pids-limit".to_owned())?));
        }
        Ok(resources)
    }
}
