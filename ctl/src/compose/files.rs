//! The only reads of the file system and of standard input. Sizes are bounded before anything is parsed.

use std::{
    fs::File,
    io::{self, Read},
    path::Path,
};

use super::{
    problem::{Diagnostics, Source},
    yaml::MAX_FILE,
};

/// How a file is named in messages: relative to the working directory where it lies below it.
pub(super) fn shown(path: &Path) -> String {
    let relative = std::env::current_dir().ok().and_then(|here| path.strip_prefix(here).ok().map(Path::to_owned));
    relative.as_deref().filter(|path| !path.as_os_str().is_empty()).unwrap_or(path).display().to_string()
}

pub(super) fn standard_input(diagnostics: &mut Diagnostics) -> Option<Source> {
    source("<stdin>".to_owned(), read_bounded(io::stdin().lock()), diagnostics)
}

pub(super) fn spec(path: &Path, diagnostics: &mut Diagnostics) -> Option<Source> {
    source(path.display().to_string(), bytes(path), diagnostics)
}

/// Checks what was read to be text of a bounded size.
pub(super) fn source(name: String, read: io::Result<Vec<u8>>, diagnostics: &mut Diagnostics) -> Option<Source> {
    let bytes = match read {
        Ok(bytes) => bytes,
        Err(error) => {
            diagnostics.general(format!("cannot read {name}: {error}")).help(match error.kind() {
                io::ErrorKind::NotFound => "check the path",
                io::ErrorKind::IsADirectory => "name the file in it, for example its spec.yaml",
                _ => "check that you may read it",
            });
            return None;
        }
    };
    if bytes.len() > MAX_FILE {
        diagnostics
            .general(format!("{name} is larger than {} KiB", MAX_FILE / 1024))
            .help("this is hardly a spec: check the path, or split it into several stacks");
        return None;
    }
    match String::from_utf8(bytes) {
        Ok(text) => Some(Source::new(name, &text)),
        Err(error) => {
            let before = &error.as_bytes()[..error.utf8_error().valid_up_to()];
            let line = before.iter().filter(|byte| **byte == b'\n').count() + 1;
            diagnostics
                .general(format!("{name} is not text in UTF-8 (line {line})"))
                .help("save the file in UTF-8 encoding");
            None
        }
    }
}

/// One byte more than a file may have at most.
pub(super) fn bytes(path: &Path) -> io::Result<Vec<u8>> {
    read_bounded(File::open(path)?)
}

/// One byte more than allowed at most, so that what is too large shows.
fn read_bounded(from: impl Read) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    from.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}
