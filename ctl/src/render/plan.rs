//! A plan as text: what changes, which field by field, and what happens to each replica.

use std::fmt::Write;

use anstyle::Style;
use roster_proto::{
    report::{ServiceAction, ServicePlan, SlotAction, SlotPlan, StackPlan},
    time::Timestamp,
};

use super::{
    list::cause,
    style::{BAD, BUSY, FAINT, GOOD},
    table::clean,
};

fn mark(action: ServiceAction) -> (&'static str, &'static str, Style) {
    match action {
        ServiceAction::Create => ("+", "create", GOOD),
        ServiceAction::Update => ("~", "update", BUSY),
        ServiceAction::Remove => ("-", "remove", BAD),
        ServiceAction::Unchanged => ("=", "unchanged", FAINT),
        ServiceAction::NotInFile => ("?", "not in the file; --prune would remove it", FAINT),
    }
}

pub fn plan(plan: &StackPlan, now: Timestamp) -> String {
    let mut out = String::new();
    for service in &plan.services {
        let (sign, word, style) = mark(service.action);
        let _ = writeln!(out, "{style}{sign} {}{style:#}  {word}", service.service);
        fields(&mut out, service);
        slots(&mut out, service, now);
    }
    if plan.changes_anything() {
        let count =
            |action| plan.services.iter().flat_map(|service| &service.slots).filter(|s| s.action == action).count();
        let _ = writeln!(
            out,
            "Plan: {} to start, {} to replace, {} to stop, {} to keep.",
            count(SlotAction::Start),
            count(SlotAction::Replace),
            count(SlotAction::Stop),
            count(SlotAction::Keep)
        );
    } else {
        let _ = writeln!(out, "Nothing to do: stack {} is as the file says.", plan.stack);
    }
    out
}

fn fields(out: &mut String, service: &ServicePlan) {
    // A new service's fields are the file's; only what differs from what runs is news.
    if service.action != ServiceAction::Update {
        return;
    }
    for field in &service.fields {
        let side = |value: &Option<String>| value.as_deref().map_or_else(|| "(not set)".to_owned(), clean);
        let _ = writeln!(out, "    {}: {} → {}", field.path, side(&field.before), side(&field.after));
    }
}

/// Slots that fare alike are told in one line.
fn slots(out: &mut String, service: &ServicePlan, now: Timestamp) {
    let mut rest = &service.slots[..];
    while let Some(first) = rest.first() {
        let alike =
            |slot: &SlotPlan| slot.action == first.action && slot.node == first.node && slot.cause == first.cause;
        let run = rest.iter().take_while(|slot| alike(slot)).count();
        let (these, others) = rest.split_at(run);
        rest = others;
        let name = &service.service.name;
        let who = match these {
            [one] => format!("{name}.{}", one.slot),
            [one, .., last] => format!("{name}.{} … {name}.{}", one.slot, last.slot),
            [] => continue,
        };
        let (word, style) = match first.action {
            SlotAction::Keep => ("keep", FAINT),
            SlotAction::Start => ("start", GOOD),
            SlotAction::Replace => ("replace", BUSY),
            SlotAction::Stop => ("stop", BAD),
        };
        let place = match (&first.node, first.action) {
            (Some(node), _) => format!(" on {node}"),
            (None, SlotAction::Start | SlotAction::Replace) => " when a node can take it".to_owned(),
            (None, _) => String::new(),
        };
        let why = first.cause.as_ref().map(|known| format!(" ({})", cause(known, now))).unwrap_or_default();
        let _ = writeln!(out, "    {style}{word}{style:#} {who}{place}{why}");
    }
}
