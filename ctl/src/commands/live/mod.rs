//! What goes on in a container while somebody watches: `exec` and its like.

mod copy;
mod exec;
mod session;

pub(super) use self::{copy::run as copy, exec::run as exec};
