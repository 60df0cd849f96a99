//! The bounds of a cluster. What would pass one is refused with a message that names it.

/// Events kept for `rctl events`; older ones are forgotten.
pub const EVENTS_KEPT: usize = 1_000;

pub const MAX_SERVICES: usize = 1_000;

/// Of one service.
pub const MAX_REPLICAS: u32 = 10_000;

/// Replicas of all replicated services together.
pub const MAX_WANTED: u64 = 50_000;

pub const MAX_NODES: usize = 1_000;

pub const MAX_CONTROLLERS: usize = 16;
