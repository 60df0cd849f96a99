//! `ulimits`, `sysctls`, `shm_size` and `oom_score_adj`.

use std::collections::BTreeMap;

use roster_proto::spec::{IpcMode, KernelSettings, NetworkMode, Ulimit, rules};

use super::{
    context::{Context, Fields},
    keys::{ULIMIT, nearest},
    problem::quoted,
    units,
    yaml::{Node, Value},
};

pub(super) fn read(
    context: &mut Context<'_>,
    fields: &Fields<'_>,
    network: NetworkMode,
    ipc: &IpcMode,
) -> KernelSettings {
    KernelSettings {
        ulimits: fields.get("ulimits").map(|node| ulimits(context, node)).unwrap_or_default(),
        sysctls: fields.get("sysctls").map(|node| sysctls(context, node, network, ipc)).unwrap_or_default(),
        shm_size: shm_size(context, fields, ipc),
        oom_score_adj: fields.get("oom_score_adj").and_then(|node| oom_score_adj(context, node)),
    }
}

fn ulimits(context: &mut Context<'_>, node: &Node) -> BTreeMap<String, Ulimit> {
    let mut ulimits = BTreeMap::new();
    for entry in context.mapping(node, "`ulimits`").unwrap_or_default() {
        let both = match &entry.value.value {
            Value::Mapping(_) => context.fields(&entry.value, &ULIMIT).and_then(|fields| {
                let mut one = |key| match fields.get(key) {
                    Some(node) => limit(context, node, key),
                    None => {
                        let message = format!("the ulimit {} has no `{key}` limit", quoted(&entry.key));
                        context
                            .error(entry.value.span, message)
                            .help("write both, `soft` and `hard`, or a single number");
                        None
                    }
                };
                let (soft, hard) = (one("soft"), one("hard"));
                Some(Ulimit { soft: soft?, hard: hard? })
            }),
            _ => limit(context, &entry.value, &entry.key).map(|limit| Ulimit { soft: limit, hard: limit }),
        };
        let Some(both) = both else { continue };
        let checked = rules::ulimit(&entry.key, both).map_err(|unfit| {
            match nearest(&entry.key, rules::ULIMITS).filter(|near| *near != entry.key) {
                Some(near) => rules::Unfit { help: format!("did you mean `{near}`?"), ..unfit },
                None => unfit,
            }
        });
        if context.fit(entry.key_span, checked).is_some() {
            ulimits.insert(entry.key.clone(), both);
        }
    }
    ulimits
}

/// -1 is no limit.
fn limit(context: &mut Context<'_>, node: &Node, key: &str) -> Option<Option<u64>> {
    let text = context.text(node, key)?;
    match units::integer(text) {
        Some(-1) => Some(None),
        Some(limit @ 0..) if limit <= i64::MAX.into() => u64::try_from(limit).ok().map(Some),
        _ => {
            let message = format!("`{key}`: {} is no limit", quoted(text));
            let help = format!("write a whole number from 0 to {}, or -1 for none", i64::MAX);
            context.error(node.span, message).help(help);
            None
        }
    }
}

fn sysctls(context: &mut Context<'_>, node: &Node, network: NetworkMode, ipc: &IpcMode) -> BTreeMap<String, String> {
    let mut sysctls = BTreeMap::new();
    for (name, value, span) in context.pairs(node, "sysctls") {
        let Some(value) = value else {
            let message = format!("the sysctl {} has no value", quoted(&name));
            context.error(span, message).help("write `name: value`, or `- name=value`");
            continue;
        };
        if context.fit(span, rules::sysctl(&name, value, network, ipc)).is_some() {
            sysctls.insert(name, value.to_owned());
        }
    }
    sysctls
}

fn shm_size(context: &mut Context<'_>, fields: &Fields<'_>, ipc: &IpcMode) -> Option<u64> {
    let node = fields.get("shm_size")?;
    let bytes = context.bytes(node, "shm_size")?;
    if *ipc != IpcMode::Private {
        let message = "`shm_size` has no effect: the container has no /dev/shm of its own";
        context.error(node.span, message).help("remove `shm_size`, or `ipc`");
        return None;
    }
    if bytes < rules::MIN_SHM {
        let message = format!("`shm_size`: {bytes} bytes hold nothing");
        context.error(node.span, message).help("write at least 4096, or a unit: 64m");
        return None;
    }
    Some(bytes)
}

fn oom_score_adj(context: &mut Context<'_>, node: &Node) -> Option<i32> {
    let text = context.text(node, "oom_score_adj")?;
    let score = units::integer(text).and_then(|score| i32::try_from(score).ok());
    let score = score.filter(|score| rules::OOM_SCORES.contains(score));
    if score.is_none() {
        let message = format!("`oom_score_adj` cannot be {}", quoted(text));
        context.error(node.span, message).help("write a whole number from -1000 (never killed) to 1000");
    }
    score
}
