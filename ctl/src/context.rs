//! The clusters a person knows: `~/.config/roster/config.yaml`, or what ROSTER_CONFIG names.
//!
//! Each context is a name for the endpoints of a cluster and the credentials to show there, which lie beside the file.
//! Absent: the credentials' form, which is `roster-tls`'s.

use std::{
    collections::BTreeMap,
    fs, io,
    io::Write,
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use roster_tls::Identity;
use serde::{Deserialize, Serialize};

use crate::{compose, error::Error};

/// Names this host's controller; no context can have the name.
pub const LOCAL: &str = "local";

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Config {
    /// The context that is used when none is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<String>,
    #[serde(default)]
    pub contexts: BTreeMap<String, Context>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// None: where the credentials say.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub endpoints: Vec<String>,
    /// A file; a relative path begins at the configuration's folder.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<PathBuf>,
}

impl Config {
    pub fn path() -> Result<PathBuf, Error> {
        let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        if let Some(path) = set("ROSTER_CONFIG") {
            return std::path::absolute(&path).map_err(|error| Error::io("cannot tell where ROSTER_CONFIG is", error));
        }
        let base = set("XDG_CONFIG_HOME").filter(|path| path.is_absolute());
        match base.or_else(|| set("HOME").map(|home| home.join(".config"))) {
            Some(base) => Ok(base.join("roster/config.yaml")),
            None => Err(Error::Usage("cannot tell where contexts are kept: set HOME, or ROSTER_CONFIG".to_owned())),
        }
    }

    pub fn folder() -> Result<PathBuf, Error> {
        Ok(Self::path()?.parent().map(Path::to_owned).unwrap_or_default())
    }

    /// Nothing, where nothing was ever configured.
    pub fn load() -> Result<Self, Error> {
        match Self::path() {
            Ok(path) => Self::read(&path),
            // Without a home there is nothing configured either; `Self::store` says so when it matters.
            Err(_) => Ok(Self::default()),
        }
    }

    fn read(path: &Path) -> Result<Self, Error> {
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            Err(error) => return Err(Error::io(format!("cannot read {}", path.display()), error)),
        };
        if text.lines().all(|line| line.trim().is_empty() || line.starts_with('#')) {
            return Ok(Self::default());
        }
        let document = compose::document(&path.display().to_string(), &text)?;
        serde_json::from_value(document).map_err(|error| {
            Error::Usage(format!("{}: {error}; `rctl context set` writes it as it must be", path.display()))
        })
    }

    pub fn store(&self) -> Result<(), Error> {
        let path = Self::path()?;
        let text = serde_saphyr::to_string(self).expect("plain data");
        write_private(&path, text.as_bytes())
            .map_err(|error| Error::io(format!("cannot write {}", path.display()), error))
    }

    /// Keeps the credentials beside the configuration, for the context of this name, which is made when it is new.
    pub fn keep(&mut self, name: &str, identity: &Identity) -> Result<(), Error> {
        let file = PathBuf::from(format!("{name}.json"));
        identity.write(&Self::folder()?.join(&file)).map_err(|error| Error::Usage(error.to_string()))?;
        self.contexts.entry(name.to_owned()).or_default().credentials = Some(file);
        Ok(())
    }

    /// With the credentials that [`Self::keep`] kept; others are not this program's to remove.
    pub fn forget(&mut self, name: &str) -> Result<(), Error> {
        self.get(name)?;
        self.contexts.remove(name);
        if self.current.as_deref() == Some(name) {
            self.current = None;
        }
        let file = Self::folder()?.join(format!("{name}.json"));
        match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("cannot remove {}", file.display()), error))
            }
            _ => Ok(()),
        }
    }

    pub fn get(&self, name: &str) -> Result<&Context, Error> {
        self.contexts.get(name).ok_or_else(|| {
            Error::NotFound(format!("there is no context {name:?}: `rctl context ls` lists what there is"))
        })
    }
}

/// A name is also that of a file.
pub fn valid_name(text: &str) -> Result<String, String> {
    let sound = !text.is_empty()
        && text.len() <= 63
        && !text.starts_with(['.', '-'])
        && text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.'));
    match (sound, text) {
        (true, LOCAL) => Err(format!("{LOCAL:?} always means this host's controller: choose another name")),
        (true, _) => Ok(text.to_owned()),
        (false, _) => Err("use up to 63 letters, digits, dots, dashes and underscores".to_owned()),
    }
}

/// Whole or not at all, for its owner alone.
pub fn write_private(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let unfinished = folder.join(format!(".{}.{}", name.to_string_lossy(), std::process::id()));
    let written = (|| {
        let mut file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&unfinished, path)
    })();
    if written.is_err() {
        // What it failed with says more than that this fails as well.
        let _ = fs::remove_file(&unfinished);
    }
    written
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_reads_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("roster/config.yaml");
        let context = Context { endpoints: vec!["10.0.0.1:7640".to_owned()], credentials: Some("lab.json".into()) };
        let config = Config { current: Some("lab".to_owned()), contexts: [("lab".to_owned(), context)].into() };
        write_private(&path, serde_saphyr::to_string(&config).unwrap().as_bytes()).unwrap();
        assert_eq!(Config::read(&path).unwrap(), config);
        let mode = std::os::unix::fs::MetadataExt::mode(&fs::metadata(&path).unwrap());
        assert_eq!(mode & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path().join("roster")).unwrap().count(), 1, "nothing is left behind");
    }

    #[test]
    fn what_is_wrong_is_told_with_its_place() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("config.yaml");
        assert_eq!(Config::read(&path).unwrap(), Config::default());
        fs::write(&path, "# Nothing yet.\n").unwrap();
        assert_eq!(Config::read(&path).unwrap(), Config::default());
        for (text, part) in [("contexts: [", "config.yaml"), ("contxts: {}", "unknown field `contxts`")] {
            fs::write(&path, text).unwrap();
            let error = Config::read(&path).unwrap_err().to_string();
            assert!(error.contains(part), "{error}");
        }
    }

    #[test]
    fn names() {
        for good in ["lab", "a.b-c_1"] {
            assert_eq!(valid_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "local", "../x", "a/b", ".hidden", "-x", &"x".repeat(64)] {
            assert!(valid_name(bad).is_err(), "{bad:?}");
        }
    }
}
