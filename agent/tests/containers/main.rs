//! Containers on the real kernel: what they see, how they end, and that nothing of them stays.
//!
//! Needs root and busybox (Debian's busybox-static), no network. Each test has its own directories and cgroup parent.

mod crashes;
mod disks;
mod ends;
mod foreign;
mod harness;
mod inside;
mod kept;
mod kernel;
mod leases;
mod leftovers;
mod limits;
mod rights;
mod sharing;
mod terminals;
