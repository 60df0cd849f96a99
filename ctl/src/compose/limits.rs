//! Limits that Compose has on the service itself beside `deploy.resources`, and what control groups know beyond.

use std::{collections::BTreeMap, ops::RangeInclusive, path::PathBuf};

use roster_proto::spec::{BlockIo, Controls, MemorySwap, Resources, rules};

use super::{
    context::{Context, Fields, clean},
    deploy,
    keys::{BLKIO, BLKIO_RATE, BLKIO_WEIGHT, STORAGE_OPT, Section},
    problem::quoted,
    units,
    yaml::Node,
};

/// The kernel takes 200 since 5.8; Docker takes this.
const MAX_SWAPPINESS: u64 = 100;
/// Bytes or operations a second.
const RATES: RangeInclusive<u64> = 1..=i64::MAX as u64;

/// Adds to what `deploy.resources` said.
pub(super) fn read(context: &mut Context<'_>, service: &Fields<'_>, resources: &mut Resources) {
    let limits = &mut resources.limits;
    one_of_two(context, service, "cpus", "limits.cpus", &mut limits.nano_cpus, deploy::cpus);
    one_of_two(context, service, "mem_limit", "limits.memory", &mut limits.memory, deploy::memory);
    one_of_two(context, service, "pids_limit", "limits.pids", &mut limits.pids, deploy::pids);
    let reserved = &mut resources.reservations.memory;
    one_of_two(context, service, "mem_reservation", "reservations.memory", reserved, deploy::memory);
    if let Some(node) = service.get("mem_reservation")
        && resources.limits.memory.is_some_and(|limit| Some(limit) < resources.reservations.memory)
    {
        context.error(node.span, "more memory is reserved than the limit allows").help("reserve at most the limit");
    }
    resources.limits.disk = service.get("storage_opt").and_then(|node| disk(context, node));
    resources.controls = controls(context, service, resources);
}

fn disk(context: &mut Context<'_>, node: &Node) -> Option<u64> {
    let fields = context.fields(node, &STORAGE_OPT)?;
    let Some(node) = fields.get("size") else {
        context.error(node.span, "`storage_opt` says nothing").help("write `storage_opt: {size: 1g}`, or remove it");
        return None;
    };
    let size = context.bytes(node, "size")?;
    context.fit(node.span, rules::disk(size)).map(|()| size)
}

/// The same, said at two places.
fn one_of_two(
    context: &mut Context<'_>,
    service: &Fields<'_>,
    key: &str,
    other: &str,
    value: &mut Option<u64>,
    read: impl Fn(&mut Context<'_>, &Node, &str) -> Option<u64>,
) {
    let Some(node) = service.get(key) else { return };
    let Some(said) = read(context, node, key) else { return };
    if value.is_some_and(|value| value != said) {
        let message = format!("`{key}` and `deploy.resources.{other}` say different things");
        context.error(node.span, message).help("keep one of the two");
    }
    *value = Some(said);
}

fn controls(context: &mut Context<'_>, service: &Fields<'_>, resources: &Resources) -> Controls {
    let number = |context: &mut Context<'_>, key: &str, range| {
        service.get(key).and_then(|node| context.integer(node, key, range))
    };
    let swappiness = match service.get("mem_swappiness") {
        Some(node) if context.text(node, "mem_swappiness") == Some("-1") => None,
        _ => number(context, "mem_swappiness", 0..=MAX_SWAPPINESS),
    };
    let shares = number(context, "cpu_shares", 0..=*rules::CPU_SHARES.end()).filter(|shares| *shares != 0);
    let oom_kill_disable =
        service.get("oom_kill_disable").and_then(|node| context.boolean(node, "oom_kill_disable")).unwrap_or(false);
    if let Some(entry) =
        service.entry("oom_kill_disable").filter(|_| oom_kill_disable && resources.limits.memory.is_none())
    {
        context
            .warning(
                entry.key_span,
                "`oom_kill_disable` without a limit of memory: the container can take all of the node's",
            )
            .help("add `mem_limit`");
    }
    Controls {
        memory_swap: memory_swap(context, service, resources.limits.memory),
        swappiness: swappiness.and_then(|percent| u32::try_from(percent).ok()),
        oom_kill_disable,
        cpu_shares: shares.map(|shares| shares.max(*rules::CPU_SHARES.start())),
        cpu_period: microseconds(context, service, resources, "cpu_period", rules::CPU_PERIODS),
        cpu_quota: microseconds(context, service, resources, "cpu_quota", rules::MIN_CPU_QUOTA..=i64::MAX as u64),
        cpuset: service.get("cpuset").and_then(|node| {
            let text = context.word(node, "cpuset")?;
            context.fit(node.span, rules::cpuset(text)).map(|()| text.to_owned())
        }),
        block: service.get("blkio_config").map(|node| block(context, node)).unwrap_or_default(),
    }
}

/// Memory and swap together; -1 is no limit, 0 as if it were not there.
fn memory_swap(context: &mut Context<'_>, service: &Fields<'_>, limit: Option<u64>) -> Option<MemorySwap> {
    const KEY: &str = "memswap_limit";
    let node = service.get(KEY)?;
    let swap = match context.text(node, KEY)? {
        "-1" => MemorySwap::Unlimited,
        _ => MemorySwap::Bytes(context.bytes(node, KEY).filter(|bytes| *bytes > 0)?),
    };
    let Some(limit) = limit else {
        let message = "`memswap_limit` counts memory and swap together and needs a limit of memory";
        context.error(node.span, message).help("add `mem_limit`");
        return None;
    };
    if matches!(swap, MemorySwap::Bytes(bytes) if bytes < limit) {
        let message = "`memswap_limit` counts memory and swap together and is less than the limit of memory";
        context.error(node.span, message).help("write at least the limit of memory: the same means no swap");
        return None;
    }
    Some(swap)
}

/// A number of microseconds or a duration; 0 and -1 as if it were not there.
fn microseconds(
    context: &mut Context<'_>,
    service: &Fields<'_>,
    resources: &Resources,
    key: &str,
    range: RangeInclusive<u64>,
) -> Option<u64> {
    let node = service.get(key)?;
    let text = context.text(node, key)?;
    let value = match units::integer(text) {
        Some(0 | -1) => return None,
        Some(value) => u64::try_from(value).ok(),
        None => units::duration(text).ok().and_then(|duration| u64::try_from(duration.as_micros()).ok()),
    };
    let Some(value) = value.filter(|value| range.contains(value)) else {
        let least = range.start();
        let help =
            format!("write microseconds, or a duration like 50ms, of at least {least}us and at most 1s of a period");
        context.error(node.span, format!("`{key}` cannot be {}", quoted(text))).help(help);
        return None;
    };
    if resources.limits.nano_cpus.is_some() {
        let message = format!("`{key}` and `cpus` both say how much of the processors may be used");
        context.error(node.span, message).help(format!("remove `{key}`, or `cpus`"));
    }
    Some(value)
}

fn block(context: &mut Context<'_>, node: &Node) -> BlockIo {
    let Some(fields) = context.fields(node, &BLKIO) else { return BlockIo::default() };
    let weights = u64::from(*rules::WEIGHTS.start())..=u64::from(*rules::WEIGHTS.end());
    let weight = |context: &mut Context<'_>, node: &Node, key: &str| {
        let weight = context.integer(node, key, weights.clone())?;
        u16::try_from(weight).ok()
    };
    let bytes = |context: &mut Context<'_>, node: &Node, key: &str| {
        let bytes = context.bytes(node, key)?;
        if bytes == 0 {
            context.error(node.span, format!("`{key}`: nothing could ever be done")).help("write more than 0");
        }
        Some(bytes)
    };
    let operations = |context: &mut Context<'_>, node: &Node, key: &str| context.integer(node, key, RATES);
    BlockIo {
        weight: fields.get("weight").and_then(|node| weight(context, node, "weight")),
        device_weights: by_device(context, &fields, "weight_device", &BLKIO_WEIGHT, "weight", weight),
        read_bps: by_device(context, &fields, "device_read_bps", &BLKIO_RATE, "rate", bytes),
        write_bps: by_device(context, &fields, "device_write_bps", &BLKIO_RATE, "rate", bytes),
        read_iops: by_device(context, &fields, "device_read_iops", &BLKIO_RATE, "rate", operations),
        write_iops: by_device(context, &fields, "device_write_iops", &BLKIO_RATE, "rate", operations),
    }
}

fn by_device<T>(
    context: &mut Context<'_>,
    fields: &Fields<'_>,
    key: &str,
    section: &Section,
    value_key: &str,
    read: impl Fn(&mut Context<'_>, &Node, &str) -> Option<T>,
) -> BTreeMap<PathBuf, T> {
    let mut all = BTreeMap::new();
    let items = fields.get(key).and_then(|node| context.list(node, key)).unwrap_or_default();
    for item in items {
        let Some(fields) = context.fields(item, section) else { continue };
        let (Some(path), Some(value)) = (fields.get("path"), fields.get(value_key)) else {
            let message = format!("an item of `{key}` needs `path` and `{value_key}`");
            context.error(item.span, message).help(format!("write `- {{path: /dev/sda, {value_key}: ...}}`"));
            continue;
        };
        let Some(text) = context.text(path, "path") else { continue };
        let device = if text.starts_with('/') { clean(text.as_ref()) } else { text.into() };
        let checked = context.fit(path.span, rules::host_path(&device));
        if let (Some(value), Some(())) = (read(context, value, value_key), checked)
            && all.insert(device, value).is_some()
        {
            context.error(path.span, format!("{} is there twice", quoted(text))).help("remove one of the two");
        }
    }
    all
}
