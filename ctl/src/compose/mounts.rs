//! `volumes` (bind and tmpfs, short and long form) and `tmpfs`.
//!
//! Paths of the host are made absolute here: the node that mounts them knows nothing of the spec's folder. Whether
//! they exist is the node's to say.

use std::{
    collections::HashMap,
    path::{Path, PathBuf},
};

use roster_proto::spec::{Mount, Propagation, TmpfsOptions};

use super::{
    context::{Context, Fields, clean},
    keys::{BIND, TMPFS, VOLUME, nearest},
    problem::{Place, Span, quoted},
    units,
    yaml::{Node, Value},
};

/// Below it a tmpfs holds not even one page of memory.
const MIN_TMPFS: u64 = 4096;

const PROPAGATIONS: [(&str, Propagation); 6] = [
    ("rprivate", Propagation::Rprivate),
    ("private", Propagation::Private),
    ("rshared", Propagation::Rshared),
    ("shared", Propagation::Shared),
    ("rslave", Propagation::Rslave),
    ("slave", Propagation::Slave),
];

const TMPFS_OPTIONS: [&str; 11] =
    ["size", "mode", "uid", "gid", "nr_inodes", "ro", "rw", "exec", "noexec", "suid", "nosuid"];

const NAMED: &str = "use a folder of the host, beginning with `./`, `/` or `~/`";

pub(super) fn read(context: &mut Context<'_>, fields: &Fields<'_>) -> Vec<Mount> {
    let mut mounts = Vec::new();
    if let Some(node) = fields.get("volumes") {
        for item in context.list(node, "volumes").unwrap_or_default() {
            let mount = match &item.value {
                Value::Mapping(_) => long(context, item),
                _ => context.item(item, "volumes").and_then(|text| short(context, text, item.span)),
            };
            mounts.extend(mount.map(|mount| (mount, item.span)));
        }
    }
    if let Some(node) = fields.get("tmpfs") {
        let items = match &node.value {
            Value::Sequence(items) => items.as_slice(),
            _ => std::slice::from_ref(node),
        };
        for item in items {
            let mount = context.text_or_list(item, "tmpfs").and_then(|text| tmpfs(context, text, item.span));
            mounts.extend(mount.map(|mount| (mount, item.span)));
        }
    }
    check_unique(context, &mounts);
    mounts.into_iter().map(|(mount, _)| mount).collect()
}

fn check_unique(context: &mut Context<'_>, mounts: &[(Mount, Span)]) {
    let mut seen: HashMap<&Path, Place> = HashMap::new();
    for (mount, span) in mounts {
        let (Mount::Bind { target, .. } | Mount::Tmpfs { target, .. }) = mount;
        if let Some(first) = seen.get(target.as_path()) {
            let first = context.source.location(*first);
            context
                .error(*span, format!("two mounts at {}", target.display()))
                .related("the first is at", first)
                .help("remove one of the two, or mount it elsewhere");
        } else {
            seen.insert(target, span.start);
        }
    }
}

fn target(context: &mut Context<'_>, text: &str, span: Span) -> Option<PathBuf> {
    if !text.starts_with('/') {
        context
            .error(span, format!("the path in the container must be absolute, {} is not", quoted(text)))
            .help("begin it with `/`");
        return None;
    }
    let path = clean(Path::new(text));
    if path == Path::new("/") || path.starts_with("/proc") {
        let message = format!("nothing can be mounted at {} in a container", path.display());
        context.error(span, message).help("mount it at a path of its own, like /data");
        return None;
    }
    Some(path)
}

/// `SOURCE:TARGET[:OPTION,...]`.
fn short(context: &mut Context<'_>, text: &str, span: Span) -> Option<Mount> {
    let parts: Vec<&str> = text.split(':').collect();
    let (source, to, options) = match parts.as_slice() {
        [source, to] => (*source, *to, ""),
        [source, to, options] => (*source, *to, *options),
        [path] if path.starts_with('/') => {
            context.not_supported(span, "a volume without a source", "write `./data:/path`, or use `tmpfs`");
            return None;
        }
        [name] if !name.is_empty() => {
            let message = format!("the volume {} has no path in the container", quoted(name));
            context.error(span, message).help("write SOURCE:TARGET, like `./data:/data`");
            return None;
        }
        _ => {
            let message = format!("{} is not a volume", quoted(text));
            context.error(span, message).help("write SOURCE:TARGET or SOURCE:TARGET:ro, like `./data:/data:ro`");
            return None;
        }
    };
    let to = target(context, to, span);
    let (mut read_only, mut propagation, mut good) = (false, Propagation::default(), true);
    for option in options.split(',').filter(|_| parts.len() == 3) {
        if let Some((_, value)) = PROPAGATIONS.iter().find(|(name, _)| *name == option) {
            propagation = *value;
            continue;
        }
        match option {
            "ro" => read_only = true,
            // The last three tell Docker Desktop how to cache; on Linux they never meant anything.
            "rw" | "cached" | "delegated" | "consistent" => {}
            "z" | "Z" => {
                context.not_supported(span, &format!("the volume option {option} (SELinux)"), "");
                good = false;
            }
            "nocopy" => {
                context.not_supported(span, "the volume option nocopy", "");
                good = false;
            }
            other => {
                let names = PROPAGATIONS.iter().map(|(name, _)| *name).chain(["ro", "rw"]);
                let help = match nearest(other, names) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => "write ro, rw, or a propagation like rslave".to_owned(),
                };
                context.error(span, format!("{} is not an option of a volume", quoted(other))).help(help);
                good = false;
            }
        }
    }
    let source = bind_source(context, source, span)?;
    good.then_some(Mount::Bind { source, target: to?, read_only, create_source: true, propagation })
}

fn bind_source(context: &mut Context<'_>, text: &str, span: Span) -> Option<PathBuf> {
    if text.is_empty() {
        context.error(span, "the volume's source is empty").help("write a folder of the host, like `./data`");
        return None;
    }
    if !text.starts_with(['.', '/', '~']) {
        let help = format!("{NAMED}: `./{text}`");
        context.not_supported(span, &format!("a named volume ({})", quoted(text)), &help);
        return None;
    }
    context.host_path(span, text)
}

fn long(context: &mut Context<'_>, node: &Node) -> Option<Mount> {
    let fields = context.fields(node, &VOLUME)?;
    if let Some(node) = fields.get("consistency") {
        context.text(node, "consistency");
    }
    let read_only = fields.get("read_only").and_then(|node| context.boolean(node, "read_only")).unwrap_or(false);
    let to = match fields.get("target") {
        Some(node) => context.text(node, "target").and_then(|text| target(context, text, node.span)),
        None => {
            context.error(node.span, "this volume has no `target`").help("add `target:` with a path in the container");
            None
        }
    };
    let Some(kind) = fields.get("type") else {
        context.error(node.span, "this volume has no `type`").help("add `type: bind` or `type: tmpfs`");
        return None;
    };
    match context.text(kind, "type")? {
        "bind" => long_bind(context, node.span, &fields, to, read_only),
        "tmpfs" => long_tmpfs(context, &fields, to, read_only),
        name @ ("volume" | "image" | "npipe" | "cluster") => {
            context.not_supported(kind.span, &format!("a volume of type {name}"), "use `type: bind` or `type: tmpfs`");
            None
        }
        _ => {
            context.choice(kind, "type", &[("bind", ()), ("tmpfs", ())]);
            None
        }
    }
}

fn misplaced(context: &mut Context<'_>, fields: &Fields<'_>, key: &str, kind: &str) {
    if let Some(entry) = fields.entry(key) {
        context
            .error(entry.key_span, format!("`{key}` has no meaning for a volume of type {kind}"))
            .help("remove it, or correct the `type`");
    }
}

fn long_bind(
    context: &mut Context<'_>,
    span: Span,
    fields: &Fields<'_>,
    to: Option<PathBuf>,
    read_only: bool,
) -> Option<Mount> {
    misplaced(context, fields, "tmpfs", "bind");
    let (mut propagation, mut create_source) = (None, false);
    if let Some(options) = fields.get("bind").and_then(|node| context.fields(node, &BIND)) {
        propagation = options.get("propagation").and_then(|node| context.choice(node, "propagation", &PROPAGATIONS));
        create_source =
            options.get("create_host_path").and_then(|node| context.boolean(node, "create_host_path")).unwrap_or(false);
    }
    let Some(source) = fields.get("source") else {
        context.error(span, "this bind mount has no `source`").help("add `source:` with a path on the host");
        return None;
    };
    let text = context.word(source, "source")?;
    // With `type: bind` a bare name is a path, unlike in the short form.
    let source = context.host_path(source.span, text)?;
    Some(Mount::Bind { source, target: to?, read_only, create_source, propagation: propagation.unwrap_or_default() })
}

fn long_tmpfs(context: &mut Context<'_>, fields: &Fields<'_>, to: Option<PathBuf>, read_only: bool) -> Option<Mount> {
    misplaced(context, fields, "source", "tmpfs");
    misplaced(context, fields, "bind", "tmpfs");
    let (mut size, mut mode) = (None, None);
    if let Some(options) = fields.get("tmpfs").and_then(|node| context.fields(node, &TMPFS)) {
        if let Some(node) = options.get("size") {
            let bytes = context.bytes(node, "size");
            size = bytes.and_then(|bytes| tmpfs_size(context, bytes, node.span));
        }
        if let Some(node) = options.get("mode") {
            let text = context.text(node, "mode")?;
            mode = context.parsed(node.span, text, "mode", "mode", units::mode(text));
        }
    }
    Some(Mount::Tmpfs { target: to?, size, mode, read_only, options: TmpfsOptions::default() })
}

/// Zero is the kernel's word for "no limit".
fn tmpfs_size(context: &mut Context<'_>, bytes: u64, span: Span) -> Option<u64> {
    if bytes != 0 && bytes < MIN_TMPFS {
        let help = format!("write at least {MIN_TMPFS}, or a unit: 64m");
        context.error(span, format!("a tmpfs of {bytes} bytes holds nothing")).help(help);
    }
    Some(bytes).filter(|bytes| *bytes > 0)
}

/// `TARGET[:OPTION,...]`.
fn tmpfs(context: &mut Context<'_>, text: &str, span: Span) -> Option<Mount> {
    let (path, options) = text.split_once(':').unwrap_or((text, ""));
    let (mut size, mut mode, mut read_only) = (None, None, false);
    let mut extra = TmpfsOptions::default();
    for option in options.split(',').filter(|option| !option.is_empty()) {
        let (name, value) = option.split_once('=').unwrap_or((option, ""));
        match name {
            "ro" => read_only = true,
            "rw" => read_only = false,
            "size" => {
                let bytes = context.parsed(span, value, "size", "size", units::bytes(value));
                size = bytes.and_then(|bytes| tmpfs_size(context, bytes, span));
            }
            "mode" => mode = context.parsed(span, value, "mode", "mode", units::mode(value)),
            "exec" | "noexec" => extra.exec = name == "exec",
            "suid" | "nosuid" => extra.suid = name == "suid",
            "nodev" => {}
            "uid" => extra.uid = owner(context, name, value, span),
            "gid" => extra.gid = owner(context, name, value, span),
            "nr_inodes" => extra.inodes = inodes(context, value, span),
            "dev" | "nr_blocks" => {
                let help = match name {
                    "dev" => "remove it, and list what the container needs under `devices`",
                    _ => "write `size` instead",
                };
                context.not_supported(span, &format!("the tmpfs option {name}"), help);
            }
            other => {
                let help = match nearest(other, TMPFS_OPTIONS) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("write one of {}", TMPFS_OPTIONS.join(", ")),
                };
                context.error(span, format!("{} is not an option of a tmpfs", quoted(other))).help(help);
            }
        }
    }
    Some(Mount::Tmpfs { target: target(context, path, span)?, size, mode, read_only, options: extra })
}

/// By number: the names are the container's.
fn owner(context: &mut Context<'_>, name: &str, value: &str, span: Span) -> Option<u32> {
    let id = value.parse::<u32>().ok().filter(|id| *id != u32::MAX);
    if id.is_none() {
        let message = format!("`{name}`: {} is not the number of a user or group", quoted(value));
        context.error(span, message).help("write a number below 4294967295");
    }
    id
}

fn inodes(context: &mut Context<'_>, value: &str, span: Span) -> Option<u64> {
    let count = value.parse::<u64>().ok().filter(|count| *count > 0);
    if count.is_none() {
        let message = format!("`nr_inodes`: {} is not a number of files", quoted(value));
        context.error(span, message).help("write a number above 0");
    }
    count
}
