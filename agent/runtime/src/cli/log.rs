//! Errors for whoever called: a line on standard error, and one in the log file. Warnings go to standard error only where
//! there is no log: that is also the program's.
//!
//! containerd and dockerd read the last error of a JSON log to tell their users.

use std::{fs::OpenOptions, io::Write, path::PathBuf, sync::OnceLock};

use clap::ValueEnum;
use jiff::Timestamp;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Format {
    Text,
    Json,
}

/// The file, as long as this process lives.
static FILE: OnceLock<(PathBuf, Format)> = OnceLock::new();

pub(super) fn write_to(file: Option<PathBuf>, format: Format) {
    if let Some(file) = file {
        // Called once.
        let _ = FILE.set((file, format));
    }
}

pub(super) fn error(words: &str) {
    tell(words);
    append("error", words);
}

/// Of what does not stop a command.
pub(super) fn warn(words: &str) {
    if !append("warning", words) {
        tell(&format!("warning: {words}"));
    }
}

/// On standard error, where somebody may have stopped listening: that ends nothing.
fn tell(words: &str) {
    let _ = writeln!(std::io::stderr(), "roster-runtime: {words}");
}

/// Whether there is a log that has it now.
fn append(level: &str, words: &str) -> bool {
    let Some((path, format)) = FILE.get() else { return false };
    let line = line(*format, level, words, Timestamp::now());
    let written = OpenOptions::new().create(true).append(true).open(path).and_then(|mut file| file.write_all(&line));
    if let Err(error) = &written {
        // The last place there is to say it.
        tell(&format!("cannot write {}: {error}", path.display()));
    }
    written.is_ok()
}

fn line(format: Format, level: &str, words: &str, now: Timestamp) -> Vec<u8> {
    let time = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let text = match format {
        Format::Json => serde_json::json!({ "level": level, "msg": words, "time": time }).to_string(),
        Format::Text => format!("time=\"{time}\" level={level} msg={words:?}"),
    };
    format!("{text}\n").into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_when_and_what() {
        let now: Timestamp = "2026-11-21T10:00:00Z".parse().expect("a time");
        let json = line(Format::Json, "error", "cannot \"x\"", now);
        let value: serde_json::Value = serde_json::from_slice(&json).expect("JSON");
        assert_eq!(value["msg"], "cannot \"x\"");
        assert_eq!((&value["level"], &value["time"]), (&"error".into(), &"2026-11-21T10:00:00Z".into()));
        let text = String::from_utf8(line(Format::Text, "error", "no", now)).expect("text");
        assert_eq!(text, "time=\"2026-11-21T10:00:00Z\" level=error msg=\"no\"\n");
    }
}
