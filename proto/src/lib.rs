//! Roster's contract.
//!
//! * [`wire`]: the generated messages and services; their comments in `proto/*.proto` are their documentation.
//! * the other modules: the words both sides share, as plain data. They are pure: no clock, no files, no network.
//! * [`convert`]: the one place that turns the one into the other; every message from outside is checked there.

pub mod assignment;
pub mod cause;
pub mod convert;
pub mod id;
pub mod node;
pub mod report;
pub mod spec;
pub mod task;
pub mod time;

/// Generated from `proto/`.
#[allow(missing_debug_implementations, unreachable_pub, clippy::all)]
pub mod wire {
    tonic::include_proto!("roster.v1");

    /// For gRPC reflection.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}
