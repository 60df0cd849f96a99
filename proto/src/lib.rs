//! Roster's contract.
//!
//! * [`wire`]: the generated messages and services; their comments in `proto/*.proto` are their documentation.
//! * the other modules: the words both sides share, as plain data. They are pure: no clock, no files, no network.
//! * [`call`], [`replay`] and [`whole`]: what kind of call a method is, making one again, and putting long answers
//!   together.
//! * [`convert`]: the one place that turns the one into the other; every message from outside is checked there.

pub mod assignment;
pub mod call;
pub mod cause;
pub mod convert;
pub mod id;
pub mod live;
pub mod node;
pub mod replay;
pub mod report;
pub mod seccomp;
pub mod spec;
pub mod task;
pub mod time;
pub mod whole;

/// The versions of the agents' protocol that a controller serves: its own and those before it that it still knows.
///
/// An agent says its own, which is the last of these. One that is newer than its controller is refused: controllers are
/// upgraded first. Raise it when a message an older agent sends, or ignores, would break a promise.
pub const AGENT_PROTOCOLS: std::ops::RangeInclusive<u32> = 1..=2;

/// Generated from `proto/`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod wire {
    tonic::include_proto!("roster.v1");

    /// For gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
