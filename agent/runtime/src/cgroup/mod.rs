//! Control groups by a config's `linux.cgroupsPath` and `linux.resources`: on v1, hybrid and v2.
//!
//! - [`Hierarchies`] finds where the kernel's hierarchies are, and makes, changes and lists groups in them;
//! - [`CgroupDirs`] is one container's group as plain directories: joined, emptied, removed, asked for its [`Stats`];
//! - [`resources`] and [`devices`] say, without a system call, which file gets which value for a config;
//! - [`device_program`] is v2's form of device rules.
//!
//! "Hybrid" is v1 to everything here: the controllers are mounted one by one, and the unified hierarchy beside them
//! has none.
//!
//! A container gets the groups it needs and no others, for each costs its making, its joining (a tenth of a
//! millisecond together) and its removal. On v1 those are pids, memory, cpu and cpuacct, cpuset where it sees its
//! groups, and what its resources ask for; the freezer's is made when it is first frozen.
//!
//! Absent: systemd's slices and scopes (a path is a path), Intel RDT, and watching for lack of memory.

mod delegation;
pub mod device_program;
pub mod devices;
mod dirs;
mod freezer;
mod hierarchies;
mod realtime;
pub mod resources;
mod roots;
mod stats;
mod write;

#[cfg(test)]
mod tests;

pub use dirs::{CgroupDirs, Door, OutOfMemory};
pub use hierarchies::Hierarchies;
pub use stats::{Pressure, Stats};

/// Where the runtime's command makes groups for configs that name none, or a relative one.
pub const OWN_PARENT: &str = "/roster-runtime";

/// Which interface a group has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}
