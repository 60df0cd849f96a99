//! Weights and throttles of block devices.

use oci_spec::runtime::{LinuxBlockIo, LinuxThrottleDevice};

use super::{Absent, Table, bad, only_v1};
use crate::{cgroup::Version, error::StartError};

const WEIGHTS: std::ops::RangeInclusive<u16> = 10..=1000;

pub(super) fn add(block: &LinuxBlockIo, table: &mut Table) -> Result<(), StartError> {
    if let Some(weight) = said("blockIO.weight", block.weight())? {
        add_weight(weight, table);
    }
    if let Some(weight) = said("blockIO.leafWeight", block.leaf_weight())? {
        add_leaf_weight("blkio.leaf_weight", weight.to_string(), table)?;
    }
    for device in block.weight_device().iter().flatten() {
        let number = number(device.major(), device.minor())?;
        if let Some(weight) = said("blockIO.weightDevice", device.weight())? {
            add_device_weight(&number, weight, table);
        }
        if let Some(weight) = said("blockIO.weightDevice", device.leaf_weight())? {
            add_leaf_weight("blkio.leaf_weight_device", format!("{number} {weight}"), table)?;
        }
    }
    let throttles = [
        ("read_bps", "rbps", block.throttle_read_bps_device()),
        ("write_bps", "wbps", block.throttle_write_bps_device()),
        ("read_iops", "riops", block.throttle_read_iops_device()),
        ("write_iops", "wiops", block.throttle_write_iops_device()),
    ];
    for (v1, v2, devices) in throttles {
        for device in devices.iter().flatten() {
            add_throttle(v1, v2, device, table)?;
        }
    }
    Ok(())
}

/// By the scheduler that heeds weights: BFQ, whose file has its name, or else CFQ (v1) or the cost model (v2).
fn add_weight(weight: u16, table: &mut Table) {
    match table.version {
        Version::V1 => {
            let bfq = Absent::Instead { file: "blkio.bfq.weight".to_owned(), value: weight.to_string() };
            table.set_or("blkio", "blkio.weight", weight, bfq);
        }
        Version::V2 => {
            let cost = Absent::Instead { file: "io.weight".to_owned(), value: cost_weight(weight).to_string() };
            table.set_or("io", "io.bfq.weight", weight, cost);
        }
    }
}

fn add_device_weight(number: &str, weight: u16, table: &mut Table) {
    let value = format!("{number} {weight}");
    match table.version {
        Version::V1 => {
            let bfq = Absent::Instead { file: "blkio.bfq.weight_device".to_owned(), value: value.clone() };
            table.set_or("blkio", "blkio.weight_device", value, bfq);
        }
        Version::V2 => {
            let cost =
                Absent::Instead { file: "io.weight".to_owned(), value: format!("{number} {}", cost_weight(weight)) };
            table.set_or("io", "io.bfq.weight", value, cost);
        }
    }
}

/// Only CFQ knew leaves; it left the kernel in 5.0, and there the file's absence is the refusal.
fn add_leaf_weight(file: &str, value: String, table: &mut Table) -> Result<(), StartError> {
    if table.version == Version::V2 {
        return Err(only_v1("blockIO.leafWeight"));
    }
    table.set("blkio", file, value);
    Ok(())
}

fn add_throttle(v1: &str, v2: &str, device: &LinuxThrottleDevice, table: &mut Table) -> Result<(), StartError> {
    let number = number(device.major(), device.minor())?;
    match (table.version, device.rate()) {
        // There, zero is no limit.
        (Version::V1, rate) => {
            table.set("blkio", &format!("blkio.throttle.{v1}_device"), format!("{number} {rate}"));
        }
        (Version::V2, 0) => table.set("io", "io.max", format!("{number} {v2}=max")),
        (Version::V2, rate) => table.set("io", "io.max", format!("{number} {v2}={rate}")),
    }
    Ok(())
}

/// The straight line from 10..=1000 to the 1..=10000 of `io.weight`.
fn cost_weight(weight: u16) -> u32 {
    1 + (u32::from(weight) - u32::from(*WEIGHTS.start())) * 9_999 / u32::from(WEIGHTS.end() - WEIGHTS.start())
}

fn said(field: &str, weight: Option<u16>) -> Result<Option<u16>, StartError> {
    match weight {
        None | Some(0) => Ok(None),
        Some(weight) if WEIGHTS.contains(&weight) => Ok(Some(weight)),
        Some(weight) => Err(bad(field, format!("{weight} is not within {WEIGHTS:?}"))),
    }
}

fn number(major: i64, minor: i64) -> Result<String, StartError> {
    if major < 0 || minor < 0 {
        return Err(bad("blockIO", format!("{major}:{minor} is no device's number")));
    }
    Ok(format!("{major}:{minor}"))
}
