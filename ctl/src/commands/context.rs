//! `context ls|use|show|set|rm`.

use std::path::PathBuf;

use roster_tls::Identity;
use serde::Serialize;

use super::{cluster, now, print, write_out};
use crate::{
    cli::{Context as Command, Output},
    client::{self, Endpoint, Wishes},
    context::{Config, Context, LOCAL},
    error::{Ending, Error},
    render::{
        list::ago_or_ahead,
        table::{Cell, Table},
    },
};

pub(super) async fn run(args: Command, wishes: Wishes) -> Result<Ending, Error> {
    match args {
        Command::Ls(output) => list(&output)?,
        Command::Use { name } => {
            let mut config = Config::load()?;
            if name != LOCAL {
                config.get(&name)?;
            }
            config.current = Some(name.clone()).filter(|name| name != LOCAL);
            config.store()?;
            write_out(&format!("rctl speaks to {name} from now on.\n"))?;
        }
        Command::Show { name, output } => show(name, &output)?,
        Command::Set { name, at, from, refresh, select } => set(name, at, from, refresh, select, wishes).await?,
        Command::Rm { name } => {
            let mut config = Config::load()?;
            config.forget(&name)?;
            config.store()?;
            write_out(&format!("forgot {name}\n"))?;
        }
    }
    Ok(Ending::Done)
}

#[derive(Serialize)]
struct ContextView {
    name: String,
    current: bool,
    endpoints: Vec<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    credentials: Option<PathBuf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cluster: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    role: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires: Option<String>,
    /// Why the credentials are of no use.
    #[serde(skip_serializing_if = "Option::is_none")]
    problem: Option<String>,
    #[serde(skip)]
    expires_in: String,
}

impl ContextView {
    fn of(name: &str, context: &Context, config: &Config) -> Result<Self, Error> {
        let mut view = Self {
            name: name.to_owned(),
            current: config.current.as_deref() == Some(name),
            endpoints: context.endpoints.clone(),
            credentials: match &context.credentials {
                Some(file) => Some(Config::folder()?.join(file)),
                None => None,
            },
            cluster: None,
            user: None,
            role: None,
            expires: None,
            problem: None,
            expires_in: String::new(),
        };
        let Some(path) = &view.credentials else { return Ok(view) };
        match Identity::read(path).map(|found| found.map(|identity| (identity.certificate(), identity))) {
            Ok(Some((Ok(certificate), identity))) => {
                view.cluster = Some(identity.cluster.clone());
                view.user = Some(certificate.subject.name.clone());
                view.role = Some(certificate.subject.role.to_string());
                view.expires = Some(certificate.expires.to_string());
                view.expires_in = ago_or_ahead(now(), certificate.expires);
                if view.endpoints.is_empty() {
                    view.endpoints = identity.controllers;
                }
            }
            Ok(Some((Err(error), _))) => view.problem = Some(error.to_string()),
            Ok(None) => view.problem = Some(format!("{} is gone", path.display())),
            Err(error) => view.problem = Some(error.to_string()),
        }
        Ok(view)
    }
}

fn list(output: &Output) -> Result<(), Error> {
    let config = Config::load()?;
    let views = config.contexts.iter().map(|(name, context)| ContextView::of(name, context, &config));
    let views = views.collect::<Result<Vec<_>, _>>()?;
    if views.is_empty() {
        super::list::say_why_empty(output.output, "no contexts: `rctl context set` adds one");
    }
    print(output.output, || &views, |_| table(&views))
}

fn table(views: &[ContextView]) -> Table {
    let mut table = Table::new(["", "CONTEXT", "CLUSTER", "USER", "ROLE", "EXPIRES", "ENDPOINTS"]);
    for view in views {
        let or_dash = |text: &Option<String>| Cell::from(text.clone().unwrap_or_else(|| "-".to_owned()));
        let expires = match &view.problem {
            Some(problem) => problem.clone(),
            None if view.expires_in.is_empty() => "-".to_owned(),
            None => view.expires_in.clone(),
        };
        table.row([
            if view.current { "*" } else { "" }.into(),
            view.name.clone().into(),
            or_dash(&view.cluster),
            or_dash(&view.user),
            or_dash(&view.role),
            expires.into(),
            view.endpoints.join(", ").into(),
        ]);
    }
    table
}

fn show(name: Option<String>, output: &Output) -> Result<(), Error> {
    let config = Config::load()?;
    let Some(name) = name.or_else(|| config.current.clone()).filter(|name| name != LOCAL) else {
        return write_out(&format!("{LOCAL}: this host's controller, at {}\n", client::LOCAL_ENDPOINT));
    };
    let view = ContextView::of(&name, config.get(&name)?, &config)?;
    print(output.output, || &view, |_| table(std::slice::from_ref(&view)))
}

async fn set(
    name: String,
    at: Vec<String>,
    from: Option<PathBuf>,
    refresh: bool,
    select: bool,
    wishes: Wishes,
) -> Result<(), Error> {
    let mut config = Config::load()?;
    let known = config.contexts.contains_key(&name);
    if !known && at.is_empty() && from.is_none() {
        return Err(Error::Usage(format!(
            "there is no context {name:?} yet: give its credentials with --from, or its endpoints with --at"
        )));
    }
    for endpoint in &at {
        endpoint.parse::<Endpoint>().map_err(|error| Error::Usage(error.to_string()))?;
    }
    if let Some(from) = from {
        let identity = Identity::read(&from).map_err(|error| Error::Usage(error.to_string()))?;
        let identity = identity.ok_or_else(|| Error::Usage(format!("there is no file {}", from.display())))?;
        config.keep(&name, &identity)?;
    }
    let context = config.contexts.entry(name.clone()).or_default();
    if !at.is_empty() {
        context.endpoints = at;
    }
    if select {
        config.current = Some(name.clone());
    }
    config.store()?;
    if refresh {
        self::refresh(&name, wishes).await?;
    }
    let config = Config::load()?;
    let view = ContextView::of(&name, config.get(&name)?, &config)?;
    write_out(&table(&[view]).render())
}

/// The controllers' present addresses, and a certificate of today.
async fn refresh(name: &str, wishes: Wishes) -> Result<(), Error> {
    let wishes = Wishes { context: Some(name.to_owned()), endpoints: Vec::new(), credentials: None, ..wishes };
    let status = cluster::status(&mut client::cluster(&wishes).await?).await?;
    let addresses: Vec<String> = status.controllers.into_iter().map(|controller| controller.address).collect();
    let mut config = Config::load()?;
    if let Some(mut identity) = wishes.identity()? {
        let tls = roster_tls::client_config(&identity).map_err(|error| Error::Usage(error.to_string()))?;
        let channel = roster_tls::connect(&addresses, tls).await.map_err(|error| Error::Refused(error.to_string()))?;
        identity = roster_tls::renew(channel, &identity).await.map_err(|error| Error::Refused(error.to_string()))?;
        identity.controllers.clone_from(&addresses);
        config.keep(name, &identity)?;
    } else {
        let context = config.contexts.entry(name.to_owned()).or_default();
        context.endpoints = addresses;
    }
    config.store()
}
