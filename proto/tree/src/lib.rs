//! Files and directories as tar archives, on their way between machines and containers.
//!
//! [`pack`] writes what is at a path, [`unpack`] makes what an archive holds, [`read`] reads archives in bounded memory.
//!
//! Guarantees: nothing outside a [`Root`] is read or made, whatever the archive says and whoever changes the tree
//! meanwhile: paths are resolved by openat2(2) as if the root were `/`, or without following any symbolic link; what is
//! there is never written to but replaced; nothing but a regular file is opened. Deliberately absent: devices and sockets,
//! extended attributes, and the sharing of hard-linked files when they are packed.

pub mod pack;
pub mod read;
mod root;
pub mod unpack;

#[cfg(test)]
mod tests;

use std::{io, path::PathBuf};

pub use self::{
    pack::{LeftOut, pack},
    root::Root,
    unpack::{Target, unpack},
};

/// Directories within each other.
const MAX_DEPTH: usize = 256;

#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("there is no {}", .0.display())]
    NotFound(PathBuf),
    #[error("there is no directory {} to copy into", .0.display())]
    NoDirectory(PathBuf),
    #[error("{} is no directory", .0.display())]
    NotADirectory(PathBuf),
    #[error("{} is no regular file, directory, link or named pipe", .0.display())]
    Unfit(PathBuf),
    #[error("a directory cannot be copied onto the file {}", .0.display())]
    OntoFile(PathBuf),
    #[error("{} is in the way: it is no directory there", .0.display())]
    InTheWay(PathBuf),
    #[error("a file cannot be copied onto the directory {}", .0.display())]
    OntoDirectory(PathBuf),
    #[error("{} is nested too deep", .0.display())]
    TooDeep(PathBuf),
    #[error("the archive is not usable: {0}")]
    Archive(String),
    /// What it was read from or written to broke off.
    #[error("the archive broke off")]
    BrokenOff(#[source] io::Error),
    #[error("cannot {action} {}", path.display())]
    Io { action: &'static str, path: PathBuf, source: io::Error },
}
