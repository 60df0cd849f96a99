//! Single words with rules of their own: image names, users, host names, signals.
//!
//! Checked here so that a mistake is told with its place, before anything runs; the agent checks again what it must.

use super::{context::Context, keys::nearest, problem::quoted, units, yaml::Node};

/// `HOST_NAME_MAX` of Linux, gethostname(2).
const MAX_HOSTNAME: usize = 64;
/// Of a label, RFC 1123 section 2.1 and RFC 1035 section 2.3.1.
const MAX_HOSTNAME_LABEL: usize = 63;
const MAX_IMAGE_NAME: usize = 512;
const MAX_TAG: usize = 128;

/// signal(7), without the two that cannot be caught for stopping: SIGSTOP does not stop a container in this sense.
const SIGNALS: [&str; 33] = [
    "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "IOT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2", "PIPE", "ALRM",
    "TERM", "STKFLT", "CHLD", "CONT", "TSTP", "TTIN", "TTOU", "URG", "XCPU", "XFSZ", "VTALRM", "PROF", "WINCH", "IO",
    "POLL", "PWR", "SYS", "STOP",
];
/// SIGRTMAX on Linux.
const MAX_SIGNAL: u64 = 64;
/// SIGRTMIN+30 is SIGRTMAX as the C library counts.
const REAL_TIME_SIGNALS: u32 = 30;

/// A name with tag or digest, or an image id, by the grammar of the distribution's `reference` package.
pub(super) fn image(context: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = context.word(node, "image")?;
    if let Err((why, help)) = check_image(text) {
        context.error(node.span, format!("{} is not the name of an image: {why}", quoted(text))).help(help);
        return None;
    }
    Some(text.to_owned())
}

fn check_image(text: &str) -> Result<(), (&'static str, &'static str)> {
    const FORM: &str = "write name, name:tag or name@sha256:digest, like registry:5000/team/app:1.2";
    if text.len() > MAX_IMAGE_NAME {
        return Err(("it is too long", FORM));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => match text.strip_prefix("sha256:") {
            Some(_) => ("image", Some(text)),
            None => (text, None),
        },
    };
    if let Some(digest) = digest {
        let hex = digest.strip_prefix("sha256:").unwrap_or_default();
        if hex.len() != 64 || !hex.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte)) {
            return Err(("its digest is malformed", "a digest is sha256: and 64 lower-case hexadecimal digits"));
        }
    }
    let slash = name.rfind('/').map_or(0, |at| at + 1);
    let (path, tag) = match name[slash..].find(':') {
        Some(colon) => (&name[..slash + colon], Some(&name[slash + colon + 1..])),
        None => (name, None),
    };
    if let Some(tag) = tag {
        let good = !tag.is_empty()
            && tag.len() <= MAX_TAG
            && !tag.starts_with(['.', '-'])
            && tag.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !good {
            return Err(("its tag is malformed", "a tag has letters, digits, `_`, `.` and `-`, at most 128 of them"));
        }
    }
    let mut parts: Vec<&str> = path.split('/').collect();
    // The first part is a registry when it looks like a host: only there are capitals and a port allowed.
    if parts.len() > 1 && (parts[0].contains(['.', ':']) || parts[0] == "localhost") {
        let host = parts.remove(0);
        if host.starts_with(':') || !host.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':')) {
            return Err(("its registry is malformed", FORM));
        }
    }
    for part in parts {
        if part.chars().any(|c| c.is_ascii_uppercase()) {
            return Err(("it has upper-case letters", "write it in lower case"));
        }
        let edge = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        let inner = part.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !inner || !edge(part.chars().next()) || !edge(part.chars().next_back()) {
            return Err(("it has an empty part or a character that is not allowed", FORM));
        }
    }
    Ok(())
}

/// `user[:group]`; who that is, the container's own passwd says.
pub(super) fn user(context: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = context.word(node, "user")?;
    let parts: Vec<&str> = text.split(':').collect();
    let good = |part: &&str| {
        !part.is_empty() && !part.contains(|c: char| c.is_whitespace() || c.is_control() || matches!(c, '/' | ','))
    };
    if parts.len() > 2 || !parts.iter().all(good) {
        let help = "write USER or USER:GROUP, each a name or a number, like 1000:1000";
        context.error(node.span, format!("`user` cannot be {}", quoted(text))).help(help);
        return None;
    }
    // User ids are 32 bits, and the last one means "unchanged" to chown(2).
    if parts
        .iter()
        .any(|part| part.bytes().all(|b| b.is_ascii_digit()) && part.parse::<u32>().map_or(true, |id| id == u32::MAX))
    {
        let help = "write an id below 4294967295";
        context.error(node.span, format!("`user`: {} is out of range", quoted(text))).help(help);
        return None;
    }
    Some(text.to_owned())
}

pub(super) fn hostname(context: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = context.word(node, "hostname")?;
    let label = |part: &str| {
        (1..=MAX_HOSTNAME_LABEL).contains(&part.len())
            && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
            && !part.starts_with('-')
            && !part.ends_with('-')
    };
    if text.len() > MAX_HOSTNAME || !text.split('.').all(label) {
        let help = "write letters, digits and `-`, at most 63 between two dots and 64 in all";
        context.error(node.span, format!("{} is not a host name", quoted(text))).help(help);
        return None;
    }
    Some(text.to_owned())
}

pub(super) fn stop_signal(context: &mut Context<'_>, node: &Node) -> Option<String> {
    let text = context.word(node, "stop_signal")?;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let number = units::integer(text);
    if number.is_some_and(|number| (1..=i128::from(MAX_SIGNAL)).contains(&number))
        || SIGNALS.contains(&name)
        || is_real_time(name)
    {
        return Some(text.to_owned());
    }
    let help = match nearest(name, SIGNALS).filter(|_| number.is_none()) {
        Some(near) => format!("did you mean `SIG{near}`?"),
        None => format!("write a name like SIGTERM or SIGINT, or a number from 1 to {MAX_SIGNAL}"),
    };
    context.error(node.span, format!("{} is not a signal", quoted(text))).help(help);
    None
}

fn is_real_time(name: &str) -> bool {
    let offset = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(""), _) | (_, Some("")) => return true,
        (Some(rest), _) => rest.strip_prefix('+'),
        (_, Some(rest)) => rest.strip_prefix('-'),
        _ => None,
    };
    offset.and_then(|offset| offset.parse::<u32>().ok()).is_some_and(|offset| offset <= REAL_TIME_SIGNALS)
}
