//! Image references as Docker writes them: `[registry/]repository[:tag][@digest]`. Pure.
//!
//! `busybox` is short for `docker.io/library/busybox:latest`; names are kept whole and shown short.

use std::fmt;

use super::{digest::Digest, error::ImageError};

const DEFAULT_REGISTRY: &str = "docker.io";
const OFFICIAL: &str = "library/";
const DEFAULT_TAG: &str = "latest";
/// The specification's limits on a tag and on a name with its registry.
const TAG_LENGTH: usize = 128;
const NAME_LENGTH: usize = 255;
/// Fewer digits of an image id are taken for a name.
const ID_PREFIX: usize = 12;

/// What a user may write where an image is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Reference {
    Id(Digest),
    /// Lower-case hexadecimal digits, 12 to 63 of them. A name, where there is no such image and none was given with
    /// `sha256:`.
    IdPrefix {
        digits: String,
        name: Option<Name>,
    },
    Name(Name),
}

/// A repository's image, by tag or by its manifest's digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name {
    pub(super) registry: String,
    pub(super) repository: String,
    pub(super) version: NameVersion,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum NameVersion {
    Tag(String),
    Digest(Digest),
}

impl Reference {
    pub(super) fn parse(text: &str) -> Result<Self, ImageError> {
        if let Some(hex) = text.strip_prefix("sha256:") {
            if let Some(id) = Digest::from_hex(hex) {
                return Ok(Self::Id(id));
            }
            if is_id_prefix(hex) {
                return Ok(Self::IdPrefix { digits: hex.to_owned(), name: None });
            }
            return Err(bad(text, "an image id is sha256: and 12 to 64 hexadecimal digits"));
        }
        if let Some(id) = Digest::from_hex(text) {
            return Ok(Self::Id(id));
        }
        let name = Name::parse(text);
        if is_id_prefix(text) {
            return Ok(Self::IdPrefix { digits: text.to_owned(), name: name.ok() });
        }
        name.map(Self::Name)
    }
}

fn is_id_prefix(text: &str) -> bool {
    (ID_PREFIX..64).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

impl Name {
    /// A tag beside a digest is checked and dropped, as Docker does: the digest says it all.
    pub(super) fn parse(text: &str) -> Result<Self, ImageError> {
        if text.is_empty() {
            return Err(bad(text, "it is empty"));
        }
        let (rest, digest) = match text.split_once('@') {
            None => (text, None),
            Some((rest, digest)) => {
                (rest, Some(digest.parse::<Digest>().map_err(|error| bad(text, &error.to_string()))?))
            }
        };
        let (path, tag) = match rest.rsplit_once(':') {
            // A colon before the last slash belongs to the registry's port.
            Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
            _ => (rest, None),
        };
        if tag.is_some_and(|tag| !is_tag(tag)) {
            return Err(bad(text, "a tag has 1 to 128 letters, digits, '_', '.' or '-'"));
        }
        let (registry, repository) = split_registry(path);
        if !is_registry(&registry) {
            return Err(bad(text, "its registry is not a host name with an optional port"));
        }
        if repository.len() + registry.len() > NAME_LENGTH || !repository.split('/').all(is_component) {
            return Err(bad(
                text,
                "a repository has lower-case letters and digits, with '.', '_' or '-' between them, and '/' between its parts",
            ));
        }
        let version = match digest {
            Some(digest) => NameVersion::Digest(digest),
            None => NameVersion::Tag(tag.unwrap_or(DEFAULT_TAG).to_owned()),
        };
        Ok(Self { registry, repository, version })
    }

    pub(super) fn with_digest(&self, digest: Digest) -> Self {
        Self { version: NameVersion::Digest(digest), ..self.clone() }
    }

    pub(super) fn is_tag(&self) -> bool {
        matches!(self.version, NameVersion::Tag(_))
    }

    /// As people write it: without Docker's registry.
    pub(super) fn familiar(&self) -> String {
        let whole = self.to_string();
        match whole.strip_prefix(DEFAULT_REGISTRY).and_then(|rest| rest.strip_prefix('/')) {
            None => whole,
            Some(short) => short.strip_prefix(OFFICIAL).filter(|rest| !rest.contains('/')).unwrap_or(short).to_owned(),
        }
    }

    /// The registry is this very host, which Docker reaches without TLS.
    pub(super) fn is_on_loopback(&self) -> bool {
        let host = match self.registry.rsplit_once(':') {
            Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
            _ => &self.registry,
        };
        let host = host.trim_start_matches('[').trim_end_matches(']');
        host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
    }
}

/// The whole name, the form kept in the index.
impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            NameVersion::Tag(tag) => write!(f, ":{tag}"),
            NameVersion::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

/// The first part is a registry if it could not be part of a repository's name.
fn split_registry(path: &str) -> (String, String) {
    let (registry, repository) = match path.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase()) =>
        {
            (first, rest)
        }
        _ => (DEFAULT_REGISTRY, path),
    };
    let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
    if registry == DEFAULT_REGISTRY && !repository.contains('/') {
        return (registry.to_owned(), format!("{OFFICIAL}{repository}"));
    }
    (registry.to_owned(), repository.to_owned())
}

fn is_tag(tag: &str) -> bool {
    (1..=TAG_LENGTH).contains(&tag.len())
        && tag.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'))
        && !tag.starts_with(['.', '-'])
}

fn is_registry(registry: &str) -> bool {
    let (host, port) = match registry.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((host, port)) if host.parse::<std::net::Ipv6Addr>().is_ok() => ("v6", port.strip_prefix(':')),
            _ => return false,
        },
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let is_label = |label: &str| {
        !label.is_empty()
            && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    host.split('.').all(is_label) && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port != 0))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(part: &str) -> bool {
    let is_plain = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = part.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    if !is_plain(first) || !is_plain(last) || !bytes.iter().all(|&b| is_plain(b) || matches!(b, b'.' | b'_' | b'-')) {
        return false;
    }
    bytes
        .split(|&b| is_plain(b))
        .all(|separator| matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&b| b == b'-'))
}

fn bad(reference: &str, reason: &str) -> ImageError {
    ImageError::BadReference { reference: reference.to_owned(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_names_become_whole_and_back() {
        for (written, whole, shown) in [
            ("busybox", "docker.io/library/busybox:latest", "busybox:latest"),
            ("busybox:1.36", "docker.io/library/busybox:1.36", "busybox:1.36"),
            ("team/web", "docker.io/team/web:latest", "team/web:latest"),
            ("docker.io/web", "docker.io/library/web:latest", "web:latest"),
            ("index.docker.io/team/web:v1", "docker.io/team/web:v1", "team/web:v1"),
            ("localhost/web", "localhost/web:latest", "localhost/web:latest"),
            ("127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x", "127.0.0.1:5000/a/b/c:x"),
            ("[::1]:5000/web", "[::1]:5000/web:latest", "[::1]:5000/web:latest"),
            ("a__b/c--d.e_f", "docker.io/a__b/c--d.e_f:latest", "a__b/c--d.e_f:latest"),
        ] {
            let name = Name::parse(written).unwrap_or_else(|error| panic!("{written}: {error}"));
            assert_eq!(name.to_string(), whole);
            assert_eq!(name.familiar(), shown);
            assert_eq!(Name::parse(&name.familiar()).unwrap(), name, "the short form means the same");
        }
    }

    #[test]
    fn a_digest_outweighs_a_tag() {
        let digest = Digest::of(b"x");
        let name = Name::parse(&format!("web:v1@{digest}")).unwrap();
        assert_eq!(name.to_string(), format!("docker.io/library/web@{digest}"));
    }

    #[test]
    fn ids_are_told_from_names() {
        let id = Digest::of(b"x");
        assert_eq!(Reference::parse(&id.to_string()).unwrap(), Reference::Id(id));
        assert_eq!(Reference::parse(&id.hex()).unwrap(), Reference::Id(id));
        assert!(matches!(Reference::parse(&id.hex()[..12]).unwrap(), Reference::IdPrefix { name: Some(_), .. }));
        assert!(matches!(Reference::parse(&id.to_string()[..24]).unwrap(), Reference::IdPrefix { name: None, .. }));
        assert!(matches!(Reference::parse("deadbeef").unwrap(), Reference::Name(_)));
    }

    #[test]
    fn what_names_nothing_is_refused() {
        for wrong in [
            "",
            ":",
            "@",
            "/",
            "web:",
            "Web",
            "web/",
            "/web",
            "web//x",
            "../etc",
            "a/../b",
            "web:-x",
            "web@sha256:12",
            "web@md5:00",
            "http://x/y",
            "x y",
            "a.b:99999/c",
            "a.b:x/c",
            "-a.b/c",
            "web\0",
            "a___b",
            "sha256:12",
            "a.b/",
            "[::1/x",
            "ä",
            "web:a/b:",
        ] {
            assert!(
                matches!(Reference::parse(wrong), Err(ImageError::BadReference { .. })),
                "{wrong:?} was taken as {:?}",
                Reference::parse(wrong)
            );
        }
        assert!(Name::parse(&"a/".repeat(200)).is_err());
    }

    #[test]
    fn only_this_host_is_loopback() {
        for (name, expected) in [
            ("127.0.0.1:5000/x", true),
            ("127.9.9.9/x", true),
            ("localhost:5000/x", true),
            ("[::1]:5000/x", true),
            ("localhost.evil.example/x", false),
            ("127.0.0.1.evil.example/x", false),
            ("10.0.0.1:5000/x", false),
            ("x", false),
        ] {
            assert_eq!(Name::parse(name).unwrap().is_on_loopback(), expected, "{name}");
        }
    }
}
