//! Files that a command writes whole or not at all: under another name at first, which then takes the place of whatever
//! has theirs.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::error::Error;

/// The file that is meant by `path`: what a link leads to. A device or a pipe would not be written to, but replaced:
/// `instead` says what to do then.
pub(super) fn meant(path: &Path, instead: &str) -> Result<PathBuf, Error> {
    let failed = |error| Error::io(format!("cannot write {}", path.display()), error);
    match fs::metadata(path) {
        Ok(there) if there.is_file() => fs::canonicalize(path).map_err(failed),
        Ok(there) => {
            let what = if there.is_dir() { "a directory: name a file in it" } else { "no regular file: name one" };
            Err(Error::Usage(format!("{} is {what}, or {instead}", path.display())))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(path.to_owned()),
        Err(error) => Err(failed(error)),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::{fs::symlink, net::UnixListener};

    use super::*;

    #[test]
    fn what_is_no_file_is_not_replaced_and_links_are_followed() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "").unwrap();
        symlink("file", at("link")).unwrap();
        let _socket = UnixListener::bind(at("socket")).unwrap();
        let meant = |name| meant(&at(name), "use -").map_err(|error| error.to_string());
        let file = fs::canonicalize(at("file")).unwrap();
        assert_eq!(meant("file").unwrap(), file);
        assert_eq!(meant("link").unwrap(), file);
        assert_eq!(meant("new").unwrap(), at("new"));
        assert!(meant("socket").unwrap_err().ends_with("socket is no regular file: name one, or use -"));
        assert!(meant("").unwrap_err().contains("is a directory: name a file in it"));
        assert!(super::meant(Path::new("/dev/null"), "use -").is_err());
    }
}
