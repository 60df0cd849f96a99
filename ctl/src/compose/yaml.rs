//! A YAML document as a small tree in which every key and value knows its place.
//!
//! Guarantees: one document, of bounded size and depth also after aliases are expanded; no key twice in a mapping;
//! `<<` merges done (<https://yaml.org/type/merge.html>); no NUL and no other control character in the source.
//! Scalars stay text: what they mean depends on the field they stand in (YAML 1.2 core schema for null and, in `x-`
//! fields, for the rest). Tags beyond the core schema are refused.

use std::{borrow::Cow, collections::HashMap};

use saphyr_parser::{Event, Parser, ScalarStyle, StrInput, Tag};

use super::problem::{Diagnostics, Place, Source, Span, quoted};

/// Bytes of a spec file. The largest real ones have some ten thousand.
pub(super) const MAX_FILE: usize = 1 << 20;
/// Nested sequences and mappings. Compose itself needs about eight.
const MAX_DEPTH: usize = 64;
/// Bytes of all nodes with aliases expanded: an alias of aliases of aliases ends here. Twice what the largest file
/// without any can take.
const MAX_EXPANDED: usize = 16 << 20;
/// What a node costs beside its text.
const NODE_COST: usize = 32;

#[derive(Clone, Debug)]
pub(super) struct Node {
    pub(super) span: Span,
    pub(super) value: Value,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Null,
    Scalar {
        text: String,
        /// Without quotes: `true` may then be a boolean where any value is allowed.
        plain: bool,
    },
    Sequence(Vec<Node>),
    Mapping(Vec<Entry>),
    /// What stands here is wrong, and that is told already: readers pass over it in silence.
    Told,
}

#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) key_span: Span,
    pub(super) value: Node,
}

impl Node {
    pub(super) fn is_null(&self) -> bool {
        matches!(self.value, Value::Null)
    }

    pub(super) fn kind(&self) -> &'static str {
        match self.value {
            Value::Null => "nothing",
            Value::Scalar { .. } => "a single value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
            Value::Told => "a wrong value",
        }
    }

    fn cost(&self) -> usize {
        let inner = match &self.value {
            Value::Null | Value::Told => 0,
            Value::Scalar { text, .. } => text.len(),
            Value::Sequence(items) => items.iter().map(Node::cost).sum(),
            Value::Mapping(entries) => entries.iter().map(|entry| entry.key.len() + entry.value.cost()).sum(),
        };
        NODE_COST + inner
    }

    fn height(&self) -> usize {
        match &self.value {
            Value::Null | Value::Told | Value::Scalar { .. } => 0,
            Value::Sequence(items) => 1 + items.iter().map(Node::height).max().unwrap_or(0),
            Value::Mapping(entries) => 1 + entries.iter().map(|entry| entry.value.height()).max().unwrap_or(0),
        }
    }
}

/// `None`: nothing to go on with; what is wrong is in `diagnostics`. A tree may come with errors too.
pub(super) fn parse(source: &Source, diagnostics: &mut Diagnostics) -> Option<Node> {
    if source.text().len() > MAX_FILE {
        diagnostics.general(format!("{} is larger than {} KiB", source.name(), MAX_FILE / 1024));
        return None;
    }
    if let Some((at, c)) = source.text().char_indices().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\t')) {
        let message = format!("the file has a control character here (U+{:04X})", u32::from(c));
        diagnostics
            .error(source, source.span(at..at + c.len_utf8()), message)
            .help("a spec is plain text in UTF-8; remove the character, or write it as \"\\x..\" in double quotes");
        return None;
    }
    let mut builder = Builder {
        parser: Parser::new_from_str(source.text()),
        source,
        diagnostics,
        anchors: HashMap::new(),
        left: MAX_EXPANDED,
    };
    builder.document().ok()
}

/// The document cannot be read on; why is in the diagnostics.
struct Stop;

struct Builder<'a> {
    parser: Parser<'a, StrInput<'a>>,
    source: &'a Source,
    diagnostics: &'a mut Diagnostics,
    /// `None`: still open.
    anchors: HashMap<usize, Option<Node>>,
    /// Of [`MAX_EXPANDED`].
    left: usize,
}

impl<'a> Builder<'a> {
    fn document(&mut self) -> Result<Node, Stop> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => break,
                Event::DocumentStart(_) if root.is_some() => {
                    self.diagnostics
                        .error(self.source, span, "a second YAML document begins here")
                        .help("a spec is one document: put the rest into a file of its own, or remove the `---`");
                    break;
                }
                Event::DocumentStart(_) | Event::DocumentEnd | Event::StreamStart | Event::Nothing => {}
                event => root = Some(self.node(event, span, 0)?),
            }
        }
        root.ok_or_else(|| {
            self.diagnostics
                .general(format!("{} has no content", self.source.name()))
                .help("a spec begins with `services:`");
            Stop
        })
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), Stop> {
        match self.parser.next_event() {
            Some(Ok((event, span))) => Ok((event, Span { start: place(span.start), end: place(span.end) })),
            Some(Err(error)) => {
                let at = self.source.last_text(place(*error.marker()));
                let message = format!("this is not valid YAML: {}", error.info());
                let help = yaml_help(self.source, at, error.info());
                self.diagnostics.error(self.source, Span { start: at, end: at }, message).help(help);
                Err(Stop)
            }
            None => Ok((Event::StreamEnd, self.source.span(usize::MAX..usize::MAX))),
        }
    }

    fn stop(&mut self, span: Span, message: impl Into<String>, help: &str) -> Stop {
        self.diagnostics.error(self.source, span, message).help(help);
        Stop
    }

    fn spend(&mut self, cost: usize, span: Span) -> Result<(), Stop> {
        match self.left.checked_sub(cost) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => Err(self.stop(
                span,
                format!("with its aliases expanded the file is larger than {} MiB", MAX_EXPANDED >> 20),
                "use fewer aliases of large or nested anchors",
            )),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span, depth: usize) -> Result<Node, Stop> {
        if depth > MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        let (value, anchor) = match event {
            Event::Alias(anchor) => return self.alias(anchor, span, depth),
            Event::Scalar(text, style, anchor, tag) => {
                self.spend(NODE_COST + text.len(), span)?;
                (self.scalar(text, style, tag.as_deref(), span), anchor)
            }
            Event::SequenceStart(anchor, tag) => {
                self.spend(NODE_COST, span)?;
                self.check_tag(tag.as_deref(), span);
                self.open(anchor);
                (self.sequence(depth)?, anchor)
            }
            Event::MappingStart(anchor, tag) => {
                self.spend(NODE_COST, span)?;
                self.check_tag(tag.as_deref(), span);
                self.open(anchor);
                (self.mapping(depth)?, anchor)
            }
            _ => return Err(self.stop(span, "a value is missing here", "write the value after the key")),
        };
        let node = Node { span, value };
        if anchor != 0 {
            // The copy counts too: anchors inside one another would multiply what they hold by their depth.
            self.spend(node.cost(), span)?;
            self.anchors.insert(anchor, Some(node.clone()));
        }
        Ok(node)
    }

    fn too_deep(&mut self, span: Span) -> Stop {
        let message = format!("the file is nested more than {MAX_DEPTH} levels deep");
        self.stop(span, message, "no part of a Compose file is; flatten this value")
    }

    fn open(&mut self, anchor: usize) {
        if anchor != 0 {
            self.anchors.insert(anchor, None);
        }
    }

    fn alias(&mut self, anchor: usize, span: Span, depth: usize) -> Result<Node, Stop> {
        let Some(Some(node)) = self.anchors.get(&anchor) else {
            let message = "this alias stands inside the very anchor it refers to";
            self.diagnostics.error(self.source, span, message).help("remove the alias");
            return Ok(Node { span, value: Value::Told });
        };
        let (cost, height) = (node.cost(), node.height());
        self.spend(cost, span)?;
        if depth + height > MAX_DEPTH {
            return Err(self.too_deep(span));
        }
        match self.anchors.get(&anchor) {
            Some(Some(node)) => Ok(node.clone()),
            _ => Err(Stop),
        }
    }

    fn scalar(&mut self, text: Cow<'_, str>, style: ScalarStyle, tag: Option<&Tag>, span: Span) -> Value {
        let is_string = self.check_tag(tag, span) == Some("str");
        let plain = style == ScalarStyle::Plain && !is_string;
        if plain && matches!(&*text, "" | "~" | "null" | "Null" | "NULL") {
            return Value::Null;
        }
        Value::Scalar { text: text.into_owned(), plain }
    }

    /// The name of a tag of the core schema.
    fn check_tag<'t>(&mut self, tag: Option<&'t Tag>, span: Span) -> Option<&'t str> {
        let tag = tag?;
        if tag.is_yaml_core_schema() {
            if matches!(tag.suffix.as_str(), "str" | "int" | "float" | "bool" | "null" | "map" | "seq") {
                return Some(&tag.suffix);
            }
        } else if tag.handle == "!" && matches!(tag.suffix.as_str(), "reset" | "override") {
            self.diagnostics
                .error(self.source, span, format!("the tag `!{}` is not supported yet", tag.suffix))
                .help("it only matters when files are merged: write the final value here");
            return None;
        }
        self.diagnostics
            .error(self.source, span, format!("unknown YAML tag `{}{}`", tag.handle, tag.suffix))
            .help("remove the tag; to make a value a string put it in quotes");
        None
    }

    fn sequence(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut items = Vec::new();
        loop {
            match self.next()? {
                (Event::SequenceEnd, _) => return Ok(Value::Sequence(items)),
                (event, span) => items.push(self.node(event, span, depth + 1)?),
            }
        }
    }

    fn mapping(&mut self, depth: usize) -> Result<Value, Stop> {
        let mut entries: Vec<Entry> = Vec::new();
        let mut seen: HashMap<String, Place> = HashMap::new();
        let mut merged: Option<Node> = None;
        loop {
            let (event, key_span) = match self.next()? {
                (Event::MappingEnd, _) => break,
                pair => pair,
            };
            let is_merge = matches!(&event, Event::Scalar(text, ScalarStyle::Plain, ..) if text == "<<");
            let key = self.node(event, key_span, depth + 1)?;
            let (event, span) = self.next()?;
            let value = self.node(event, span, depth + 1)?;
            let Value::Scalar { text: key, .. } = key.value else {
                self.diagnostics
                    .error(self.source, key_span, format!("a key must be a word, this one is {}", key.kind()))
                    .help("write `key: value`; put a key with special characters in quotes");
                continue;
            };
            if let Some(first) = seen.get(&key) {
                let first = self.source.location(*first);
                self.diagnostics
                    .error(self.source, key_span, format!("the key {} stands here a second time", quoted(&key)))
                    .related("it was first written at", first)
                    .help(if is_merge { "merge several with a list: `<<: [*a, *b]`" } else { "remove one of the two" });
                continue;
            }
            seen.insert(key.clone(), key_span.start);
            if is_merge {
                merged = Some(value);
            } else {
                entries.push(Entry { key, key_span, value });
            }
        }
        if let Some(node) = merged {
            self.merge(node, &mut entries, seen);
        }
        Ok(Value::Mapping(entries))
    }

    /// What the mapping itself says wins, then the earlier of several.
    fn merge(&mut self, node: Node, entries: &mut Vec<Entry>, mut seen: HashMap<String, Place>) {
        let sources = match node.value {
            Value::Sequence(items) => items,
            _ => vec![node],
        };
        for source in sources {
            let kind = source.kind();
            let Value::Mapping(from) = source.value else {
                self.diagnostics
                    .error(self.source, source.span, format!("`<<` takes a mapping, this is {kind}"))
                    .help("write `<<: *anchor` or `<<: [*one, *two]`, each the anchor of a mapping");
                continue;
            };
            for entry in from {
                if !seen.contains_key(&entry.key) {
                    seen.insert(entry.key.clone(), entry.key_span.start);
                    entries.push(entry);
                }
            }
        }
    }
}

fn place(marker: saphyr_parser::Marker) -> Place {
    Place { line: marker.line(), column: marker.col() + 1 }
}

fn yaml_help(source: &Source, at: Place, info: &str) -> &'static str {
    if info.contains("unknown anchor") {
        return "define the anchor with `&name` above its first `*name`";
    }
    let line_start = source.offset(Place { line: at.line, column: 1 });
    let line = source.text()[line_start..].lines().next().unwrap_or_default();
    if line.chars().take_while(|c| c.is_whitespace()).any(|c| c == '\t') {
        "YAML does not allow tabs for indentation: use spaces"
    } else {
        "check the indentation, and that quotes and brackets are closed; a value with `: ` or ` #` in it needs quotes"
    }
}
