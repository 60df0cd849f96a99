//! What a process in a container is given: the `process` object of its configuration, one file for each concern.
//!
//! Nothing here decides when: the order is the caller's, and each function says what must hold when it is called.

pub mod capabilities;
#[cfg(test)]
pub(crate) mod in_child;
pub mod labels;
pub mod privileges;
pub mod procfs;
pub mod rlimits;
pub mod scheduling;
pub mod user;
