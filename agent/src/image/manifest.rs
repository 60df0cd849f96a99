//! Manifests and indexes: told apart, checked, and the platform chosen. Pure.

use oci_spec::image::{Descriptor, ImageIndex, ImageManifest};
use serde::Deserialize;

use super::{digest::Digest, error::ImageError, limits::Limits};

/// What a descriptor of an image may lead to.
#[derive(Debug)]
pub(super) enum Document {
    Index(Box<ImageIndex>),
    Manifest(Box<ImageManifest>),
}

/// The fields that tell the two apart.
#[derive(Deserialize)]
struct Probe {
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

impl Document {
    /// A document that could be read as both is refused: two readers would see two images (CVE-2021-41190).
    pub(super) fn parse(bytes: &[u8], place: &str, limits: &Limits) -> Result<Self, ImageError> {
        let malformed = |error: serde_json::Error| ImageError::bad(place, format!("it is malformed: {error}"));
        let probe: Probe = serde_json::from_slice(bytes).map_err(malformed)?;
        match (probe.manifests.is_some(), probe.layers.is_some() || probe.config.is_some()) {
            (true, false) => Ok(Self::Index(Box::new(serde_json::from_slice(bytes).map_err(malformed)?))),
            (false, true) => {
                let manifest: ImageManifest = serde_json::from_slice(bytes).map_err(malformed)?;
                if manifest.layers().len() > limits.layers {
                    let what = format!("the number of layers in {place}");
                    return Err(ImageError::TooLarge { what, limit: limits.layers as u64 });
                }
                Ok(Self::Manifest(Box::new(manifest)))
            }
            (true, true) => Err(ImageError::bad(place, "it is an index and a manifest at once")),
            (false, false) => Err(ImageError::bad(place, "it is neither an image manifest nor an index")),
        }
    }
}

pub(super) fn digest_of(descriptor: &Descriptor, place: &str) -> Result<Digest, ImageError> {
    descriptor
        .digest()
        .to_string()
        .parse()
        .map_err(|error: super::digest::InvalidDigest| ImageError::bad(place, error.to_string()))
}

/// The host's architecture in Go's words, which images use.
pub(super) fn host_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}

/// The first image for linux on this architecture; one that does not say what it is for, where none does.
pub(super) fn select_platform<'d>(
    descriptors: &[&'d Descriptor],
    reference: &str,
) -> Result<&'d Descriptor, ImageError> {
    let architecture = host_architecture();
    let fits = |descriptor: &&&Descriptor| {
        descriptor.platform().as_ref().is_some_and(|platform| {
            platform.os().to_string() == "linux" && platform.architecture().to_string() == architecture
        })
    };
    let found = descriptors.iter().find(fits).or_else(|| descriptors.iter().find(|d| d.platform().is_none()));
    found.copied().ok_or_else(|| ImageError::NoPlatform {
        reference: reference.to_owned(),
        wanted: format!("linux/{architecture}"),
        offered: descriptors
            .iter()
            .filter_map(|descriptor| descriptor.platform().as_ref())
            .map(|platform| format!("{}/{}", platform.os(), platform.architecture()))
            .collect(),
    })
}
