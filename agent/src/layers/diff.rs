//! What a container changed: its upper layer beside those below.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    io,
    path::{Path, PathBuf},
};

use nix::sys::stat::FileStat;

use super::{Change, Layers, Level, is_opaque, names};
use crate::image::beneath::{is_dir, is_whiteout};

/// Of one name: what the upper layer has, and what those below show.
struct Pair {
    upper: Option<FileStat>,
    lower: Option<FileStat>,
    /// Of a directory: nothing below it shows through.
    covers: bool,
}

impl Layers {
    /// Every change, each directory before what is in it, by name. A directory that was made anew in the place of
    /// another one is changed, and what it lacks is deleted.
    pub(crate) fn changes(&self, tell: &mut dyn FnMut(Change, &Path) -> io::Result<()>) -> io::Result<()> {
        let below: Vec<usize> = (1..self.0.len()).collect();
        let mut levels: Vec<Level<Pair>> = self.compare(PathBuf::new(), below, false)?.into_iter().collect();
        while let Some(level) = levels.last_mut() {
            let Some((name, pair)) = level.names.next() else {
                levels.pop();
                continue;
            };
            let path = level.path.join(name);
            let change = match (&pair.upper, &pair.lower) {
                (None, None) => continue,
                (None, Some(_)) => Change::Deleted,
                (Some(_), Some(_)) => Change::Changed,
                (Some(_), None) => Change::Added,
            };
            tell(change, &path)?;
            if pair.upper.is_some_and(|stat| is_dir(&stat)) {
                let among = if pair.lower.is_some_and(|stat| is_dir(&stat)) { level.among.clone() } else { Vec::new() };
                levels.extend(self.compare(path, among, pair.covers)?);
            }
        }
        Ok(())
    }

    /// `None` where the directory has gone meanwhile.
    fn compare(&self, path: PathBuf, among: Vec<usize>, covered: bool) -> io::Result<Option<Level<Pair>>> {
        let upper = self.directories(&path, &[0])?;
        let Some((_, dir)) = upper.first() else { return Ok(None) };
        let covers = covered || is_opaque(dir)?;
        let lower = self.directories(&path, &among)?;
        let among = lower.iter().map(|(layer, _)| *layer).collect();
        let mut below = names(&lower)?;
        below.retain(|_, (_, stat)| !is_whiteout(stat));
        let mut pairs: BTreeMap<OsString, Pair> = BTreeMap::new();
        for (name, (_, stat)) in names(&upper)? {
            let lower = below.remove(&name).map(|(_, stat)| stat);
            let upper = (!is_whiteout(&stat)).then_some(stat);
            pairs.insert(name, Pair { upper, lower, covers });
        }
        if covers {
            let hidden = |(_, stat)| Pair { upper: None, lower: Some(stat), covers };
            pairs.extend(below.into_iter().map(|(name, found)| (name, hidden(found))));
        }
        Ok(Some(Level { path, among, names: pairs.into_iter() }))
    }
}
