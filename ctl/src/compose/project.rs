//! The stack's name: the option, `COMPOSE_PROJECT_NAME`, the key `name`, the folder's name; the first that is given.

use roster_proto::id::StackName;

use super::{context::Context, problem::quoted, yaml::Node};

pub(super) fn name(context: &mut Context<'_>, option: Option<&str>, key: Option<&Node>) -> Option<StackName> {
    let from_environment = context.variables.get("COMPOSE_PROJECT_NAME").filter(|name| !name.is_empty());
    let outside = option.map(|name| (name, "given on the command line"));
    if let Some((name, origin)) = outside.or(from_environment.map(|name| (name, "from COMPOSE_PROJECT_NAME"))) {
        return StackName::new(name)
            .map_err(|invalid| {
                let message = format!("the stack's name {} ({origin}) is not allowed", quoted(name));
                context.diagnostics.general(message).help(invalid.rule);
            })
            .ok();
    }
    if let Some(node) = key {
        let text = context.word(node, "name")?;
        return StackName::new(text)
            .map_err(|invalid| {
                context
                    .error(node.span, format!("the stack's name {} is not allowed", quoted(text)))
                    .help(invalid.rule);
            })
            .ok();
    }
    let folder = context.folder.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    StackName::new(normalised(&folder))
        .map_err(|invalid| {
            let message = format!("the folder's name {} gives no name for the stack", quoted(&folder));
            let help = format!("begin the spec with `name: ...` ({})", invalid.rule);
            context.diagnostics.general(message).help(help);
        })
        .ok()
}

/// As `docker compose` does it: lower case, nothing but letters, digits, `-` and `_`, beginning with one of the former.
fn normalised(folder: &str) -> String {
    let kept: String = folder
        .to_lowercase()
        .chars()
        .filter(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_'))
        .collect();
    kept.trim_start_matches(['-', '_']).chars().take(63).collect()
}
