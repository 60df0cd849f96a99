//! What can go wrong with an image, in words for the person who asked for it.

use std::{io, path::Path, path::PathBuf, sync::Arc};

use roster_tree::read::TarError;

/// `Clone`, because everyone who waits for one pull gets its error.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ImageError {
    #[error("image {reference} is not to be found: {place}")]
    NotFound { reference: String, place: String },
    #[error("{reference:?} does not name an image: {reason}")]
    BadReference { reference: String, reason: String },
    #[error("not a usable image: {what} (in {place})")]
    BadArchive { what: String, place: String },
    #[error("{what} is not what its digest says: expected {expected}, found {found}")]
    DigestMismatch { what: String, expected: String, found: String },
    #[error("{what} goes over the limit of {limit}")]
    TooLarge { what: String, limit: u64 },
    #[error("{reference} has nothing for {wanted}, only for {}", offered.join(", "))]
    NoPlatform { reference: String, wanted: String, offered: Vec<String> },
    #[error("registry {registry}: {what}")]
    Registry { registry: String, what: String, transient: bool },
    #[error("image {reference} is used by a container of this node: remove the service first")]
    InUse { reference: String },
    #[error("the archive broke off while it was being sent")]
    Interrupted {
        #[source]
        source: Option<Arc<io::Error>>,
    },
    #[error("cannot {action} {}", path.display())]
    Io {
        action: &'static str,
        path: PathBuf,
        #[source]
        source: Arc<io::Error>,
    },
    #[error("the image store's index {} is damaged ({reason}): move it away to begin with an empty store", path.display())]
    DamagedIndex { path: PathBuf, reason: String },
}

/// What the asker can do about it; the wire's `Failure.Kind`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    /// The archive, the reference or the name is wrong.
    Invalid,
    /// In use.
    Precondition,
    /// A registry, the sender or the disk failed: may pass.
    Unavailable,
}

impl ImageError {
    pub fn kind(&self) -> ErrorKind {
        match self {
            Self::NotFound { .. } => ErrorKind::NotFound,
            Self::BadReference { .. }
            | Self::BadArchive { .. }
            | Self::DigestMismatch { .. }
            | Self::TooLarge { .. }
            | Self::NoPlatform { .. } => ErrorKind::Invalid,
            Self::InUse { .. } => ErrorKind::Precondition,
            Self::Registry { .. } | Self::Interrupted { .. } | Self::Io { .. } | Self::DamagedIndex { .. } => {
                ErrorKind::Unavailable
            }
        }
    }

    /// Trying the same again may succeed.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Registry { transient, .. } => *transient,
            Self::Interrupted { .. } | Self::Io { .. } => true,
            _ => false,
        }
    }

    /// The message with all its sources, for where only one line of text goes on.
    pub fn describe(&self) -> String {
        let mut text = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            text.push_str(": ");
            text.push_str(&error.to_string());
            source = error.source();
        }
        text
    }

    pub(super) fn io(action: &'static str, path: &Path, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.to_owned(), source: Arc::new(source.into()) }
    }

    pub(super) fn bad(place: impl Into<String>, what: impl Into<String>) -> Self {
        Self::BadArchive { what: what.into(), place: place.into() }
    }

    pub(super) fn tar(place: &str, error: TarError) -> Self {
        match error {
            TarError::Bad(what) => Self::bad(place, what),
            TarError::TooLarge { what, limit } => Self::TooLarge { what: format!("{what} in {place}"), limit },
            TarError::Read(error) => Self::reading(place, error),
        }
    }

    /// An error of reading `place`, which may be the disk's, the sender's, a decompressor's or one of our own limits.
    pub(super) fn reading(place: &str, error: io::Error) -> Self {
        if let Some(own) = error.get_ref().and_then(|inner| inner.downcast_ref::<ImageError>()) {
            return own.clone();
        }
        match error.kind() {
            io::ErrorKind::UnexpectedEof => Self::bad(place, "it ends too early"),
            _ if error.raw_os_error().is_some() => Self::io("read", Path::new(place), error),
            _ => Self::bad(place, format!("it is damaged: {error}")),
        }
    }
}

impl From<ImageError> for io::Error {
    /// Carries the error through a chain of readers; [`ImageError::reading`] takes it out again.
    fn from(error: ImageError) -> Self {
        io::Error::other(error)
    }
}
