//! Reads a [Compose](https://github.com/compose-spec/compose-spec) file into a [`StackSpec`].
//!
//! The way: text ([`files`]) -> tree with places ([`yaml`]) -> variables expanded ([`expand`]) -> fields, each read by
//! the module named after it, every key checked against the specification's lists ([`keys`]).
//!
//! Guarantees: nothing in the file is silently ignored (a key is read, "not supported yet", or unknown; only `x-`
//! fields are free, and those of a service are kept); all that is wrong is told in one go, each with its place and what to do; what comes out holds the limits named here; neither
//! time nor memory grows beyond bounds on hostile input. Pure but for the files read: the spec, `.env`, env files.
//!
//! Deliberately absent: merging several files, `include`, `extends`, profiles; whether images, users or host paths
//! exist, which only the nodes know.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
};

use roster_proto::{
    id::ServiceName,
    spec::{StackSpec, sharing},
};

mod context;
mod deploy;
mod env_file;
mod environment;
mod expand;
mod files;
mod health;
mod interpolate;
mod json;
mod kernel;
mod keys;
mod limits;
mod mounts;
mod ports;
mod problem;
mod project;
mod rights;
mod service;
mod shell_words;
mod units;
mod words;
mod yaml;

#[cfg(test)]
mod tests;

pub use problem::{Excerpt, Location, Problem, Problems, Severity};

use self::{
    context::{Context, Variables, looks_like_service},
    problem::{Diagnostics, Source, quoted},
    yaml::{Entry, Node},
};

/// Replicas of one service. The store and the planner are measured up to here.
pub const MAX_REPLICAS: u32 = 10_000;

/// What a spec depends on beside its text.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// `-p`: wins over `COMPOSE_PROJECT_NAME` in the environment, and that over the file's `name`, as for Docker.
    pub project_name: Option<String>,
    /// Of the process.
    pub environment: BTreeMap<String, String>,
    /// `--env-file`: read instead of the `.env` beside the spec, and must exist.
    pub env_file: Option<PathBuf>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded {
    pub stack: StackSpec,
    pub warnings: Vec<Problem>,
}

/// Reads a spec; `-` reads standard input, and takes the working directory as the spec's folder.
///
/// # Errors
/// Everything that is wrong with the file and the files it names, with the warnings.
pub fn load(path: &Path, options: &Options) -> Result<Loaded, Problems> {
    let mut diagnostics = Diagnostics::default();
    let is_stdin = path == Path::new("-");
    let folder = if is_stdin { Path::new("") } else { path.parent().unwrap_or(Path::new("")) };
    let source = match is_stdin {
        true => files::standard_input(&mut diagnostics),
        false => files::spec(path, &mut diagnostics),
    };
    let stack = source.and_then(|source| match std::path::absolute(Path::new(".").join(folder)) {
        Ok(folder) => read(&source, &context::clean(&folder), options, &mut diagnostics),
        Err(error) => {
            let message = format!("cannot tell the folder of {}: {error}", source.name());
            diagnostics.general(message).help("change into a folder that exists");
            None
        }
    });
    let (stack, warnings) = diagnostics.finish(stack)?;
    Ok(Loaded { stack, warnings })
}

/// A program and its arguments in one line, by a shell's quoting rules.
pub(crate) fn command_words(text: &str) -> Result<Vec<String>, String> {
    match shell_words::split(text) {
        Ok(words) => Ok(words.words),
        Err(shell_words::Unfinished::Quote(quote)) => Err(format!("{text:?}: the {quote} is never closed")),
        Err(shell_words::Unfinished::Escape) => Err(format!("{text:?}: nothing follows the last \\")),
    }
}

/// Any YAML as plain data, with what is wrong told as of a spec.
pub(crate) fn document(name: &str, text: &str) -> Result<serde_json::Value, Problems> {
    let mut diagnostics = Diagnostics::default();
    let root = yaml::parse(&Source::new(name, text), &mut diagnostics);
    let (root, _) = diagnostics.finish(root)?;
    Ok(json::value(&root))
}

fn read(source: &Source, folder: &Path, options: &Options, diagnostics: &mut Diagnostics) -> Option<StackSpec> {
    let process = options.environment.clone();
    let file = environment::project_file(folder, options.env_file.as_deref(), &process, diagnostics);
    let mut variables = Variables { process, file };
    let mut root = yaml::parse(source, diagnostics)?;
    // The name comes first: the rest of the file may refer to it.
    if let yaml::Value::Mapping(entries) = &mut root.value
        && let Some(entry) = entries.iter_mut().find(|entry| entry.key == "name")
    {
        expand::Expander::new(source, &variables, diagnostics).expand(&mut entry.value);
    }
    let mut context = Context { source, folder, variables: &variables, diagnostics };
    let key = match &root.value {
        yaml::Value::Mapping(entries) => entries.iter().find(|entry| entry.key == "name").map(|entry| &entry.value),
        _ => None,
    };
    let name = project::name(&mut context, options.project_name.as_deref(), key.filter(|node| !node.is_null()));
    if let Some(name) = &name {
        variables.process.insert("COMPOSE_PROJECT_NAME".to_owned(), name.to_string());
    }
    if let yaml::Value::Mapping(entries) = &mut root.value {
        let mut expander = expand::Expander::new(source, &variables, diagnostics);
        entries.iter_mut().filter(|entry| entry.key != "name").for_each(|entry| expander.expand(&mut entry.value));
    }
    let mut context = Context { source, folder, variables: &variables, diagnostics };
    let services = services(&mut context, &root)?;
    Some(StackSpec { name: name?, services })
}

fn services(context: &mut Context<'_>, root: &Node) -> Option<BTreeMap<ServiceName, roster_proto::spec::ServiceSpec>> {
    let fields = context.fields(root, &keys::ROOT)?;
    if let Some(entry) = fields.entry("version") {
        context.warning(entry.key_span, "`version` is obsolete and ignored").help("remove it");
    }
    let Some(node) = fields.get("services") else {
        // Where the reason is told already, the consequence is not worth a message.
        let told = |entry: &Entry| {
            entry.key != "services"
                && (looks_like_service(&entry.value) || keys::nearest(&entry.key, ["services"]).is_some())
        };
        if matches!(&root.value, yaml::Value::Mapping(entries) if entries.iter().any(told)) {
            return None;
        }
        let span = fields.entry("services").map_or(root.span, |entry| entry.key_span);
        context
            .error(span, "the file has no services")
            .help("write `services:` and below it, indented, each by its name");
        return None;
    };
    let entries = context.mapping(node, "`services`")?;
    if entries.is_empty() {
        let help = "add a service, or take the stack down with `rctl rm`";
        context.error(node.span, "`services` is empty").help(help);
        return None;
    }
    let mut services = BTreeMap::new();
    let mut published = Vec::new();
    let mut spans = BTreeMap::new();
    for entry in entries {
        let name = ServiceName::new(entry.key.as_str()).map_err(|invalid| {
            let message = format!("the service's name {} is not allowed", quoted(&entry.key));
            context.error(entry.key_span, message).help(invalid.rule);
        });
        if let Some(service) = service::read(context, entry) {
            published.extend(service.ports.into_iter().map(|port| (entry.key.clone(), port)));
            if let Ok(name) = name {
                spans.extend(service.shares.map(|span| (name.clone(), span)));
                services.insert(name, service.spec);
            }
        }
    }
    ports::check_published(context, &published);
    let is_named = |name: &ServiceName| entries.iter().any(|entry| entry.key == name.as_str());
    for (name, unfit) in sharing::problems(&services, is_named) {
        if let Some(span) = spans.get(&name) {
            context.fit::<()>(*span, Err(unfit));
        }
    }
    Some(services)
}
