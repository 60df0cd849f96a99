//! What goes on in a container while somebody watches: `exec` and its like.

mod exec;
mod session;

pub(super) use self::exec::run as exec;
