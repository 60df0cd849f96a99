//! Carries out a table of [`Write`]s.
//!
//! Some limits bound each other: memory and swap together must hold memory alone, a quota its burst. Which of two has
//! to move first depends on what is there, and the kernel refuses the wrong order with EINVAL. So what is refused like
//! that is tried again after the rest, for as long as that gets anywhere.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use nix::libc;

use super::{
    realtime,
    resources::{Absent, Write},
};
use crate::error::{StartError, Step};

/// `dir` says where a controller's files are.
pub(super) fn apply(writes: &[Write], dir: impl Fn(&str) -> Result<PathBuf, StartError>) -> Result<(), StartError> {
    let mut open = LastOpen::default();
    let mut left: Vec<&Write> = writes.iter().collect();
    loop {
        let before = left.len();
        let mut refused = Vec::new();
        let mut last_error = Ok(());
        for write in left {
            let dir = dir(&write.controller)?;
            match open.write_or_instead(&dir, write) {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                    refused.push(write);
                    last_error = Err(failed(&dir, write, error));
                }
                Err(error) => return Err(failed(&dir, write, error)),
            }
        }
        if refused.is_empty() {
            return Ok(());
        }
        if refused.len() == before {
            return last_error;
        }
        left = refused;
    }
}

fn failed(dir: &Path, write: &Write, error: io::Error) -> StartError {
    let path = dir.join(&write.file);
    if realtime::is_about(write) && error.raw_os_error() == Some(libc::EINVAL) {
        return realtime::refused(dir, write, error);
    }
    if error.kind() == io::ErrorKind::NotFound {
        let reason = format!("this kernel has no such limit for the cgroup controller {}", write.controller);
        return StartError::impossible(format!("writing {:?} to {}", write.value, path.display()), reason);
    }
    Err::<(), _>(error).step(|| format!("write {:?} to {}", write.value, path.display())).unwrap_err()
}

/// Device rules go to one file dozens at a time.
#[derive(Default)]
struct LastOpen(Option<(PathBuf, File)>);

impl LastOpen {
    fn write_or_instead(&mut self, dir: &Path, write: &Write) -> io::Result<()> {
        match (self.write(dir.join(&write.file), &write.value), &write.absent) {
            (Err(error), Absent::Skip) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            (Err(error), Absent::Instead { file, value }) if error.kind() == io::ErrorKind::NotFound => {
                self.write(dir.join(file), value)
            }
            (result, _) => result,
        }
    }

    fn write(&mut self, path: PathBuf, value: &str) -> io::Result<()> {
        if self.0.as_ref().is_none_or(|(open, _)| *open != path) {
            // Only opened: the kernel makes these files.
            let file = OpenOptions::new().write(true).open(&path)?;
            self.0 = Some((path, file));
        }
        self.0.as_mut().map_or(Ok(()), |(_, file)| file.write_all(value.as_bytes()))
    }
}
