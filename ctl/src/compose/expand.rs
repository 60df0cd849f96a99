//! Expands the variables in every value of the tree, and finds a fault's place inside its scalar. Keys are left alone,
//! as the Compose Specification says.

use std::ops::Range;

use super::{
    context::Variables,
    interpolate::{MAX_EXPANSION, interpolate},
    problem::{Diagnostics, Source, Span, quoted},
    yaml::{Node, Value},
};

/// Bytes of all values together, expanded.
const MAX_TOTAL: usize = 8 * MAX_EXPANSION;

pub(super) struct Expander<'a> {
    source: &'a Source,
    variables: &'a Variables,
    diagnostics: &'a mut Diagnostics,
    total: usize,
}

impl<'a> Expander<'a> {
    pub(super) fn new(source: &'a Source, variables: &'a Variables, diagnostics: &'a mut Diagnostics) -> Self {
        Self { source, variables, diagnostics, total: 0 }
    }

    pub(super) fn expand(&mut self, node: &mut Node) {
        if self.total > MAX_TOTAL {
            return;
        }
        let span = node.span;
        match &mut node.value {
            Value::Null | Value::Told => {}
            Value::Sequence(items) => items.iter_mut().for_each(|item| self.expand(item)),
            Value::Mapping(entries) => {
                for entry in entries {
                    self.refuse_nul(&entry.key, entry.key_span);
                    self.expand(&mut entry.value);
                }
            }
            Value::Scalar { text, .. } => {
                if self.scalar(text, span).is_none() {
                    node.value = Value::Told;
                    return;
                }
                self.total += text.len();
                if self.total > MAX_TOTAL {
                    let message =
                        format!("with its variables expanded the file is larger than {} MiB", MAX_TOTAL >> 20);
                    self.diagnostics.error(self.source, span, message).help("use large variables less often");
                }
            }
        }
    }

    /// `None`: it cannot be expanded, and that is told.
    fn scalar(&mut self, text: &mut String, span: Span) -> Option<()> {
        self.refuse_nul(text, span);
        if !text.contains('$') {
            return Some(());
        }
        match interpolate(text, &|name| self.variables.get(name)) {
            Ok(expansion) => {
                for (name, range) in expansion.unset {
                    let place = self.locate(text, range, span);
                    let message = format!("the variable `{name}` is not set: it counts as empty");
                    let help = format!("set it in the environment or in .env, or write ${{{name}:-default}}");
                    self.diagnostics.warning(self.source, place, message).help(help);
                }
                *text = expansion.text;
                Some(())
            }
            Err(fault) => {
                let place = self.locate(text, fault.range, span);
                self.diagnostics.error(self.source, place, fault.message).help(fault.help);
                None
            }
        }
    }

    /// The kernel ends a string at its first NUL: everything after it would be silently dropped.
    fn refuse_nul(&mut self, text: &str, span: Span) {
        if text.contains('\0') {
            let message = format!("{} has a NUL character in it", quoted(text));
            self.diagnostics.error(self.source, span, message).help("remove the `\\0`");
        }
    }

    /// The place of a part of a scalar's text: the same text, found in the source as often as it came up to there.
    /// Where escapes or folded lines hide it, the scalar's own place.
    fn locate(&self, text: &str, part: Range<usize>, span: Span) -> Span {
        if self.diagnostics.is_full() {
            return span;
        }
        let (start, end) = (self.source.offset(span.start), self.source.offset(span.end));
        let Some(raw) = self.source.text().get(start..end.max(start)) else { return span };
        let wanted = &text[part.clone()];
        let earlier = text[..part.start].matches(wanted).count();
        match raw.match_indices(wanted).nth(earlier) {
            Some((at, found)) => self.source.span(start + at..start + at + found.len()),
            None => span,
        }
    }
}
