//! What every reader of a part of the spec needs: the source for places, the variables, the folder, and somewhere to
//! put what is wrong. Also the readers of single values, so that every field says the same about the same mistake.
//!
//! Readers return what they could read and go on: one pass finds everything that is wrong.

use std::{
    collections::{BTreeMap, HashSet},
    fmt::{self, Write as _},
    ops::RangeInclusive,
    path::{Component, Path, PathBuf},
    time::Duration,
};

use roster_proto::spec::rules::Unfit;

use super::{
    keys::{self, Section},
    problem::{Diagnostics, Problem, Source, Span, quoted},
    units,
    yaml::{Entry, Node, Value},
};

/// The process's environment over the `.env` file's.
#[derive(Debug, Default)]
pub(super) struct Variables {
    pub(super) process: BTreeMap<String, String>,
    pub(super) file: BTreeMap<String, String>,
}

impl Variables {
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.process.get(name).or_else(|| self.file.get(name)).map(String::as_str)
    }
}

#[derive(Debug)]
pub(super) struct Context<'a> {
    pub(super) source: &'a Source,
    /// Absolute; relative paths in the spec start here.
    pub(super) folder: &'a Path,
    pub(super) variables: &'a Variables,
    pub(super) diagnostics: &'a mut Diagnostics,
}

/// A mapping whose keys were checked against a [`Section`].
#[derive(Debug)]
pub(super) struct Fields<'n> {
    entries: Vec<&'n Entry>,
}

impl<'n> Fields<'n> {
    pub(super) fn entry(&self, key: &str) -> Option<&'n Entry> {
        self.entries.iter().copied().find(|entry| entry.key == key)
    }

    /// A key without a value is as if it were not there.
    pub(super) fn get(&self, key: &str) -> Option<&'n Node> {
        self.entry(key).map(|entry| &entry.value).filter(|node| !node.is_null())
    }

    pub(super) fn extensions(&self) -> impl Iterator<Item = &'n Entry> {
        self.entries.iter().copied().filter(|entry| entry.key.starts_with("x-"))
    }
}

impl Context<'_> {
    pub(super) fn error(&mut self, span: Span, message: impl Into<String>) -> &mut Problem {
        self.diagnostics.error(self.source, span, message)
    }

    pub(super) fn warning(&mut self, span: Span, message: impl Into<String>) -> &mut Problem {
        self.diagnostics.warning(self.source, span, message)
    }

    pub(super) fn not_supported(&mut self, span: Span, what: &str, instead: &str) {
        let instead = if instead.is_empty() { "remove it" } else { instead };
        self.error(span, format!("{what} is not supported yet")).help(instead);
    }

    /// Checks every key of a mapping, so that none is silently ignored.
    pub(super) fn fields<'n>(&mut self, node: &'n Node, section: &Section) -> Option<Fields<'n>> {
        let entries = self.mapping(node, section.name)?;
        let mut known = Vec::new();
        for entry in entries {
            let key = entry.key.as_str();
            if key.starts_with("x-") || section.known.contains(&key) {
                known.push(entry);
            } else if let Some(later) = section.later.iter().find(|later| later.key == key) {
                self.not_supported(entry.key_span, &format!("the key `{key}` of {}", section.name), later.instead);
            } else {
                let message = format!("unknown key {} in {}", quoted(key), section.name);
                let help = if self.diagnostics.is_full() {
                    String::new()
                } else if looks_like_service(&entry.value) {
                    format!("if {} is a service, put it below `services:`", quoted(key))
                } else {
                    keys::advice(key, section)
                };
                self.error(entry.key_span, message).help(help);
            }
        }
        Some(Fields { entries: known })
    }

    pub(super) fn mapping<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n [Entry]> {
        match &node.value {
            Value::Mapping(entries) => Some(entries),
            Value::Told => None,
            _ => {
                let message = format!("{what} must be a mapping, this is {}", node.kind());
                self.error(node.span, message).help("write `key: value` lines");
                None
            }
        }
    }

    pub(super) fn list<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(items) => Some(items),
            Value::Told => None,
            _ => {
                let message = format!("`{key}` must be a list, this is {}", node.kind());
                self.error(node.span, message).help("write each item on a line of its own that begins with `- `");
                None
            }
        }
    }

    pub(super) fn text<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        self.text_of(node, format_args!("`{key}` must be a string"))
    }

    /// A string in a list.
    pub(super) fn item<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        self.text_of(node, format_args!("an item of `{key}` must be a string"))
    }

    /// A string where there might have been a list too.
    pub(super) fn text_or_list<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        self.text_of(node, format_args!("`{key}` must be a string or a list"))
    }

    fn text_of<'n>(&mut self, node: &'n Node, rule: fmt::Arguments<'_>) -> Option<&'n str> {
        let help = match &node.value {
            Value::Scalar { text, .. } => return Some(text),
            Value::Told => return None,
            Value::Null => "write a value, or \"\" for an empty one",
            _ => "write a single string, in quotes if it has special characters",
        };
        self.error(node.span, format!("{rule}, this is {}", node.kind())).help(help);
        None
    }

    /// A string that may not be empty.
    pub(super) fn word<'n>(&mut self, node: &'n Node, key: &str) -> Option<&'n str> {
        let text = self.text(node, key)?;
        if text.is_empty() {
            self.error(node.span, format!("`{key}` is empty")).help(format!("write a value, or remove `{key}`"));
            return None;
        }
        Some(text)
    }

    pub(super) fn texts(&mut self, node: &Node, key: &str) -> Option<Vec<String>> {
        let items = self.list(node, key)?;
        Some(items.iter().filter_map(|item| self.item(item, key)).map(str::to_owned).collect())
    }

    pub(super) fn boolean(&mut self, node: &Node, key: &str) -> Option<bool> {
        match self.text(node, key)? {
            "true" | "True" | "TRUE" => Some(true),
            "false" | "False" | "FALSE" => Some(false),
            other => {
                let message = format!("`{key}` must be true or false, not {}", quoted(other));
                self.error(node.span, message).help("write `true` or `false`");
                None
            }
        }
    }

    pub(super) fn integer(&mut self, node: &Node, key: &str, range: RangeInclusive<u64>) -> Option<u64> {
        let text = self.text(node, key)?;
        let value = units::integer(text);
        let fitting = value.and_then(|value| u64::try_from(value).ok()).filter(|value| range.contains(value));
        if fitting.is_none() {
            let why = if value.is_some() { "is out of range" } else { "is not a whole number" };
            self.error(node.span, format!("`{key}`: {} {why}", quoted(text))).help(format!(
                "write a number from {} to {}",
                range.start(),
                range.end()
            ));
        }
        fitting
    }

    pub(super) fn duration(&mut self, node: &Node, key: &str) -> Option<Duration> {
        let text = self.text(node, key)?;
        self.parsed(node.span, text, key, "duration", units::duration(text))
    }

    pub(super) fn bytes(&mut self, node: &Node, key: &str) -> Option<u64> {
        let text = self.text(node, key)?;
        self.parsed(node.span, text, key, "size", units::bytes(text))
    }

    pub(super) fn parsed<T>(
        &mut self,
        span: Span,
        text: &str,
        key: &str,
        kind: &str,
        value: Result<T, units::Advice>,
    ) -> Option<T> {
        value
            .map_err(|advice| {
                self.error(span, format!("`{key}`: {} is not a valid {kind}", quoted(text))).help(advice);
            })
            .ok()
    }

    /// A value that a rule of the spec has checked.
    pub(super) fn fit<T>(&mut self, span: Span, checked: Result<T, Unfit>) -> Option<T> {
        checked
            .map_err(|unfit| {
                self.error(span, unfit.what).help(unfit.help);
            })
            .ok()
    }

    /// One of a few words.
    pub(super) fn choice<T: Clone>(&mut self, node: &Node, key: &str, choices: &[(&str, T)]) -> Option<T> {
        let text = self.text(node, key)?;
        if let Some((_, value)) = choices.iter().find(|(name, _)| *name == text) {
            return Some(value.clone());
        }
        let help = match keys::nearest(text, choices.iter().map(|(name, _)| *name)) {
            Some(near) => format!("did you mean `{near}`?"),
            None => one_of(choices.iter().map(|(name, _)| *name)),
        };
        self.error(node.span, format!("`{key}` cannot be {}", quoted(text))).help(help);
        None
    }

    /// A path of the machine `rctl` runs on: absolute, `~` and `..` resolved by their names alone.
    pub(super) fn host_path(&mut self, span: Span, text: &str) -> Option<PathBuf> {
        let path = match text.strip_prefix('~') {
            Some(rest) if rest.is_empty() || rest.starts_with('/') => {
                let Some(home) = self.variables.get("HOME").filter(|home| home.starts_with('/')) else {
                    self.error(span, "`~` cannot be resolved: HOME is not set").help("write the whole path");
                    return None;
                };
                Path::new(home).join(rest.trim_start_matches('/'))
            }
            Some(_) => {
                self.not_supported(span, "another user's home folder in a path", "write the whole path");
                return None;
            }
            None => self.folder.join(text),
        };
        Some(clean(&path))
    }

    /// `KEY=VALUE` lists and `KEY: VALUE` mappings. A value is `None` when only the key is written.
    pub(super) fn pairs<'n>(&mut self, node: &'n Node, key: &str) -> Vec<(String, Option<&'n str>, Span)> {
        match &node.value {
            Value::Mapping(entries) => entries
                .iter()
                .filter_map(|entry| {
                    let value = match &entry.value.value {
                        Value::Null => None,
                        _ => Some(self.text(&entry.value, &entry.key)?),
                    };
                    Some((entry.key.clone(), value, entry.key_span))
                })
                .collect(),
            Value::Sequence(items) => {
                let mut pairs: Vec<(String, Option<&str>, Span)> = Vec::new();
                let mut seen = HashSet::new();
                for item in items {
                    let Some(text) = self.item(item, key) else { continue };
                    let (name, value) = match text.split_once('=') {
                        Some((name, value)) => (name, Some(value)),
                        None => (text, None),
                    };
                    if !seen.insert(name) {
                        self.warning(item.span, format!("{} is set twice in `{key}`", quoted(name)))
                            .help("the last one counts: remove the other");
                    }
                    pairs.push((name.to_owned(), value, item.span));
                }
                pairs
            }
            Value::Told => Vec::new(),
            _ => {
                let message = format!("`{key}` must be a mapping or a list, this is {}", node.kind());
                self.error(node.span, message).help("write `NAME: value` lines or `- NAME=value` lines below it");
                Vec::new()
            }
        }
    }
}

pub(super) fn looks_like_service(node: &Node) -> bool {
    matches!(&node.value, Value::Mapping(entries) if entries.iter().any(|entry| entry.key == "image"))
}

pub(super) fn one_of<'c>(choices: impl Iterator<Item = &'c str>) -> String {
    let mut help = String::from("write one of:");
    for (index, choice) in choices.enumerate() {
        // Writing to a String cannot fail.
        let _ = write!(help, "{} {choice}", if index == 0 { "" } else { "," });
    }
    help
}

/// Without `.`, `..` and doubled slashes, as far as the text alone tells.
pub(super) fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            component => out.push(component),
        }
    }
    out
}
