//! From domain values to text. Pure: the present moment and the terminal's width are arguments.

pub mod cluster;
mod container;
pub mod inspect;
pub mod kept;
pub mod list;
pub mod plan;
pub mod progress;
pub mod spec;
pub mod style;
pub mod table;
pub mod usage;
pub mod views;

#[cfg(test)]
mod tests;

use clap::ValueEnum;
use serde::Serialize;

use crate::error::Error;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    Table,
    Wide,
    Json,
    Yaml,
}

impl Format {
    /// For programs: the value as a document, or nothing when a person wants to read it.
    pub fn document(self, value: &impl Serialize) -> Option<String> {
        match self {
            Format::Table | Format::Wide => None,
            Format::Json => Some(serde_json::to_string_pretty(value).expect("views are plain data") + "\n"),
            Format::Yaml => {
                let text = serde_saphyr::to_string(value).expect("views are plain data");
                Some(if text.ends_with('\n') { text } else { text + "\n" })
            }
        }
    }
}

/// What goes to standard error when a command failed.
pub fn error(error: &Error) -> String {
    match error {
        // A spec's problems each say what they are.
        Error::Spec(problems) => problem(problems),
        other => problem(&format!("error: {other}")),
    }
}

/// Colours the word that a problem begins with.
pub fn problem(text: &impl ToString) -> String {
    let mut out = String::new();
    for line in text.to_string().lines() {
        let coloured = [("error:", style::BAD), ("warning:", style::BUSY)]
            .into_iter()
            .find_map(|(word, style)| Some(format!("{style}{word}{style:#}{}", line.strip_prefix(word)?)));
        out.push_str(coloured.as_deref().unwrap_or(line));
        out.push('\n');
    }
    out.truncate(out.trim_end().len());
    out
}
