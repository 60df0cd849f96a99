//! Makes containers from OCI bundles (<https://github.com/opencontainers/runtime-spec>): the library behind Roster's
//! shim, and behind the command line of an OCI runtime, `roster-runtime`.
//!
//! It knows nothing of clusters, services or images. A bundle's config.json and its root file system say all; three
//! liberties with the format are documented where they are taken: a mount on `/` is the root itself ([`rootfs`]),
//! `process.user.username` is looked up in the container ([`process::user`]), and two annotations ([`container`]).
//!
//! Guarantees: what is asked for and cannot be given is refused before anything is made, or ends the making, and is
//! never left out without a word. What is half made when something fails is taken back.
//!
//! Deliberately absent: systemd's cgroup driver, running without root, checkpoints, Intel RDT.

pub mod cgroup;
pub mod channel;
pub mod cli;
pub mod config;
pub mod container;
pub mod enter;
pub mod error;
pub mod hooks;
#[cfg(test)]
mod hostile;
pub mod identity;
mod init;
pub mod namespaces;
pub mod process;
mod program;
pub mod rootfs;
pub mod seccomp;
pub mod signal;
pub mod store;
pub mod sys;
pub mod sysctl;
mod terminal;
