//! A container's own layer as the tar stream of an image's layer: what it changed, and by whiteouts what it removed.
//!
//! The names of whiteouts are by the OCI image specification ("Image Layer Filesystem Changeset").

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io::{self, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
};

use nix::sys::stat::FileStat;
use tar::EntryType;

use super::{Layers, Level, export::Export, is_opaque, names, tar::Head};
use crate::image::beneath::{is_dir, is_whiteout};

const WHITEOUT: &[u8] = b".wh.";
const OPAQUE_MARK: &[u8] = b".wh..wh..opq";

impl Layers {
    /// The uppermost layer alone. Files are written whole, for layers know no holes.
    pub(crate) fn upper(&self, out: impl Write) -> io::Result<()> {
        let mut export = Export::new(self, out);
        export.dense = true;
        let (root, _) = self.own(PathBuf::new())?;
        let mut levels = vec![root];
        while let Some(level) = levels.last_mut() {
            let Some((name, stat)) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = level.path.join(&name);
            if name.as_bytes().starts_with(WHITEOUT) {
                let text =
                    format!("{} cannot be in an image: there such a name means that a file is gone", path.display());
                return Err(io::Error::new(io::ErrorKind::InvalidData, text));
            }
            if is_whiteout(&stat) {
                let mark = [WHITEOUT, name.as_bytes()].concat();
                export.tar.head(&marker(&level.path, &mark), 0)?;
                continue;
            }
            export.add(0, &path, &stat)?;
            if is_dir(&stat) {
                let (level, opaque) = self.own(path)?;
                if opaque {
                    export.tar.head(&marker(&level.path, OPAQUE_MARK), 0)?;
                }
                levels.push(level);
            }
        }
        export.tar.finish()?;
        Ok(())
    }

    /// What the uppermost layer has there, and whether that hides all below.
    fn own(&self, path: PathBuf) -> io::Result<(Level<FileStat>, bool)> {
        let dirs = self.directories(&path, &[0])?;
        let opaque = dirs.first().map_or(Ok(false), |(_, dir)| is_opaque(dir))?;
        let found: BTreeMap<OsString, FileStat> =
            names(&dirs)?.into_iter().map(|(name, (_, stat))| (name, stat)).collect();
        Ok((Level { path, among: vec![0], names: found.into_iter() }, opaque))
    }
}

fn marker(dir: &Path, name: &[u8]) -> Head {
    let dir = dir.as_os_str().as_bytes();
    let path = if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() };
    Head {
        kind: EntryType::Regular,
        path,
        link: Vec::new(),
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: 0,
        device: (0, 0),
        xattrs: Vec::new(),
    }
}
