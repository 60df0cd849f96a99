//! What a container may do beyond, or less than, the default: `privileged`, `cap_add`, `security_opt`, `devices` and
//! their like.

use std::path::PathBuf;

use roster_proto::{
    id::ServiceName,
    seccomp::Profile,
    spec::{Device, IpcMode, PidMode, Rights, Seccomp, rules},
};

use super::{
    context::{Context, Fields, clean},
    files,
    keys::{DEVICE, nearest},
    problem::{Span, quoted},
    yaml::{Node, Value},
};

const SECURITY_OPTIONS: [&str; 5] = ["no-new-privileges", "seccomp", "apparmor", "label", "systempaths"];
/// Docker's default.
const ALL_ACCESS: &str = "rwm";

pub(super) fn read(context: &mut Context<'_>, fields: &Fields<'_>) -> Rights {
    let mut rights = Rights {
        privileged: fields.get("privileged").and_then(|node| context.boolean(node, "privileged")).unwrap_or(false),
        group_add: words(context, fields, "group_add", |text| rules::group(text).map(|()| text.to_owned())),
        cap_add: words(context, fields, "cap_add", rules::capability).into_iter().collect(),
        cap_drop: words(context, fields, "cap_drop", rules::capability).into_iter().collect(),
        device_rules: words(context, fields, "device_cgroup_rules", |text| {
            rules::device_rule(text).map(|()| text.to_owned())
        }),
        ipc: ipc(context, fields),
        pid: pid(context, fields),
        ..Rights::default()
    };
    no_user_namespace(context, fields);
    if let Some(node) = fields.get("security_opt") {
        for item in context.list(node, "security_opt").unwrap_or_default() {
            if let Some(text) = context.item(item, "security_opt") {
                security_option(context, &mut rights, text, item.span);
            }
        }
    }
    if let Some(node) = fields.get("devices") {
        let items = context.list(node, "devices").unwrap_or_default();
        rights.devices = items.iter().filter_map(|item| device(context, item)).collect();
    }
    check_capabilities(context, fields, &rights);
    rights
}

fn words(
    context: &mut Context<'_>,
    fields: &Fields<'_>,
    key: &str,
    check: impl Fn(&str) -> Result<String, rules::Unfit>,
) -> Vec<String> {
    let Some(node) = fields.get(key) else { return Vec::new() };
    let items = context.list(node, key).unwrap_or_default();
    items
        .iter()
        .filter_map(|item| {
            let checked = check(context.item(item, key)?);
            let near = |unfit: rules::Unfit| match nearest_capability(key, &item.value) {
                Some(near) => rules::Unfit { help: format!("did you mean `{near}`?"), ..unfit },
                None => unfit,
            };
            context.fit(item.span, checked.map_err(near))
        })
        .collect()
}

fn nearest_capability(key: &str, value: &Value) -> Option<&'static str> {
    match value {
        Value::Scalar { text, .. } if key.starts_with("cap_") => {
            let upper = text.to_ascii_uppercase();
            nearest(upper.strip_prefix("CAP_").unwrap_or(&upper), rules::CAPABILITIES)
        }
        _ => None,
    }
}

/// What has no effect is most likely a mistake.
fn check_capabilities(context: &mut Context<'_>, fields: &Fields<'_>, rights: &Rights) {
    for (key, names) in [("cap_add", &rights.cap_add), ("cap_drop", &rights.cap_drop)] {
        if let Some(entry) = fields.entry(key).filter(|_| rights.privileged && !names.is_empty()) {
            let message = format!("`{key}` has no effect: a privileged container has every capability");
            context.warning(entry.key_span, message).help(format!("remove `{key}`, or `privileged`"));
        }
    }
    let both: Vec<&str> = rights.cap_add.intersection(&rights.cap_drop).map(String::as_str).collect();
    if let Some(entry) = fields.entry("cap_drop").filter(|_| !both.is_empty()) {
        let message = format!("both added and dropped: {}", both.join(", "));
        context.error(entry.key_span, message).help("remove it from `cap_add` or from `cap_drop`");
    }
}

/// `NAME=VALUE`, or with a colon, as Docker long had it.
fn security_option(context: &mut Context<'_>, rights: &mut Rights, text: &str, span: Span) {
    let (name, value) = match text.split_once('=').or_else(|| text.split_once(':')) {
        Some((name, value)) => (name, value),
        None => (text, ""),
    };
    let invalid = |context: &mut Context<'_>, help: &str| {
        context.error(span, format!("`security_opt` cannot be {}", quoted(text))).help(help);
    };
    match (name, value) {
        ("no-new-privileges", "" | "true") => rights.no_new_privileges = Some(true),
        ("no-new-privileges", "false") => rights.no_new_privileges = Some(false),
        ("no-new-privileges", _) => invalid(context, "write no-new-privileges:true or no-new-privileges:false"),
        ("seccomp" | "apparmor", "") => invalid(context, "write a value after it, like seccomp=profile.json"),
        ("seccomp", "unconfined") => rights.seccomp = Seccomp::Unconfined,
        ("seccomp", "builtin") => rights.seccomp = Seccomp::Default,
        ("seccomp", path) => rights.seccomp = profile(context, path, span).unwrap_or_default(),
        ("apparmor", profile) => {
            rights.apparmor = context.fit(span, rules::apparmor(profile)).map(|()| profile.to_owned());
        }
        ("systempaths", "unconfined") => rights.unmasked = true,
        ("systempaths", _) => invalid(context, "write systempaths=unconfined, or remove it"),
        // What every container has here.
        ("label", "disable") => {}
        ("label", _) => {
            let help = "remove it, or write label=disable: Roster gives containers no SELinux labels";
            context.not_supported(span, "an SELinux label of a container", help);
        }
        (other, _) => {
            let help = match nearest(other, SECURITY_OPTIONS) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("write one of {}", SECURITY_OPTIONS.join(", ")),
            };
            invalid(context, &help);
        }
    }
}

/// The profile itself goes along: the nodes do not have the file.
fn profile(context: &mut Context<'_>, path: &str, span: Span) -> Option<Seccomp> {
    let path = context.host_path(span, path)?;
    let name = files::shown(&path);
    let text = match files::bytes(&path).map(String::from_utf8) {
        Ok(Ok(text)) => text,
        Ok(Err(_)) => {
            let message = format!("the seccomp profile {name} is not text in UTF-8");
            context.error(span, message).help("name a profile in Docker's format, which is JSON");
            return None;
        }
        Err(error) => {
            let message = format!("cannot read the seccomp profile {name}: {error}");
            context.error(span, message).help("check the path, which begins at the spec's folder, or write unconfined");
            return None;
        }
    };
    match Profile::compact(&text) {
        Ok(profile) => Some(Seccomp::Profile(profile)),
        Err(why) => {
            let message = format!("the seccomp profile {name} cannot be used: {why}");
            context.error(span, message).help("name a profile in Docker's format");
            None
        }
    }
}

/// `HOST[:CONTAINER[:ACCESS]]`, or a mapping.
fn device(context: &mut Context<'_>, node: &Node) -> Option<Device> {
    let (source, target, access) = match &node.value {
        Value::Mapping(_) => {
            let fields = context.fields(node, &DEVICE)?;
            let mut text = |key| fields.get(key).and_then(|node| context.word(node, key)).map(str::to_owned);
            let (source, target, access) = (text("source"), text("target"), text("permissions"));
            let Some(source) = source else {
                context.error(node.span, "this device has no `source`").help("add `source:` with a path on the node");
                return None;
            };
            (source.clone(), target.unwrap_or(source), access.unwrap_or_else(|| ALL_ACCESS.to_owned()))
        }
        _ => {
            let text = context.item(node, "devices")?;
            let parts: Vec<&str> = text.split(':').collect();
            let (source, target, access) = match parts[..] {
                [source] => (source, source, ALL_ACCESS),
                // Docker takes the second for an access where it is one.
                [source, access] if rules::device_access(access).is_ok() => (source, source, access),
                [source, target] => (source, target, ALL_ACCESS),
                [source, target, access] => (source, target, access),
                _ => {
                    let message = format!("{} is not a device", quoted(text));
                    context
                        .error(node.span, message)
                        .help("write HOST[:CONTAINER[:ACCESS]], like /dev/snd or /dev/sda:/dev/xvda:r");
                    return None;
                }
            };
            (source.to_owned(), target.to_owned(), access.to_owned())
        }
    };
    if !source.starts_with('/') && source.contains('=') {
        let help = "name the devices by their paths, like /dev/dri";
        context.not_supported(node.span, "a device by its CDI name", help);
        return None;
    }
    let path = |text: &str| -> PathBuf { if text.starts_with('/') { clean(text.as_ref()) } else { text.into() } };
    let (source, target) = (path(&source), path(&target));
    for path in [&source, &target] {
        context.fit(node.span, rules::host_path(path))?;
    }
    context.fit(node.span, rules::device_access(&access))?;
    Some(Device { source, target, access })
}

fn ipc(context: &mut Context<'_>, fields: &Fields<'_>) -> IpcMode {
    // Every one can be shared, by a service of the same stack.
    let modes = [
        ("private", IpcMode::Private),
        ("shareable", IpcMode::Private),
        ("none", IpcMode::None),
        ("host", IpcMode::Host),
    ];
    let Some(node) = fields.get("ipc") else { return IpcMode::Private };
    if let Some(service) = is_of_another(context, node, "ipc", "IPC namespace") {
        return service.map_or(IpcMode::Private, IpcMode::Service);
    }
    context.choice(node, "ipc", &modes).unwrap_or_default()
}

fn pid(context: &mut Context<'_>, fields: &Fields<'_>) -> PidMode {
    let Some(node) = fields.get("pid") else { return PidMode::Private };
    if let Some(service) = is_of_another(context, node, "pid", "processes") {
        return service.map_or(PidMode::Private, PidMode::Service);
    }
    context.choice(node, "pid", &[("host", PidMode::Host)]).unwrap_or_default()
}

/// `service:NAME`; what else asks for another's is told. `None`: it asks for nobody's.
fn is_of_another(context: &mut Context<'_>, node: &Node, key: &str, what: &str) -> Option<Option<ServiceName>> {
    let Value::Scalar { text, .. } = &node.value else { return None };
    if let Some(name) = text.strip_prefix("service:") {
        let named = ServiceName::new(name).map_err(|invalid| {
            let message = format!("`{key}`: the service's name {} is not allowed", quoted(name));
            context.error(node.span, message).help(invalid.rule);
        });
        return Some(named.ok());
    }
    if text.starts_with("container:") {
        let message = format!("`{key}: {text}`, sharing the {what} of a container by its name,");
        let help = format!("share them with a service of this file: `{key}: service:NAME`");
        context.not_supported(node.span, &message, &help);
        return Some(None);
    }
    None
}

/// Where it is said whose namespaces are shared.
pub(super) fn sharing_span(fields: &Fields<'_>) -> Option<Span> {
    let shares = |node: &&Node| matches!(&node.value, Value::Scalar { text, .. } if text.starts_with("service:"));
    ["ipc", "pid"].into_iter().filter_map(|key| fields.get(key)).find(shares).map(|node| node.span)
}

/// Without user namespaces, which is what `host` asks for.
fn no_user_namespace(context: &mut Context<'_>, fields: &Fields<'_>) {
    let Some(node) = fields.get("userns_mode") else { return };
    match context.text(node, "userns_mode") {
        Some("host" | "") | None => {}
        Some(other) => {
            let what = format!("the user namespace {}", quoted(other));
            context.not_supported(
                node.span,
                &what,
                "remove `userns_mode`, or write `host`: containers use the host's ids",
            );
        }
    }
}
