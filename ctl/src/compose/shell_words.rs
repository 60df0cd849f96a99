//! Splits `command: one "two three"` into words by the shell's quoting rules (POSIX 2.2 and 2.3), and nothing more:
//! no variables, no globs, no operators. Pure.

/// The words, with the operators among them that only a shell would understand.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Words {
    pub(super) words: Vec<String>,
    /// The first unquoted `&&`, `|`, `>` and the like standing alone.
    pub(super) operator: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Unfinished {
    Quote(char),
    Escape,
}

const OPERATORS: [&str; 10] = ["&&", "||", "|", "&", ";", ">", ">>", "<", "2>&1", ">&2"];

pub(super) fn split(text: &str) -> Result<Words, Unfinished> {
    let mut out = Words::default();
    let mut chars = text.chars().peekable();
    loop {
        while chars.next_if(|c| c.is_ascii_whitespace()).is_some() {}
        if chars.peek().is_none() {
            return Ok(out);
        }
        let (mut word, mut literal) = (String::new(), true);
        while let Some(c) = chars.next_if(|c| !c.is_ascii_whitespace()) {
            literal &= !matches!(c, '\'' | '"' | '\\');
            match c {
                '\'' => loop {
                    match chars.next().ok_or(Unfinished::Quote('\''))? {
                        '\'' => break,
                        c => word.push(c),
                    }
                },
                '"' => double_quoted(&mut chars, &mut word)?,
                '\\' => match chars.next().ok_or(Unfinished::Escape)? {
                    '\n' => {}
                    c => word.push(c),
                },
                c => word.push(c),
            }
        }
        if literal && out.operator.is_none() && OPERATORS.contains(&word.as_str()) {
            out.operator = Some(word.clone());
        }
        out.words.push(word);
    }
}

fn double_quoted(chars: &mut impl Iterator<Item = char>, word: &mut String) -> Result<(), Unfinished> {
    loop {
        match chars.next().ok_or(Unfinished::Quote('"'))? {
            '"' => return Ok(()),
            '\\' => match chars.next().ok_or(Unfinished::Quote('"'))? {
                '\n' => {}
                c @ ('"' | '\\' | '$' | '`') => word.push(c),
                c => word.extend(['\\', c]),
            },
            c => word.push(c),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn quotes_and_escapes() {
        let cases: [(&str, &[&str]); 9] = [
            ("", &[]),
            ("  a\t b\n", &["a", "b"]),
            (r"a\ b \'", &["a b", "'"]),
            (r#"'a "b" \n'"#, &[r#"a "b" \n"#]),
            (r#""a 'b' \"c\" \\ \$ \n""#, &[r#"a 'b' "c" \ $ \n"#]),
            (r#"--x="a b"'c'd"#, &["--x=a bcd"]),
            ("'' \"\"", &["", ""]),
            ("a\\\nb", &["ab"]),
            ("# is no comment", &["#", "is", "no", "comment"]),
        ];
        for (text, want) in cases {
            assert_eq!(split(text).expect(text).words, want, "{text}");
        }
        assert_eq!(split("'a"), Err(Unfinished::Quote('\'')));
        assert_eq!(split("\"a\\\""), Err(Unfinished::Quote('"')));
        assert_eq!(split("a\\"), Err(Unfinished::Escape));
    }

    #[test]
    fn only_bare_operators_are_told() {
        assert_eq!(split("a && b | c").expect("words").operator.as_deref(), Some("&&"));
        assert_eq!(split("a '&&' \\| x>y").expect("words").operator, None);
    }

    proptest! {
        #[test]
        fn quoted_words_come_back(words in prop::collection::vec("[^\0]{0,10}", 0..6)) {
            let line: Vec<String> = words.iter().map(|word| format!("'{}'", word.replace('\'', r"'\''"))).collect();
            prop_assert_eq!(split(&line.join(" ")).expect("closed").words, words);
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}") {
            let _ = split(&text);
        }
    }
}
