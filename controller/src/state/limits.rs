//! The bounds of a cluster. What would pass one is refused with a message that names it.

/// Events kept for `rctl events`; older ones are forgotten.
pub const EVENTS_KEPT: usize = 1_000;

pub const MAX_SERVICES: usize = 1_000;

/// Of one service.
pub const MAX_REPLICAS: u32 = 10_000;

/// Replicas of all replicated services together.
pub const MAX_WANTED: u64 = 50_000;

pub const MAX_NODES: usize = 5_000;

pub const MAX_CONTROLLERS: usize = 16;
/// Given by people, of one node.
pub const MAX_NODE_LABELS: usize = 64;

/// Letters of a label's name.
pub const MAX_LABEL_NAME: usize = 128;

/// Letters of a label's value.
pub const MAX_LABEL_VALUE: usize = 256;

pub const MAX_TOKENS: usize = 1_000;

pub const MAX_USERS: usize = 1_000;

/// Removed members whose certificates are refused by name.
pub const MAX_REVOKED: usize = 4_096;

/// Trusted at the same time: the one that signs, and those that are on their way out.
pub const MAX_AUTHORITIES: usize = 4;
