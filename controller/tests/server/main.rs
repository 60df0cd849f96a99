//! The whole controller in this process, on a unix socket in a directory of its own, with agents that speak the wire
//! protocol and make no containers.

mod cluster;
mod doors;
mod harness;
mod images;
mod live;
mod logs;
mod members;
mod nodes;
mod secured;
mod sessions;
