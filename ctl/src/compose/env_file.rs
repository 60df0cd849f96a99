//! `.env` files: `NAME=value` lines, as `docker compose` reads them.
//!
//! Comments (`#` at a line's beginning or after white space), `export`, single quotes (taken as is), double quotes
//! (escapes, variables), values in quotes over several lines, variables in unquoted values. Pure: the text and the
//! variables are handed in; what is wrong goes to the diagnostics under the file's own name and line.

use std::{collections::BTreeMap, ops::Range};

use super::{
    interpolate::{Lookup, interpolate},
    problem::{Diagnostics, Source, quoted},
};

/// Bytes of all values together, variables expanded.
const MAX_VALUES: usize = 4 << 20;

/// Where a variable is set both in `outer` and earlier in the file, `outer` wins. The pairs are what the file says.
pub(super) fn parse(source: &Source, outer: Lookup<'_>, diagnostics: &mut Diagnostics) -> BTreeMap<String, String> {
    let mut reader =
        Reader { source, text: source.text(), at: 0, outer, diagnostics, values: BTreeMap::new(), size: 0 };
    reader.file();
    reader.values
}

struct Reader<'a, 'v> {
    source: &'a Source,
    text: &'a str,
    at: usize,
    outer: Lookup<'v>,
    diagnostics: &'a mut Diagnostics,
    values: BTreeMap<String, String>,
    size: usize,
}

fn is_blank(c: char) -> bool {
    c != '\n' && c.is_whitespace()
}

impl<'a> Reader<'a, '_> {
    fn rest(&self) -> &'a str {
        &self.text[self.at..]
    }

    fn skip(&mut self, which: fn(char) -> bool) {
        self.at = self.text.len() - self.rest().trim_start_matches(which).len();
    }

    fn line_end(&self) -> usize {
        self.rest().find('\n').map_or(self.text.len(), |at| self.at + at)
    }

    fn error(&mut self, range: Range<usize>, message: impl Into<String>, help: &str) {
        self.diagnostics.error(self.source, self.source.span(range), message).help(help);
    }

    fn file(&mut self) {
        if let Some((at, c)) = self.text.char_indices().find(|(_, c)| c.is_control() && !matches!(c, '\n' | '\t')) {
            let message = format!("the file has a control character here (U+{:04X})", u32::from(c));
            return self.error(at..at + 1, message, "remove it; in double quotes a tab may be written as \\t");
        }
        loop {
            self.skip(char::is_whitespace);
            if self.rest().is_empty() {
                return;
            }
            if self.rest().starts_with('#') || self.definition().is_none() {
                self.at = self.line_end();
            }
            if self.size > MAX_VALUES {
                let message = format!("the values of this file are larger than {} MiB", MAX_VALUES >> 20);
                return self.error(self.at..self.at, message, "use fewer variables inside one another");
            }
        }
    }

    /// `None`: the line was wrong, or has a name alone.
    fn definition(&mut self) -> Option<()> {
        if let Some(rest) = self.rest().strip_prefix("export").filter(|rest| rest.starts_with(is_blank)) {
            self.at = self.text.len() - rest.len();
            self.skip(is_blank);
        }
        let (start, line_end) = (self.at, self.line_end());
        let line = &self.text[start..line_end];
        let name_end = line.find(['=', '#']).filter(|at| line[*at..].starts_with('='));
        let name = line[..name_end.unwrap_or(line.len())].trim_end();
        let name = if name_end.is_none() { name.split('#').next().unwrap_or_default().trim_end() } else { name };
        let well_formed = !name.is_empty()
            && !name.starts_with(|c: char| c.is_ascii_digit())
            && name.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
        if !well_formed {
            let message = if name.is_empty() {
                "a variable's name is missing".to_owned()
            } else {
                format!("{} is not a variable's name", quoted(name))
            };
            self.error(
                start..start + name.len().max(1),
                message,
                "write NAME=value; a comment begins with `#`; a value over several lines needs quotes",
            );
            return None;
        }
        match name_end {
            Some(equals) => {
                self.at = start + equals + 1;
                self.skip(is_blank);
                let value = self.value()?;
                self.size += name.len() + value.len();
                self.values.insert(name.to_owned(), value);
            }
            // A name alone passes on what is set outside.
            None => {
                if let Some(value) = (self.outer)(name) {
                    self.values.insert(name.to_owned(), value.to_owned());
                }
                self.at = line_end;
            }
        }
        Some(())
    }

    fn value(&mut self) -> Option<String> {
        match self.rest().chars().next() {
            Some('\'') => {
                let (value, _) = self.quoted('\'')?;
                Some(value.to_owned())
            }
            Some('"') => {
                let (raw, range) = self.quoted('"')?;
                self.expanded(&unescape(raw), range)
            }
            _ => {
                let line = &self.text[self.at..self.line_end()];
                let comment = line
                    .char_indices()
                    .find(|(at, c)| *c == '#' && line[..*at].chars().next_back().is_none_or(char::is_whitespace));
                let raw = line[..comment.map_or(line.len(), |(at, _)| at)].trim_end();
                let range = self.at..self.at + raw.len();
                self.at = self.line_end();
                self.expanded(raw, range)
            }
        }
    }

    /// What stands between two quotes, which may lie on different lines; then nothing more than a comment.
    fn quoted(&mut self, quote: char) -> Option<(&'a str, Range<usize>)> {
        let start = self.at + 1;
        let mut escaped = false;
        let close = self.text[start..].char_indices().find(|(_, c)| {
            let closes = *c == quote && !escaped;
            escaped = quote == '"' && *c == '\\' && !escaped;
            closes
        });
        let Some((length, _)) = close else {
            self.error(self.at..self.line_end(), format!("this quote ({quote}) is not closed"), "close the quote");
            self.at = self.text.len();
            return None;
        };
        let range = start..start + length;
        self.at = range.end + 1;
        self.skip(is_blank);
        if !self.rest().is_empty() && !self.rest().starts_with(['\n', '#']) {
            self.error(
                self.at..self.line_end(),
                "there is more after the closing quote",
                "put the whole value into the quotes, and write \\\" for a quote inside double quotes",
            );
            return None;
        }
        self.at = self.line_end();
        Some((&self.text[range.clone()], range))
    }

    fn expanded(&mut self, raw: &str, range: Range<usize>) -> Option<String> {
        let (outer, values) = (self.outer, &self.values);
        let lookup = |name: &str| outer(name).or_else(|| values.get(name).map(String::as_str));
        let result = interpolate(raw, &lookup);
        // Escapes shift what follows them: then only the value's beginning is exact.
        let exact = self.text[range.clone()] == *raw;
        let place = |part: &Range<usize>| {
            if exact { range.start + part.start..range.start + part.end } else { range.clone() }
        };
        match result {
            Ok(expansion) => {
                for (name, part) in expansion.unset {
                    if self.diagnostics.is_full() {
                        break;
                    }
                    let span = self.source.span(place(&part));
                    let message = format!("the variable `{name}` is not set: it counts as empty");
                    self.diagnostics.warning(self.source, span, message).help("in single quotes a `$` is only a `$`");
                }
                Some(expansion.text)
            }
            Err(fault) => {
                let or = if fault.is_syntax { "; or put the value into single quotes" } else { "" };
                let help = format!("{}{or}", fault.help);
                self.error(place(&fault.range), fault.message, &help);
                None
            }
        }
    }
}

/// `\$` becomes `$$`, the interpolation's own way to write a dollar sign.
fn unescape(raw: &str) -> String {
    let mut out = String::with_capacity(raw.len());
    let mut chars = raw.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next() {
            Some('n') => out.push('\n'),
            Some('r') => out.push('\r'),
            Some('t') => out.push('\t'),
            Some('$') => out.push_str("$$"),
            Some(c @ ('"' | '\\')) => out.push(c),
            Some(c) => out.extend(['\\', c]),
            None => out.push('\\'),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> (BTreeMap<String, String>, Vec<String>) {
        let mut diagnostics = Diagnostics::default();
        let outside = |name: &str| (name == "OUTSIDE").then_some("outside");
        let values = parse(&Source::new(".env", text), &outside, &mut diagnostics);
        let found = match diagnostics.finish(Some(())) {
            Ok((_, warnings)) => warnings,
            Err(problems) => problems.found,
        };
        (values, found.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn every_notation() {
        let cases = [
            ("A=b", "b"),
            ("A = b ", "b"),
            ("export A=b", "b"),
            ("\u{feff}A=b\r\n", "b"),
            ("A=b # comment", "b"),
            ("A=b#no comment", "b#no comment"),
            ("A=#all comment", ""),
            ("A=", ""),
            ("A=b=c", "b=c"),
            ("A='b # $C \\n'  # comment", "b # $C \\n"),
            (r#"A="b \"c\" \n\t\\ \$D \x""#, "b \"c\" \n\t\\ $D \\x"),
            ("A=\"one\ntwo\"", "one\ntwo"),
            ("A='one\ntwo'", "one\ntwo"),
            ("A=${OUTSIDE}!", "outside!"),
            ("A=\"$OUTSIDE\"", "outside"),
            ("B=1\nA=$B$B", "11"),
            ("A=1\nA=2", "2"),
            ("A=$$", "$"),
            ("\n\n  # only\nA=b\n\n", "b"),
        ];
        for (text, want) in cases {
            let (values, said) = read(text);
            assert_eq!(values.get("A").map(String::as_str), Some(want), "{text:?}");
            assert_eq!(said, [] as [String; 0], "{text:?}");
        }
        assert_eq!(read("OUTSIDE\nNOWHERE # comment").0, BTreeMap::from([("OUTSIDE".into(), "outside".into())]));
    }

    #[test]
    fn what_is_outside_wins_over_the_file_inside_values_only() {
        let (values, _) = read("OUTSIDE=file\nA=$OUTSIDE");
        assert_eq!((values["OUTSIDE"].as_str(), values["A"].as_str()), ("file", "outside"));
    }

    #[test]
    fn a_wrong_line_is_told_and_the_next_is_read() {
        let (values, said) = read("A B=1\nC=2\nD=${\nE=3");
        assert_eq!(values.len(), 2, "{values:?}");
        assert_eq!(said.len(), 2);
        assert!(said[0].contains(".env:1:1") && said[1].contains(".env:3:3"), "{said:?}");
    }

    #[test]
    fn values_inside_one_another_are_bounded() {
        let mut text = format!("A0={}\n", "x".repeat(1000));
        for step in 0..40 {
            text.push_str(&format!("A{}=$A{step}$A{step}\n", step + 1));
        }
        let (_, said) = read(&text);
        assert!(said.iter().any(|said| said.contains("larger than")), "{said:?}");
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "([A=\"'#$\\\\\n ]|[{]|[}]|export |é|:-){0,60}") {
            let _ = read(&text);
        }

        #[test]
        fn single_quotes_keep_any_line(value in "[^'\\p{C}]{0,40}") {
            let (values, _) = read(&format!("A='{value}'"));
            prop_assert_eq!(&values["A"], &value);
        }
    }
}
