//! Whole-cluster tests: the real binaries on the real kernel, each test in a network namespace, a cgroup parent and
//! folders of its own, so that tests run side by side and beside a real installation.
//!
//! [`cluster::Cluster`] starts one controller and one agent, [`lab::trial::Trial`] several controllers and many hosts;
//! both remove every trace when they are dropped, also when the test failed. Tests [drive](drive::Drive) them through `rctl`, as a user would. Deliberately absent: sleeps; [`wait`] waits for a
//! predicate with a deadline and tells the last it saw.

pub mod bench;
pub mod cluster;
pub mod dice;
pub mod drive;
pub mod lab;
pub mod leftovers;
pub mod netns;
pub mod wait;
