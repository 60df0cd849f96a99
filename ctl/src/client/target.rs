//! Which cluster is meant, and as whom to speak to it.

use std::{path::PathBuf, sync::Arc, time::Duration};

use roster_tls::Identity;
use rustls::ClientConfig;

use super::{
    Endpoint, LOCAL_ENDPOINT, Transport,
    endpoint::{InvalidEndpoint, chain},
};
use crate::{
    context::{Config, LOCAL},
    error::Error,
};

/// What the command line asked for.
#[derive(Clone, Debug, Default)]
pub struct Wishes {
    pub endpoints: Vec<String>,
    pub context: Option<String>,
    pub credentials: Option<PathBuf>,
    pub stale: bool,
    pub request_timeout: Duration,
}

/// Where to go and what to show there.
#[derive(Clone, Debug)]
pub struct Target {
    pub endpoints: Vec<Endpoint>,
    pub tls: Option<Arc<ClientConfig>>,
    pub stale: bool,
    pub request_timeout: Duration,
}

impl Wishes {
    /// Endpoints and credentials that are named come first, then the context that is named, then the present one, then
    /// this host's controller.
    pub fn target(&self) -> Result<Target, Error> {
        let identity = self.identity()?;
        let mut endpoints = self.endpoints.clone();
        if endpoints.is_empty() && self.credentials.is_none() {
            endpoints = self.context()?.map(|context| context.endpoints).unwrap_or_default();
        }
        if endpoints.is_empty() {
            endpoints = identity.as_ref().map(|identity| identity.controllers.clone()).unwrap_or_default();
        }
        if endpoints.is_empty() {
            endpoints.push(LOCAL_ENDPOINT.to_owned());
        }
        self.target_at(parsed(&endpoints)?, identity)
    }

    /// This host's controller, whatever the contexts say.
    pub fn local_target(&self) -> Result<Target, Error> {
        let local: Vec<String> = match &self.endpoints[..] {
            [] => vec![LOCAL_ENDPOINT.to_owned()],
            named => named.to_vec(),
        };
        let endpoints = parsed(&local)?;
        match endpoints.iter().find(|endpoint| !matches!(endpoint, Endpoint::Unix(_))) {
            None => self.target_at(endpoints, None),
            Some(other) => Err(Error::Usage(format!(
                "this is done on the controller's own host, by its unix socket, not at {other}: log in there and run \
                 it as root"
            ))),
        }
    }

    fn target_at(&self, endpoints: Vec<Endpoint>, identity: Option<Identity>) -> Result<Target, Error> {
        let tls = match identity {
            Some(identity) => {
                Some(roster_tls::client_config(&identity).map_err(|error| Error::Usage(error.to_string()))?)
            }
            None => None,
        };
        let needs_tls = endpoints.iter().find(|endpoint| matches!(endpoint, Endpoint::Tls(_)));
        if let (Some(endpoint), None) = (needs_tls, &tls) {
            return Err(Error::Usage(format!(
                "{endpoint} asks for credentials and there are none: choose a context that has some (`rctl context \
                 ls`, then --context), or name a file that `rctl user add --out` wrote with --credentials"
            )));
        }
        Ok(Target { endpoints, tls, stale: self.stale, request_timeout: self.request_timeout })
    }

    fn context(&self) -> Result<Option<crate::context::Context>, Error> {
        let config = Config::load()?;
        let name = self.context.as_ref().or(config.current.as_ref());
        match name.filter(|name| *name != LOCAL) {
            Some(name) => Ok(Some(config.get(name)?.clone())),
            None => Ok(None),
        }
    }

    /// As whom to speak, if as anybody.
    pub fn identity(&self) -> Result<Option<Identity>, Error> {
        let path = match &self.credentials {
            Some(path) => path.clone(),
            None => match self.context()?.and_then(|context| context.credentials) {
                Some(file) => Config::folder()?.join(file),
                None => return Ok(None),
            },
        };
        let identity = Identity::read(&path).map_err(|error| Error::Usage(chain(&error)))?;
        let identity = identity.ok_or_else(|| {
            Error::Usage(format!("there are no credentials in {}: was the file moved?", path.display()))
        })?;
        let certificate = identity.certificate().map_err(|error| Error::Usage(chain(&error)))?;
        if certificate.expires <= std::time::SystemTime::now().into() {
            return Err(Error::Usage(format!(
                "the certificate in {} ran out at {}: ask an admin of the cluster for another (`rctl user add`)",
                path.display(),
                certificate.expires
            )));
        }
        Ok(Some(identity))
    }
}

fn parsed(endpoints: &[String]) -> Result<Vec<Endpoint>, Error> {
    let parse = |text: &String| text.parse().map_err(|error: InvalidEndpoint| Error::Usage(error.to_string()));
    endpoints.iter().map(parse).collect()
}

impl Target {
    /// Tries for as long as calls are tried.
    pub async fn connect(self) -> Result<Transport, Error> {
        let patience = self.request_timeout;
        Transport::connect(self, patience).await
    }

    pub async fn connect_at_once(self) -> Result<Transport, Error> {
        Transport::connect(self, Duration::ZERO).await
    }
}
