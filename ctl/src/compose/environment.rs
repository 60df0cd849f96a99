//! `environment` and `env_file` of a service.

use std::{
    collections::BTreeMap,
    io::ErrorKind,
    path::{Path, PathBuf},
};

use super::{
    context::{Context, Fields, clean},
    env_file, files,
    keys::ENV_FILE,
    problem::{Diagnostics, Span, quoted},
    yaml::{Node, Value},
};

/// Env files of one service.
const MAX_ENV_FILES: usize = 100;

/// What `environment` says wins over the env files, a later one of these over an earlier.
pub(super) fn read(context: &mut Context<'_>, fields: &Fields<'_>) -> BTreeMap<String, String> {
    let mut environment = BTreeMap::new();
    if let Some(node) = fields.get("env_file") {
        let files = listed(context, node);
        if files.len() > MAX_ENV_FILES {
            context.error(node.span, format!("more than {MAX_ENV_FILES} env files")).help("put them together");
        }
        for file in files.into_iter().take(MAX_ENV_FILES) {
            environment.extend(load(context, &file));
        }
    }
    let Some(node) = fields.get("environment") else { return environment };
    for (name, value, span) in context.pairs(node, "environment") {
        if name.is_empty() || name.contains('=') || name.contains(char::is_whitespace) {
            context
                .error(span, format!("{} cannot be the name of an environment variable", quoted(&name)))
                .help("a name has at least one character, no `=` and no white space");
            continue;
        }
        // A name alone is passed on from outside; where it is not set there, it is not set inside either.
        match value.or_else(|| context.variables.get(&name)).map(str::to_owned) {
            Some(value) => environment.insert(name, value),
            None => environment.remove(&name),
        };
    }
    environment
}

struct EnvFile {
    path: PathBuf,
    required: bool,
    span: Span,
}

fn listed(context: &mut Context<'_>, node: &Node) -> Vec<EnvFile> {
    match &node.value {
        Value::Sequence(items) => items.iter().filter_map(|item| one(context, item)).collect(),
        _ => one(context, node).into_iter().collect(),
    }
}

fn one(context: &mut Context<'_>, node: &Node) -> Option<EnvFile> {
    let (path, required) = if let Value::Mapping(_) = node.value {
        let fields = context.fields(node, &ENV_FILE)?;
        let required = fields.get("required").and_then(|node| context.boolean(node, "required")).unwrap_or(true);
        let Some(path) = fields.get("path") else {
            context.error(node.span, "this env file has no `path`").help("add `path: ./file.env`");
            return None;
        };
        (path, required)
    } else {
        context.text_or_list(node, "env_file")?;
        (node, true)
    };
    let text = context.word(path, "path")?;
    Some(EnvFile { path: context.host_path(path.span, text)?, required, span: path.span })
}

fn load(context: &mut Context<'_>, file: &EnvFile) -> BTreeMap<String, String> {
    let name = files::shown(&file.path);
    let bytes = match files::bytes(&file.path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == ErrorKind::NotFound && !file.required => return BTreeMap::new(),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let help = "create it, correct the path, or mark it with `required: false`";
            context.error(file.span, format!("the env file {name} does not exist")).help(help);
            return BTreeMap::new();
        }
        Err(error) => {
            let help = "give the path of a file that you may read";
            context.error(file.span, format!("cannot read the env file {name}: {error}")).help(help);
            return BTreeMap::new();
        }
    };
    let variables = context.variables;
    files::source(name, Ok(bytes), context.diagnostics)
        .map(|source| env_file::parse(&source, &|name| variables.get(name), context.diagnostics))
        .unwrap_or_default()
}

/// The file of variables for interpolation: `--env-file`, which must exist, or `.env` beside the spec, which may.
pub(super) fn project_file(
    folder: &Path,
    chosen: Option<&Path>,
    process: &BTreeMap<String, String>,
    diagnostics: &mut Diagnostics,
) -> BTreeMap<String, String> {
    let path = chosen.map_or_else(|| clean(&folder.join(".env")), Path::to_owned);
    let read = files::bytes(&path);
    if let Err(error) = &read
        && chosen.is_none()
        // A folder named .env is a Python environment, not ours.
        && matches!(error.kind(), ErrorKind::NotFound | ErrorKind::IsADirectory)
    {
        return BTreeMap::new();
    }
    files::source(files::shown(&path), read, diagnostics)
        .map(|source| env_file::parse(&source, &|name| process.get(name).map(String::as_str), diagnostics))
        .unwrap_or_default()
}
