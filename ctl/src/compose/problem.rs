//! What is wrong, where, and what to do about it.
//!
//! Owns the text of the files read ([`Source`]), the places in it and the way a [`Problem`] is shown. A problem keeps
//! its own excerpt, so it outlives the source. The text is plain: colours are for the caller, who finds the parts in
//! the public fields. Nothing here reads a file.

use std::fmt;

/// Problems kept of one load; the rest is counted. A person fixes a few at a time, a hostile file has millions.
const MAX_PROBLEMS: usize = 50;
/// Characters of a source line shown around the caret.
const EXCERPT_WIDTH: usize = 110;
/// Characters of a value quoted in a message.
const QUOTE_WIDTH: usize = 60;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    Error,
    Warning,
}

/// Both counted from 1, the column in characters.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Location {
    pub file: String,
    pub line: usize,
    pub column: usize,
}

/// A line of the file with the part the problem is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Excerpt {
    pub text: String,
    /// Characters before the marked part.
    pub offset: usize,
    /// Characters marked; at least 1.
    pub width: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    pub severity: Severity,
    pub message: String,
    /// `None`: about a file as a whole, which the message names.
    pub location: Option<Location>,
    pub excerpt: Option<Excerpt>,
    /// Another place that has to do with it, and how.
    pub related: Option<(String, Location)>,
    pub help: Option<String>,
}

impl Problem {
    fn new(severity: Severity, message: String) -> Self {
        Self { severity, message: one_line(&message), location: None, excerpt: None, related: None, help: None }
    }

    pub(super) fn help(&mut self, text: impl Into<String>) -> &mut Self {
        self.help = Some(one_line(&text.into()));
        self
    }

    pub(super) fn related(&mut self, how: impl Into<String>, location: Location) -> &mut Self {
        self.related = Some((one_line(&how.into()), location));
        self
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let severity = match self.severity {
            Severity::Error => "error",
            Severity::Warning => "warning",
        };
        write!(f, "{severity}: {}", self.message)?;
        let gutter = self.location.as_ref().map_or(0, |location| location.line.to_string().len());
        if let Some(location) = &self.location {
            write!(f, "\n{:gutter$}--> {location}", "")?;
            if let Some(excerpt) = &self.excerpt {
                write!(f, "\n{} | {}", location.line, excerpt.text)?;
                write!(f, "\n{:gutter$} | {:2$}{3:^<4$}", "", "", excerpt.offset, "", excerpt.width)?;
            }
        }
        if let Some((how, location)) = &self.related {
            write!(f, "\n{:gutter$} = note: {how} {location}", "")?;
        }
        if let Some(help) = &self.help {
            write!(f, "\n{:gutter$} = help: {help}", "")?;
        }
        Ok(())
    }
}

/// Everything that is wrong with a file, in the order of its lines, the warnings among it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problems {
    /// At least one is an error.
    pub found: Vec<Problem>,
    /// How many more there were.
    pub omitted: usize,
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.found {
            write!(f, "{problem}\n\n")?;
        }
        let errors = self.found.iter().filter(|problem| problem.severity == Severity::Error).count();
        let (count, more) = (errors, self.omitted);
        match (count, more) {
            (1, 0) => write!(f, "1 error; nothing was changed"),
            (_, 0) => write!(f, "{count} errors; nothing was changed"),
            _ => write!(f, "{count} errors and {more} more; nothing was changed"),
        }
    }
}

impl std::error::Error for Problems {}

/// From 1, the column in characters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// The end is not part of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: Place,
    pub(super) end: Place,
}

/// A file's text with its lines found. Line ends are `\n`, whatever the file has.
#[derive(Debug)]
pub(super) struct Source {
    name: String,
    text: String,
    /// Byte offsets of the lines' beginnings.
    lines: Vec<usize>,
}

impl Source {
    pub(super) fn new(name: impl Into<String>, text: &str) -> Self {
        let text = text.strip_prefix('\u{feff}').unwrap_or(text).replace("\r\n", "\n").replace('\r', "\n");
        let lines = std::iter::once(0).chain(text.match_indices('\n').map(|(at, _)| at + 1)).collect();
        Self { name: one_line(&name.into()), text, lines }
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }

    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// The place of a byte; past the end, the end.
    pub(super) fn place(&self, offset: usize) -> Place {
        let line = self.lines.partition_point(|start| *start <= offset);
        let before = self.text[self.lines[line - 1]..].char_indices();
        Place { line, column: before.take_while(|(at, _)| self.lines[line - 1] + at < offset).count() + 1 }
    }

    pub(super) fn span(&self, bytes: std::ops::Range<usize>) -> Span {
        Span { start: self.place(bytes.start), end: self.place(bytes.end) }
    }

    /// The byte at a place; past a line's end, that end.
    pub(super) fn offset(&self, place: Place) -> usize {
        let Some(start) = place.line.checked_sub(1).and_then(|index| self.lines.get(index)) else {
            return self.text.len();
        };
        let line = self.line(place.line);
        start + line.char_indices().nth(place.column.saturating_sub(1)).map_or(line.len(), |(at, _)| at)
    }

    pub(super) fn location(&self, place: Place) -> Location {
        Location { file: self.name.clone(), line: place.line, column: place.column }
    }

    /// The place itself, or, on blank lines, the end of what stands before them.
    pub(super) fn last_text(&self, place: Place) -> Place {
        let mut number = place.line;
        while number > 1 && self.line(number).trim().is_empty() {
            number -= 1;
        }
        match number == place.line {
            true => place,
            false => Place { line: number, column: self.line(number).trim_end().chars().count() + 1 },
        }
    }

    fn line(&self, number: usize) -> &str {
        let Some(start) = number.checked_sub(1).and_then(|index| self.lines.get(index)) else { return "" };
        let rest = &self.text[*start..];
        rest.find('\n').map_or(rest, |end| &rest[..end])
    }

    fn excerpt(&self, span: Span) -> Excerpt {
        let line: Vec<char> = self.line(span.start.line).chars().collect();
        let start = span.start.column.saturating_sub(1).min(line.len());
        let end = if span.end.line == span.start.line { span.end.column.saturating_sub(1) } else { line.len() };
        let blank_end = line[..end.min(line.len())].iter().rposition(|c| !c.is_whitespace()).map_or(0, |at| at + 1);
        let first = if line.len() <= EXCERPT_WIDTH { 0 } else { start.saturating_sub(EXCERPT_WIDTH / 3) };
        let last = line.len().min(first + EXCERPT_WIDTH);
        Excerpt {
            text: line[first..last].iter().map(|c| printable(*c)).collect::<String>().trim_end().to_owned(),
            offset: start - first,
            width: blank_end.min(last).saturating_sub(start).max(1),
        }
    }
}

/// One column, no effect on the terminal.
fn printable(c: char) -> char {
    match c {
        '\t' => ' ',
        // Bidirectional overrides and isolates would show the line in an order it is not in.
        '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => '\u{fffd}',
        c if c.is_control() => '\u{fffd}',
        c => c,
    }
}

/// Parts of the spec stand in messages: none may move the cursor, or do worse to the terminal.
fn one_line(text: &str) -> String {
    text.chars().map(printable).collect()
}

/// A value as part of a message: in quotes, on one line, shortened.
pub(super) fn quoted(value: &str) -> String {
    let mut text: String = value.chars().take(QUOTE_WIDTH).flat_map(char::escape_debug).collect();
    if value.chars().count() > QUOTE_WIDTH {
        text.push('…');
    }
    format!("\"{}\"", text.replace("\\\"", "\"").replace("\\'", "'"))
}

/// Collects what is found while a file is read.
#[derive(Debug, Default)]
pub(super) struct Diagnostics {
    found: Vec<Problem>,
    errors: usize,
    omitted: usize,
    /// Takes the help of a problem that is one too many.
    spare: Option<Problem>,
}

impl Diagnostics {
    pub(super) fn error(&mut self, source: &Source, span: Span, message: impl Into<String>) -> &mut Problem {
        self.at(Severity::Error, source, span, message.into())
    }

    pub(super) fn warning(&mut self, source: &Source, span: Span, message: impl Into<String>) -> &mut Problem {
        self.at(Severity::Warning, source, span, message.into())
    }

    /// About a file as a whole.
    pub(super) fn general(&mut self, message: impl Into<String>) -> &mut Problem {
        self.push(Problem::new(Severity::Error, message.into()))
    }

    /// What is found from now on is only counted: where finding its place or its help is costly, leave it.
    pub(super) fn is_full(&self) -> bool {
        self.found.len() >= MAX_PROBLEMS
    }

    fn at(&mut self, severity: Severity, source: &Source, span: Span, message: String) -> &mut Problem {
        let mut problem = Problem::new(severity, message);
        problem.location = Some(source.location(span.start));
        if !self.is_full() {
            problem.excerpt = Some(source.excerpt(span));
        }
        self.push(problem)
    }

    fn push(&mut self, problem: Problem) -> &mut Problem {
        // An alias shows the same lines several times: what is wrong there is wrong once.
        if let Some(same) =
            self.found.iter().position(|known| known.location == problem.location && known.message == problem.message)
        {
            return &mut self.found[same];
        }
        self.errors += usize::from(problem.severity == Severity::Error);
        if !self.is_full() {
            self.found.push(problem);
            let last = self.found.len() - 1;
            return &mut self.found[last];
        }
        self.omitted += 1;
        self.spare.insert(problem)
    }

    /// What was read, with the warnings; or everything that was found when there was an error.
    pub(super) fn finish<T>(mut self, read: Option<T>) -> Result<(T, Vec<Problem>), Problems> {
        self.found.sort_by(|a, b| a.location.cmp(&b.location));
        match read.filter(|_| self.errors == 0) {
            Some(read) => Ok((read, self.found)),
            None => Err(Problems { found: self.found, omitted: self.omitted }),
        }
    }
}
