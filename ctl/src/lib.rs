//! Roster's command line.
//!
//! [`cli`] is the grammar and its help; [`compose`] reads a Compose file into a spec; [`client`] speaks to the
//! controllers of the cluster that a [`context`] names; [`commands`] has one module a command; [`render`] turns what came back into text. Deliberately absent:
//! any decision about the cluster, which is the controller's.

pub mod cli;
pub mod client;
pub mod commands;
pub mod compose;
pub mod context;
pub mod error;
pub mod render;
pub mod terminal;
