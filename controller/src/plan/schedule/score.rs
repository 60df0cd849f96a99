//! How good is this node for this task? Spread: fewest tasks of the same service, then the least promised, then by
//! name, so that equals are decided alike everywhere.

use super::{Ask, Host};

/// Lower is better: siblings, load, tasks. Equals are told apart by their names.
pub(super) type Rank = (u32, u64, u32);

pub(super) fn rank(host: &Host, ask: &Ask<'_>) -> Rank {
    let siblings = host.by_service.get(ask.service).copied().unwrap_or(0);
    (siblings, load(host), host.tasks)
}

/// The scarcer of cpu and memory, in thousandths promised.
fn load(host: &Host) -> u64 {
    let capacity = &host.node.description.capacity;
    per_mille(host.nano_cpus, capacity.nano_cpus).max(per_mille(host.memory, capacity.memory))
}

fn per_mille(promised: u64, capacity: u64) -> u64 {
    u64::try_from(u128::from(promised) * 1000 / u128::from(capacity.max(1))).unwrap_or(u64::MAX)
}
