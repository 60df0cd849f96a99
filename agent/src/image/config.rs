//! An image's configuration, as its builder wrote it: OCI's fields and Docker's healthcheck. Pure.

use std::{sync::Arc, time::Duration};

use oci_spec::image::{ImageConfiguration, Os};
use roster_proto::spec::{HealthTest, Healthcheck};
use serde::Deserialize;

use super::{digest::Digest, error::ImageError, limits::Limits};

#[derive(Clone, Debug)]
pub(super) struct ParsedConfig {
    /// Without the history, which only tells how the image was built and may be long.
    pub(super) config: Arc<ImageConfiguration>,
    pub(super) healthcheck: Option<Healthcheck>,
    /// Lowest first.
    pub(super) diff_ids: Vec<Digest>,
}

impl ParsedConfig {
    pub(super) fn parse(bytes: &[u8], place: &str, limits: &Limits) -> Result<Self, ImageError> {
        let malformed = |error: serde_json::Error| ImageError::bad(place, format!("its configuration: {error}"));
        let mut config: ImageConfiguration = serde_json::from_slice(bytes).map_err(malformed)?;
        let extension: Extension = serde_json::from_slice(bytes).map_err(malformed)?;
        config.set_history(None);
        if *config.os() != Os::Linux {
            return Err(ImageError::bad(place, format!("it is made for {}, not for linux", config.os())));
        }
        let layers = config.rootfs().diff_ids();
        if layers.len() > limits.layers {
            let what = format!("the number of layers of {place}");
            return Err(ImageError::TooLarge { what, limit: limits.layers as u64 });
        }
        let diff_ids = layers
            .iter()
            .map(|text| text.parse::<Digest>().map_err(|error| ImageError::bad(place, error.to_string())))
            .collect::<Result<_, _>>()?;
        let healthcheck = extension.config.and_then(|config| config.healthcheck).map(DockerHealthcheck::into_spec);
        Ok(Self { config: Arc::new(config), healthcheck, diff_ids })
    }
}

/// The field Docker adds to OCI's configuration (moby, `api/types/container`, HealthConfig).
#[derive(Debug, Deserialize)]
struct Extension {
    config: Option<ExtensionConfig>,
}

#[derive(Debug, Deserialize)]
struct ExtensionConfig {
    #[serde(rename = "Healthcheck")]
    healthcheck: Option<DockerHealthcheck>,
}

/// Times in nanoseconds; 0 is "not set".
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
#[derive(Default)]
struct DockerHealthcheck {
    test: Option<Vec<String>>,
    interval: i64,
    timeout: i64,
    start_period: i64,
    start_interval: i64,
    retries: i64,
}

impl DockerHealthcheck {
    fn into_spec(self) -> Healthcheck {
        let duration = |nanos: i64| u64::try_from(nanos).ok().filter(|n| *n > 0).map(Duration::from_nanos);
        let mut words = self.test.unwrap_or_default().into_iter();
        let test = match words.next().as_deref() {
            Some("NONE") => HealthTest::Disabled,
            Some("CMD") => HealthTest::Command(words.collect()),
            Some("CMD-SHELL") => HealthTest::Shell(words.collect::<Vec<_>>().join(" ")),
            _ => HealthTest::Inherit,
        };
        Healthcheck {
            test,
            interval: duration(self.interval),
            timeout: duration(self.timeout),
            retries: u32::try_from(self.retries).ok().filter(|n| *n > 0),
            start_period: duration(self.start_period),
            start_interval: duration(self.start_interval),
        }
    }
}
