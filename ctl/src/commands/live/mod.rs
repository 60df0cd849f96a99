//! What goes on in a container while somebody watches: `exec` and its like.

mod attach;
mod copy;
mod debug;
mod detach;
mod exec;
mod run;
mod session;

pub(super) use self::{attach::run as attach, copy::run as copy, debug::run as debug, exec::run as exec, run::run};

pub use self::detach::DetachKeys;
