//! `ports`, short form (`[IP:][HOST:]CONTAINER[/PROTOCOL]`, ranges) and long form.

use std::{
    collections::HashMap,
    net::{IpAddr, Ipv4Addr},
};

use roster_proto::spec::{Port, Protocol};

use super::{
    context::Context,
    keys::{PORT, nearest},
    problem::{Location, Span, quoted},
    yaml::{Node, Value},
};

/// Ports of one service. Each is a rule in the packet filter and, published, taken on every host.
const MAX_PORTS: usize = 1000;

pub(super) type Placed = (Port, Span);

/// The address a port is taken on, and by which of all.
type Taken = (Option<Ipv4Addr>, usize);

pub(super) fn read(context: &mut Context<'_>, node: &Node) -> Vec<Placed> {
    let mut ports = Vec::new();
    for item in context.list(node, "ports").unwrap_or_default() {
        let found = match &item.value {
            Value::Mapping(_) => long(context, item).into_iter().collect(),
            _ => match context.item(item, "ports") {
                Some(text) => short(context, text.trim(), item.span),
                None => Vec::new(),
            },
        };
        ports.extend(found.into_iter().map(|port| (port, item.span)));
        if ports.len() > MAX_PORTS {
            context.error(item.span, format!("more than {MAX_PORTS} ports for one service")).help("publish fewer");
            break;
        }
    }
    ports
}

/// Refuses two ports of one file that want the same place on a host.
pub(super) fn check_published(context: &mut Context<'_>, ports: &[(String, Placed)]) {
    // By what the kernel binds; an address and "all addresses" get in each other's way too.
    let mut taken: HashMap<(u16, Protocol), Vec<Taken>> = HashMap::new();
    for (index, (_, (port, span))) in ports.iter().enumerate() {
        let Some(published) = port.published else { continue };
        let same = taken.entry((published, port.protocol)).or_default();
        let clash = same.iter().find(|(ip, _)| ip.is_none() || port.host_ip.is_none() || *ip == port.host_ip);
        if let Some((_, first)) = clash {
            let (service, (_, first)) = &ports[*first];
            let first: Location = context.source.location(first.start);
            context
                .error(*span, format!("the host's port {published}/{} is published twice", name(port.protocol)))
                .related(format!("service {service} publishes it at"), first)
                .help("publish one of the two elsewhere");
        }
        same.push((port.host_ip, index));
    }
}

fn name(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn short(context: &mut Context<'_>, text: &str, span: Span) -> Vec<Port> {
    let (addresses, protocol) = match text.split_once('/') {
        Some((addresses, name)) => (addresses, protocol(context, name, span)),
        None => (text, Some(Protocol::Tcp)),
    };
    let (rest, target) = match addresses.rsplit_once(':') {
        Some((rest, target)) => (Some(rest), target),
        None => (None, addresses),
    };
    let (host, published) = match rest {
        Some(rest) => match rest.rsplit_once(':') {
            Some((host, published)) => (Some(host), Some(published)),
            None if rest.contains('.') => {
                let message = format!("{} has no port of the host", quoted(text));
                context
                    .error(span, message)
                    .help(format!("write {rest}:8080:{target}, or {rest}::{target} for any free port"));
                return Vec::new();
            }
            None => (None, Some(rest)),
        },
        None => (None, None),
    };
    let host_ip = match host.map(|host| host_ip(context, host, span)) {
        Some(None) => return Vec::new(),
        Some(Some(ip)) => ip,
        None => None,
    };
    let Some(protocol) = protocol else { return Vec::new() };
    let published = published.filter(|published| !published.is_empty() && *published != "0");
    let Some(target) = range(context, target, span) else { return Vec::new() };
    let count = target.1 - target.0;
    let published = match published.map(|published| range(context, published, span)) {
        Some(None) => return Vec::new(),
        Some(Some((first, last))) if last - first != count => {
            if count == 0 {
                context.not_supported(span, "choosing a host port out of a range", "give one host port, or none");
            } else {
                context
                    .error(span, "the two port ranges have different lengths")
                    .help("write ranges of equal length, like 8000-8005:9000-9005");
            }
            return Vec::new();
        }
        Some(Some((first, _))) => Some(first),
        None => None,
    };
    (0..=count)
        .take(MAX_PORTS + 1)
        .map(|step| Port { target: target.0 + step, published: published.map(|first| first + step), host_ip, protocol })
        .collect()
}

fn range(context: &mut Context<'_>, text: &str, span: Span) -> Option<(u16, u16)> {
    let (first, last) = text.split_once('-').unwrap_or((text, text));
    let number = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
        true => text.parse::<u16>().ok().filter(|port| *port > 0),
        false => None,
    };
    match (number(first), number(last)) {
        (Some(first), Some(last)) if first <= last => Some((first, last)),
        (Some(_), Some(_)) => {
            let help = "write the lower port first";
            context.error(span, format!("the port range {} runs backwards", quoted(text))).help(help);
            None
        }
        _ => {
            context
                .error(span, format!("{} is not a port", quoted(text)))
                .help("write [IP:][HOST:]CONTAINER[/udp] with ports from 1 to 65535, like \"8080:80\"");
            None
        }
    }
}

/// `Some(None)`: on all addresses.
fn host_ip(context: &mut Context<'_>, text: &str, span: Span) -> Option<Option<Ipv4Addr>> {
    match text.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>() {
        Ok(IpAddr::V4(ip)) => Some(Some(ip).filter(|ip| !ip.is_unspecified())),
        Ok(IpAddr::V6(_)) => {
            context.not_supported(span, "publishing on an IPv6 address", "give an IPv4 address, or none for all");
            None
        }
        Err(_) => {
            context
                .error(span, format!("{} is not an address of the host", quoted(text)))
                .help("give an IPv4 address like 127.0.0.1, or none for all");
            None
        }
    }
}

fn protocol(context: &mut Context<'_>, text: &str, span: Span) -> Option<Protocol> {
    match text.to_ascii_lowercase().as_str() {
        "tcp" => Some(Protocol::Tcp),
        "udp" => Some(Protocol::Udp),
        "sctp" => {
            context.not_supported(span, "the protocol sctp", "use tcp or udp");
            None
        }
        other => {
            let help = match nearest(other, ["tcp", "udp"]) {
                Some(near) => format!("did you mean `{near}`?"),
                None => "write tcp or udp".to_owned(),
            };
            context.error(span, format!("{} is not a protocol", quoted(text))).help(help);
            None
        }
    }
}

fn long(context: &mut Context<'_>, node: &Node) -> Option<Port> {
    let fields = context.fields(node, &PORT)?;
    // Both ways of publishing are the same while a published port answers on every address of the task's own host.
    if let Some(node) = fields.get("mode") {
        context.choice(node, "mode", &[("ingress", ()), ("host", ())]);
    }
    for key in ["name", "app_protocol"] {
        if let Some(node) = fields.get(key) {
            context.text(node, key);
        }
    }
    let protocol = match fields.get("protocol") {
        Some(node) => context.text(node, "protocol").and_then(|text| protocol(context, text, node.span)),
        None => Some(Protocol::Tcp),
    };
    let host_ip = match fields.get("host_ip") {
        Some(node) => context.text(node, "host_ip").and_then(|text| host_ip(context, text, node.span)),
        None => Some(None),
    };
    let published = match fields.get("published") {
        Some(node) => match context.text(node, "published")? {
            text if text.contains('-') => {
                let help = "give one port, or leave `published` out";
                context.not_supported(node.span, "choosing a host port out of a range", help);
                return None;
            }
            "" | "0" => None,
            text => Some(range(context, text, node.span)?.0),
        },
        None => None,
    };
    let Some(target) = fields.get("target") else {
        context.error(node.span, "this port has no `target`").help("add `target:` with the port in the container");
        return None;
    };
    let target = context.integer(target, "target", 1..=65535).and_then(|target| u16::try_from(target).ok())?;
    Some(Port { target, published, host_ip: host_ip?, protocol: protocol? })
}
