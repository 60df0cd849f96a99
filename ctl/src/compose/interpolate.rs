//! `$NAME` and `${NAME...}` in a text, as the Compose Specification's "Interpolation" defines them.
//!
//! Two passes: the whole text is parsed first, so that a mistake in a default that is not needed is still told; then
//! it is expanded, and only what is needed is looked at. Pure: variables come from the caller. The result is bounded.

use std::ops::Range;

/// Nested `${A:-${B:-...}}`.
const MAX_NESTING: usize = 16;
/// Bytes a text may grow to.
pub(super) const MAX_EXPANSION: usize = 1 << 20;

/// What is wrong, and with which bytes of the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) range: Range<usize>,
    pub(super) message: String,
    pub(super) help: String,
    /// The text is malformed, whatever the variables are.
    pub(super) is_syntax: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Expansion {
    pub(super) text: String,
    /// Variables without value and default, taken as empty, with the bytes of their expression.
    pub(super) unset: Vec<(String, Range<usize>)>,
}

pub(super) type Lookup<'v> = &'v dyn Fn(&str) -> Option<&'v str>;

pub(super) fn interpolate(text: &str, lookup: Lookup<'_>) -> Result<Expansion, Fault> {
    let mut parser = Parser { text, at: 0 };
    let parts = parser.parts(0, false)?;
    let mut expansion = Expansion::default();
    expand(&parts, lookup, &mut expansion)?;
    Ok(expansion)
}

enum Part {
    Literal(String),
    Variable { name: String, operator: Option<Operator>, range: Range<usize> },
}

struct Operator {
    kind: Kind,
    /// With `:` an empty value counts as unset.
    empty_is_unset: bool,
    word: Vec<Part>,
}

#[derive(Clone, Copy)]
enum Kind {
    Default,
    Required,
    Alternative,
}

struct Parser<'t> {
    text: &'t str,
    at: usize,
}

fn is_name_start(c: char) -> bool {
    c.is_ascii_alphabetic() || c == '_'
}

fn is_name(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn name(&mut self) -> String {
        let rest = self.rest();
        let name = &rest[..rest.find(|c| !is_name(c)).unwrap_or(rest.len())];
        let name = name.to_owned();
        self.at += name.len();
        name
    }

    /// Up to the end, or, inside braces, up to the closing one, which is left.
    fn parts(&mut self, depth: usize, braced: bool) -> Result<Vec<Part>, Fault> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        while let Some(c) = self.rest().chars().next() {
            if braced && c == '}' {
                break;
            }
            if c != '$' {
                literal.push(c);
                self.at += c.len_utf8();
            } else if self.rest().starts_with("$$") {
                literal.push('$');
                self.at += 2;
            } else {
                if !literal.is_empty() {
                    parts.push(Part::Literal(std::mem::take(&mut literal)));
                }
                parts.push(self.variable(depth)?);
            }
        }
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(parts)
    }

    /// At a `$` that is not doubled.
    fn variable(&mut self, depth: usize) -> Result<Part, Fault> {
        let start = self.at;
        self.at += 1;
        match self.rest().chars().next() {
            Some(c) if is_name_start(c) => {
                let name = self.name();
                Ok(Part::Variable { name, operator: None, range: start..self.at })
            }
            Some('{') => {
                self.at += 1;
                self.braced(start, depth)
            }
            next => Err(Fault {
                range: start..start + 1 + next.map_or(0, char::len_utf8),
                message: "a `$` must be followed by a variable's name".to_owned(),
                help: "write $$ for a dollar sign itself".to_owned(),
                is_syntax: true,
            }),
        }
    }

    fn braced(&mut self, start: usize, depth: usize) -> Result<Part, Fault> {
        if depth >= MAX_NESTING {
            return Err(Fault {
                range: start..self.at,
                message: format!("more than {MAX_NESTING} variables inside one another"),
                help: "put part of it into a variable of its own".to_owned(),
                is_syntax: true,
            });
        }
        if !self.rest().starts_with(is_name_start) {
            return Err(self.malformed(start, "a variable's name begins with a letter or `_`"));
        }
        let name = self.name();
        let operator = self.operator(start, depth)?;
        if !self.rest().starts_with('}') {
            return Err(Fault {
                range: start..self.text.len(),
                message: format!("`${{{name}` is not closed"),
                help: "add the `}`".to_owned(),
                is_syntax: true,
            });
        }
        self.at += 1;
        Ok(Part::Variable { name, operator, range: start..self.at })
    }

    fn operator(&mut self, start: usize, depth: usize) -> Result<Option<Operator>, Fault> {
        let empty_is_unset = self.rest().starts_with(':');
        let mut rest = self.rest().chars().skip(usize::from(empty_is_unset));
        let kind = match rest.next() {
            Some('-') => Kind::Default,
            Some('?') => Kind::Required,
            Some('+') => Kind::Alternative,
            Some('}') | None if !empty_is_unset => return Ok(None),
            _ => return Err(self.malformed(start, "this is not a form of variable that Compose knows")),
        };
        self.at += 1 + usize::from(empty_is_unset);
        let word = self.parts(depth + 1, true)?;
        Ok(Some(Operator { kind, empty_is_unset, word }))
    }

    fn malformed(&self, start: usize, message: &str) -> Fault {
        let end = self.rest().find('}').map_or(self.text.len(), |at| self.at + at + 1);
        Fault {
            range: start..end,
            message: message.to_owned(),
            help: "write ${NAME}, ${NAME:-default}, ${NAME:?message} or ${NAME:+instead}, and $$ for a dollar sign"
                .to_owned(),
            is_syntax: true,
        }
    }
}

fn expand(parts: &[Part], lookup: Lookup<'_>, out: &mut Expansion) -> Result<(), Fault> {
    for part in parts {
        let (name, operator, range) = match part {
            Part::Literal(text) => {
                out.text.push_str(text);
                continue;
            }
            Part::Variable { name, operator, range } => (name, operator, range),
        };
        let value = lookup(name);
        match operator {
            None => match value {
                Some(value) => out.text.push_str(value),
                None => out.unset.push((name.clone(), range.clone())),
            },
            Some(Operator { kind, empty_is_unset, word }) => {
                let set = value.filter(|value| !(*empty_is_unset && value.is_empty()));
                match (kind, set) {
                    (Kind::Default | Kind::Required, Some(value)) => out.text.push_str(value),
                    (Kind::Default, None) | (Kind::Alternative, Some(_)) => expand(word, lookup, out)?,
                    (Kind::Alternative, None) => {}
                    (Kind::Required, None) => return Err(required(name, value, word, lookup, range)?),
                }
            }
        }
        if out.text.len() > MAX_EXPANSION {
            return Err(Fault {
                range: range.clone(),
                message: format!("with this variable the value is larger than {} KiB", MAX_EXPANSION / 1024),
                help: format!("shorten `{name}`, or use it less often"),
                is_syntax: false,
            });
        }
    }
    Ok(())
}

/// The fault that `${NAME:?word}` asks for.
fn required(
    name: &str,
    value: Option<&str>,
    word: &[Part],
    lookup: Lookup<'_>,
    range: &Range<usize>,
) -> Result<Fault, Fault> {
    let mut said = Expansion::default();
    expand(word, lookup, &mut said)?;
    let state = if value.is_some() { "is empty" } else { "is not set" };
    let message = match said.text.trim() {
        "" => format!("the variable `{name}` is required and {state}"),
        text => format!("the variable `{name}` is required and {state}: {text}"),
    };
    Ok(Fault {
        is_syntax: false,
        range: range.clone(),
        message,
        help: format!("set `{name}` in the environment or in the .env file"),
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn with(text: &str) -> Result<Expansion, Fault> {
        let variables = HashMap::from([("SET", "value"), ("EMPTY", ""), ("_a1", "x"), ("DOLLAR", "$SET")]);
        interpolate(text, &|name| variables.get(name).copied())
    }

    #[test]
    fn every_form_of_the_specification() {
        let cases = [
            ("$SET", "value"),
            ("${SET}", "value"),
            ("a${SET}b$_a1-c", "avaluebx-c"),
            ("$$SET and $${SET}", "$SET and ${SET}"),
            ("${SET:-d} ${EMPTY:-d} ${NO:-d}", "value d d"),
            ("${SET-d} ${EMPTY-d} ${NO-d}", "value  d"),
            ("${SET:+a} ${EMPTY:+a} ${NO:+a}.", "a  ."),
            ("${SET+a} ${EMPTY+a} ${NO+a}.", "a a ."),
            ("${SET:?e} ${EMPTY?e}", "value "),
            ("${NO:-${ALSO_NO:-${SET}}}", "value"),
            ("${NO:-}", ""),
            ("${NO:-a$$b}", "a$b"),
            ("${NO:-http://x:80/?a=b}", "http://x:80/?a=b"),
            // A default that is not needed is not looked at.
            ("${SET:-${NO:?never asked}}", "value"),
            // What a variable holds is not expanded again.
            ("$DOLLAR", "$SET"),
        ];
        for (text, want) in cases {
            let expansion = with(text).unwrap_or_else(|fault| panic!("{text}: {fault:?}"));
            assert_eq!(expansion.text, want, "{text}");
            assert_eq!(expansion.unset, [], "{text}");
        }
    }

    #[test]
    fn an_unset_variable_without_default_is_empty_and_told() {
        let expansion = with("a$NO-${NEITHER}").expect("well formed");
        assert_eq!(expansion.text, "a-");
        assert_eq!(expansion.unset, [("NO".to_owned(), 1..4), ("NEITHER".to_owned(), 5..15)]);
    }

    #[test]
    fn faults_name_their_bytes() {
        let cases = [
            ("ab$", 2..3),
            ("é$1", 2..4),
            ("$ x", 0..2),
            ("a${SET", 1..6),
            ("a${}b", 1..4),
            ("a${SET:x}b", 1..9),
            ("a${NO:?no}b", 1..10),
            ("${SET:-${}}", 7..10),
        ];
        for (text, range) in cases {
            assert_eq!(with(text).expect_err(text).range, range, "{text}");
        }
        assert!(with(&"${A:-".repeat(MAX_NESTING + 1)).expect_err("too deep").message.contains("inside one another"));
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic_and_faults_lie_inside(text in "([$]|[{]|[}]|:|-|[?]|[+]|A|é| ){0,40}") {
            match with(&text) {
                Ok(expansion) => prop_assert!(expansion.unset.iter().all(|(_, range)| text.get(range.clone()).is_some())),
                Err(fault) => prop_assert!(text.get(fault.range).is_some()),
            }
        }

        #[test]
        fn what_has_no_dollar_is_kept(text in "[^$]{0,40}") {
            prop_assert_eq!(with(&text).expect("nothing to expand").text, text);
        }

        #[test]
        fn doubled_dollars_keep_any_text(text in "\\PC{0,40}") {
            prop_assert_eq!(with(&text.replace('$', "$$")).expect("nothing to expand").text, text);
        }
    }
}
