//! Pulls images by the OCI distribution protocol.
//!
//! Guarantees: the manifest is what a digest reference says, configuration and layers are what the manifest says; a
//! layer goes straight from the network into its directory, never whole in memory. A registry on this host's loopback
//! is spoken to in plain HTTP, as Docker does; every other by TLS.
//!
//! Deliberately absent: credentials (only anonymous access), resumed downloads, parallel downloads (a layer's
//! directory depends on those below). One bound is not ours to set: the client reads a manifest whole before its size
//! can be checked here, so that a hostile registry may use memory for as long as [`DOCUMENT_TIMEOUT`]. Trying again is for the caller, who has a backoff: [`ImageError::is_transient`].

use std::{
    sync::{Arc, OnceLock},
    time::Duration,
};

use bytes::Bytes;
use futures::{Stream, StreamExt};
use oci_client::{
    Client, Reference as RegistryReference,
    client::{ClientConfig, ClientProtocol},
    errors::{DigestError, OciDistributionError, OciErrorCode},
    manifest::{
        IMAGE_MANIFEST_LIST_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, OCI_IMAGE_MEDIA_TYPE,
    },
    secrets::RegistryAuth,
};
use oci_spec::image::{Descriptor, ImageManifest};

use super::{
    blocking,
    digest::Digest,
    error::ImageError,
    import::{Blob, Import, Pending},
    manifest::{Document, digest_of, select_platform},
    pipe::pipe,
    reference::{Name, NameVersion},
    store::Store,
};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two pieces of an answer.
const READ_TIMEOUT: Duration = Duration::from_secs(30);
/// For a manifest or configuration from asking to having it, with authentication.
const DOCUMENT_TIMEOUT: Duration = Duration::from_secs(60);
/// For a whole image.
const PULL_TIMEOUT: Duration = Duration::from_secs(3600);

const MEDIA_TYPES: &[&str] =
    &[OCI_IMAGE_MEDIA_TYPE, OCI_IMAGE_INDEX_MEDIA_TYPE, IMAGE_MANIFEST_MEDIA_TYPE, IMAGE_MANIFEST_LIST_MEDIA_TYPE];

/// The clients for registries, made when first needed: most nodes of a lab never pull.
#[derive(Default)]
pub(super) struct Registries {
    tls: OnceLock<Client>,
    plain: OnceLock<Client>,
}

impl std::fmt::Debug for Registries {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Registries").finish_non_exhaustive()
    }
}

impl Registries {
    fn client(&self, name: &Name) -> Result<Client, ImageError> {
        let (slot, protocol) = match name.is_on_loopback() {
            true => (&self.plain, ClientProtocol::Http),
            false => (&self.tls, ClientProtocol::Https),
        };
        if let Some(client) = slot.get() {
            return Ok(client.clone());
        }
        let client = Client::try_from(ClientConfig {
            protocol,
            platform_resolver: None,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("roster-agent/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        })
        .map_err(|error| failure(name, error))?;
        Ok(slot.get_or_init(|| client).clone())
    }
}

/// Brings the image into the store whether or not it has one of that name.
pub(super) async fn pull(store: Arc<Store>, name: Name) -> Result<Digest, ImageError> {
    let pulled = Pull { client: store.registries.client(&name)?, name: &name, store: &store }.run();
    match tokio::time::timeout(PULL_TIMEOUT, pulled).await {
        Ok(result) => result,
        Err(_) => Err(timed_out(&name, PULL_TIMEOUT)),
    }
}

struct Pull<'p> {
    client: Client,
    name: &'p Name,
    store: &'p Arc<Store>,
}

impl Pull<'_> {
    async fn run(self) -> Result<Digest, ImageError> {
        let (manifest, digests) = self.manifest().await?;
        let config = self.document(manifest.config()).await?;
        let store = self.store.clone();
        let layers = manifest.layers().len();
        let place = format!("the configuration of {}", self.name.familiar());
        let (mut import, mut image) = blocking(move || {
            let import = Import::begin(store)?;
            let image = import.image(config, layers, &place)?;
            Ok((import, image))
        })
        .await?;
        for layer in manifest.layers() {
            (import, image) = self.layer(import, image, layer).await?;
        }
        image.names = digests.into_iter().map(|digest| self.name.with_digest(digest)).collect();
        if self.name.is_tag() {
            image.names.push(self.name.clone());
        }
        let id = image.id();
        import.add_image(image);
        blocking(move || import.commit()).await?;
        Ok(id)
    }

    /// The manifest for this host, and the digests by which the image can be named: the index's and its own.
    async fn manifest(&self) -> Result<(ImageManifest, Vec<Digest>), ImageError> {
        let mut digests = Vec::new();
        let mut reference = match &self.name.version {
            NameVersion::Tag(tag) => {
                RegistryReference::with_tag(self.name.registry.clone(), self.name.repository.clone(), tag.clone())
            }
            NameVersion::Digest(digest) => self.reference(*digest),
        };
        let mut expected = match &self.name.version {
            NameVersion::Digest(digest) => Some(*digest),
            NameVersion::Tag(_) => None,
        };
        for _ in 0..self.store.limits.index_depth {
            let bytes = self.fetch_manifest(&reference, expected).await?;
            digests.push(Digest::of(&bytes));
            let place = format!("the manifest of {}", self.name.familiar());
            match Document::parse(&bytes, &place, &self.store.limits)? {
                Document::Manifest(manifest) => return Ok((*manifest, digests)),
                Document::Index(index) => {
                    let offered: Vec<&Descriptor> = index.manifests().iter().collect();
                    let chosen = digest_of(select_platform(&offered, &self.name.familiar())?, &place)?;
                    reference = self.reference(chosen);
                    expected = Some(chosen);
                }
            }
        }
        Err(ImageError::bad(self.name.familiar(), "its indexes are nested too deep"))
    }

    fn reference(&self, digest: Digest) -> RegistryReference {
        RegistryReference::with_digest(self.name.registry.clone(), self.name.repository.clone(), digest.to_string())
    }

    async fn fetch_manifest(
        &self,
        reference: &RegistryReference,
        expected: Option<Digest>,
    ) -> Result<Bytes, ImageError> {
        let request = self.client.pull_manifest_raw(reference, &RegistryAuth::Anonymous, MEDIA_TYPES);
        let (bytes, _) = tokio::time::timeout(DOCUMENT_TIMEOUT, request)
            .await
            .map_err(|_| timed_out(self.name, DOCUMENT_TIMEOUT))?
            .map_err(|error| failure(self.name, error))?;
        self.check_document(&bytes, expected)?;
        Ok(bytes)
    }

    fn check_document(&self, bytes: &[u8], expected: Option<Digest>) -> Result<(), ImageError> {
        let limit = self.store.limits.document_bytes;
        if bytes.len() as u64 > limit {
            return Err(ImageError::TooLarge { what: format!("a manifest of {}", self.name.familiar()), limit });
        }
        let found = Digest::of(bytes);
        match expected {
            Some(expected) if expected != found => Err(ImageError::DigestMismatch {
                what: format!("a manifest of {}", self.name.familiar()),
                expected: expected.to_string(),
                found: found.to_string(),
            }),
            _ => Ok(()),
        }
    }

    /// A blob that is read into memory.
    async fn document(&self, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
        let limit = self.store.limits.document_bytes;
        let read = async {
            let mut stream = std::pin::pin!(self.blob(descriptor).await?);
            let mut bytes = Vec::new();
            while let Some(piece) = stream.next().await {
                bytes.extend_from_slice(&piece?);
                if bytes.len() as u64 > limit {
                    let what = format!("the configuration of {}", self.name.familiar());
                    return Err(ImageError::TooLarge { what, limit });
                }
            }
            Ok(bytes)
        };
        let bytes = tokio::time::timeout(DOCUMENT_TIMEOUT, read)
            .await
            .map_err(|_| timed_out(self.name, DOCUMENT_TIMEOUT))??;
        self.check_document(&bytes, Some(digest_of(descriptor, &self.name.familiar())?))?;
        Ok(bytes)
    }

    async fn layer(
        &self,
        mut import: Import,
        mut image: Pending,
        descriptor: &Descriptor,
    ) -> Result<(Import, Pending), ImageError> {
        if import.reuse_layer(&mut image) {
            return Ok((import, image));
        }
        let digest = digest_of(descriptor, &self.name.familiar())?;
        let stream = self.blob(descriptor).await?;
        let blob = Blob { digest, size: descriptor.size() };
        let place = format!("layer {digest} of {}", self.name.familiar());
        let (writer, reader) = pipe();
        let unpacking = blocking(move || {
            import.add_layer(&mut image, reader, Some(blob), &place)?;
            Ok((import, image))
        });
        let (unpacked, ()) = futures::join!(unpacking, writer.send(stream));
        unpacked
    }

    /// A blob's bytes; more than the descriptor says, and the stream ends with an error.
    async fn blob(
        &self,
        descriptor: &Descriptor,
    ) -> Result<impl Stream<Item = Result<Bytes, ImageError>> + use<>, ImageError> {
        let digest = digest_of(descriptor, &self.name.familiar())?;
        let size = descriptor.size();
        let name = self.name.clone();
        let response = self
            .client
            .pull_blob_stream(&self.reference(digest), digest.to_string().as_str())
            .await
            .map_err(|error| failure(&name, error))?;
        let mut received = 0u64;
        Ok(response.stream.map(move |piece| {
            let bytes = piece.map_err(|error| broken_off(&name, digest, &error))?;
            received += bytes.len() as u64;
            if received > size {
                let what = format!("{digest} should have {size} bytes and has more");
                return Err(ImageError::bad(name.familiar(), what));
            }
            Ok(bytes)
        }))
    }
}

fn timed_out(name: &Name, after: Duration) -> ImageError {
    let what = format!("{} did not come within {} s", name.familiar(), after.as_secs());
    ImageError::Registry { registry: name.registry.clone(), what, transient: true }
}

/// An error in the middle of a blob. The client checks the digest, too, and is the first to see that it does not hold.
fn broken_off(name: &Name, digest: Digest, error: &std::io::Error) -> ImageError {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<DigestError>());
    if let Some(DigestError::VerificationError { expected, actual }) = inner {
        let what = format!("{digest} of {}", name.familiar());
        return ImageError::DigestMismatch { what, expected: expected.clone(), found: actual.clone() };
    }
    let what = format!("{digest} of {}: {}", name.familiar(), chain(error));
    ImageError::Registry { registry: name.registry.clone(), what, transient: true }
}

fn failure(name: &Name, error: OciDistributionError) -> ImageError {
    use OciDistributionError as E;
    let registry = name.registry.clone();
    let not_found =
        || ImageError::NotFound { reference: name.familiar(), place: format!("{registry} does not have it") };
    let transient = match &error {
        E::ImageManifestNotFoundError(_) | E::ServerError { code: 404, .. } => return not_found(),
        E::RegistryError { envelope, .. } => {
            let has = |codes: &[OciErrorCode]| envelope.errors.iter().any(|error| codes.contains(&error.code));
            use OciErrorCode::{ManifestUnknown, NameUnknown, NotFound, Toomanyrequests};
            if has(&[ManifestUnknown, NameUnknown, NotFound]) {
                return not_found();
            }
            has(&[Toomanyrequests])
        }
        E::ServerError { code, .. } => *code >= 500 || *code == 408 || *code == 429,
        E::RequestError(error) => !error.is_builder(),
        E::IoError(_) | E::AuthenticationFailure(_) => true,
        _ => false,
    };
    let what = match &error {
        E::UnauthorizedError { .. } => {
            format!("{} is not there or not public (Roster pulls without credentials)", name.familiar())
        }
        _ => format!("{}: {}", name.familiar(), chain(&error)),
    };
    ImageError::Registry { registry, what, transient }
}

/// The message with those below it: the outer ones of an HTTP client say little.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let below = error.to_string();
        if !text.contains(&below) {
            text = format!("{text}: {below}");
        }
        source = error.source();
    }
    text
}
