//! `healthcheck`. A zero means "the image's value, then the default", as in Docker's API.

use std::time::Duration;

use roster_proto::spec::{HealthTest, Healthcheck};

use super::{
    context::{Context, Fields},
    keys::HEALTHCHECK,
    problem::quoted,
    yaml::{Node, Value},
};

/// Docker refuses shorter ones too: a probe takes longer than that to start.
const MIN_DURATION: Duration = Duration::from_millis(1);
const MAX_RETRIES: u64 = 1_000_000;

pub(super) fn read(context: &mut Context<'_>, node: &Node) -> Option<Healthcheck> {
    let fields = context.fields(node, &HEALTHCHECK)?;
    let disabled = fields.get("disable").and_then(|node| context.boolean(node, "disable")).unwrap_or(false);
    let given = fields.get("test").and_then(|node| test(context, node));
    Some(Healthcheck {
        test: if disabled { HealthTest::Disabled } else { given.unwrap_or_default() },
        interval: duration(context, &fields, "interval"),
        timeout: duration(context, &fields, "timeout"),
        retries: fields
            .get("retries")
            .and_then(|node| context.integer(node, "retries", 0..=MAX_RETRIES))
            .and_then(|retries| u32::try_from(retries).ok())
            .filter(|retries| *retries > 0),
        start_period: duration(context, &fields, "start_period"),
        start_interval: duration(context, &fields, "start_interval"),
    })
}

fn duration(context: &mut Context<'_>, fields: &Fields<'_>, key: &str) -> Option<Duration> {
    let node = fields.get(key)?;
    let value = context.duration(node, key).filter(|value| !value.is_zero())?;
    if value < MIN_DURATION {
        context.error(node.span, format!("`{key}` is too short")).help("write at least 1ms");
    }
    Some(value)
}

fn test(context: &mut Context<'_>, node: &Node) -> Option<HealthTest> {
    const FORMS: &str = "write a command line, [\"CMD\", \"program\", \"argument\"], [\"CMD-SHELL\", \"command line\"] \
                         or [\"NONE\"]";
    let Value::Sequence(_) = node.value else {
        context.text_or_list(node, "test")?;
        return context.word(node, "test").map(|line| HealthTest::Shell(line.to_owned()));
    };
    let words = context.texts(node, "test")?;
    let (kind, arguments) = match words.split_first() {
        Some((kind, arguments)) => (kind.as_str(), arguments),
        None => ("", &[] as &[String]),
    };
    match (kind, arguments) {
        ("NONE", []) => Some(HealthTest::Disabled),
        ("CMD", [_, ..]) => Some(HealthTest::Command(arguments.to_vec())),
        ("CMD-SHELL", [line]) => Some(HealthTest::Shell(line.clone())),
        ("NONE" | "CMD" | "CMD-SHELL", _) => {
            let message = format!(
                "`test`: {kind} takes {}",
                match kind {
                    "NONE" => "no arguments",
                    "CMD" => "a program to run",
                    _ => "exactly one command line",
                }
            );
            context.error(node.span, message).help(FORMS);
            None
        }
        _ => {
            let message = match kind {
                "" => "`test` is an empty list".to_owned(),
                word => format!("`test` cannot begin with {}", quoted(word)),
            };
            context.error(node.span, message).help(FORMS);
            None
        }
    }
}
