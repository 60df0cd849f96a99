//! Memory, and swap, which a config counts together with memory as v1 does and v2 does not.

use oci_spec::runtime::LinuxMemory;

use super::{Absent, Table, bad, only_v1};
use crate::{cgroup::Version, error::StartError};

/// In a config: no limit.
const NONE: i64 = -1;
/// The kernel's range since 5.8.
const MOST_SWAPPINESS: u64 = 200;

pub(super) fn add(memory: &LinuxMemory, table: &mut Table) -> Result<(), StartError> {
    let limit = said("memory.limit", memory.limit())?;
    let reservation = said("memory.reservation", memory.reservation())?;
    // Without a limit of memory there is none of both together.
    let swap = said("memory.swap", memory.swap())?.or(limit.filter(|limit| *limit == NONE));
    if let (Some(limit), Some(swap)) = (limit, swap)
        && swap != NONE
        && (limit == NONE || swap < limit)
    {
        let reason = format!("it is memory and swap together: {swap} bytes cannot hold memory.limit, {limit}");
        return Err(bad("memory.swap", reason));
    }
    match table.version {
        Version::V1 => add_v1(memory, [limit, reservation, swap], table),
        Version::V2 => add_v2(memory, [limit, reservation, swap], table),
    }
}

fn add_v1(
    memory: &LinuxMemory,
    [limit, reservation, swap]: [Option<i64>; 3],
    table: &mut Table,
) -> Result<(), StartError> {
    if let Some(limit) = limit {
        table.set("memory", "memory.limit_in_bytes", limit);
    }
    if let Some(swap) = swap {
        table.set_or("memory", "memory.memsw.limit_in_bytes", swap, Absent::Skip);
    }
    if let Some(reservation) = reservation {
        table.set("memory", "memory.soft_limit_in_bytes", reservation);
    }
    if let Some(bytes) = said("memory.kernelTCP", memory.kernel_tcp())? {
        table.set("memory", "memory.kmem.tcp.limit_in_bytes", bytes);
    }
    if let Some(swappiness) = memory.swappiness() {
        if swappiness > MOST_SWAPPINESS {
            return Err(bad("memory.swappiness", format!("{swappiness} is more than {MOST_SWAPPINESS}, the most")));
        }
        table.set("memory", "memory.swappiness", swappiness);
    }
    if let Some(disable) = memory.disable_oom_killer() {
        table.set("memory", "memory.oom_control", u8::from(disable));
    }
    Ok(())
}

fn add_v2(
    memory: &LinuxMemory,
    [limit, reservation, swap]: [Option<i64>; 3],
    table: &mut Table,
) -> Result<(), StartError> {
    if memory.swappiness().is_some() {
        return Err(only_v1("memory.swappiness"));
    }
    if memory.disable_oom_killer() == Some(true) {
        return Err(only_v1("memory.disableOOMKiller"));
    }
    if said("memory.kernelTCP", memory.kernel_tcp())?.is_some() {
        return Err(only_v1("memory.kernelTCP"));
    }
    let bytes = |limit: i64| if limit == NONE { "max".to_owned() } else { limit.to_string() };
    if let Some(limit) = limit {
        table.set("memory", "memory.max", bytes(limit));
    }
    if let Some(swap) = swap {
        let alone = match (swap, limit) {
            (NONE, _) => NONE,
            (swap, Some(limit)) => swap - limit,
            (_, None) => {
                let reason = "it is memory and swap together, so memory.limit must be said as well";
                return Err(bad("memory.swap", reason));
            }
        };
        table.set_or("memory", "memory.swap.max", bytes(alone), Absent::Skip);
    }
    if let Some(reservation) = reservation {
        table.set("memory", "memory.low", bytes(reservation));
    }
    Ok(())
}

fn said(field: &str, bytes: Option<i64>) -> Result<Option<i64>, StartError> {
    match bytes {
        Some(bytes) if bytes < NONE => Err(bad(field, format!("{bytes} is no number of bytes; -1 is no limit"))),
        bytes => Ok(bytes.filter(|bytes| *bytes != 0)),
    }
}

/// For `checkBeforeUpdate`: v2 would take a limit below what is used, and kill.
pub(in crate::cgroup) fn refuse_less_than_used(memory: &LinuxMemory, used: u64) -> Result<(), StartError> {
    match memory.limit() {
        Some(limit) if u64::try_from(limit).is_ok_and(|limit| limit > 0 && limit < used) => Err(bad(
            "memory.limit",
            format!("it says {limit} bytes, but {used} are used: ask for more, or without checkBeforeUpdate"),
        )),
        _ => Ok(()),
    }
}
