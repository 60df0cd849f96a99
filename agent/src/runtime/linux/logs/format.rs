//! One line of a log file, in the Container Runtime Interface's format, so that other tools can read it too. Pure.
//!
//! `2026-01-02T03:04:05.000000006Z stdout F the line`; `P` instead of `F` for a piece of a line that goes on.

use roster_proto::report::LogStream;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry<'a> {
    /// Since 1970.
    pub nanos: u64,
    pub stream: LogStream,
    pub partial: bool,
    pub line: &'a [u8],
}

impl<'a> Entry<'a> {
    /// Appends the entry with its line end.
    pub fn write(&self, out: &mut Vec<u8>) {
        let stream: &[u8] = match self.stream {
            LogStream::Stdout => b"stdout",
            LogStream::Stderr => b"stderr",
        };
        let moment = jiff::Timestamp::from_nanosecond(self.nanos.into()).unwrap_or(jiff::Timestamp::UNIX_EPOCH);
        out.extend_from_slice(format!("{moment:.9} ").as_bytes());
        out.extend_from_slice(stream);
        out.extend_from_slice(if self.partial { b" P " } else { b" F " });
        out.extend_from_slice(self.line);
        out.push(b'\n');
    }

    /// Reads an entry without its line end; `None` for what is none.
    pub fn parse(bytes: &'a [u8]) -> Option<Self> {
        let mut parts = bytes.splitn(4, |byte| *byte == b' ');
        let moment = std::str::from_utf8(parts.next()?).ok()?;
        let stream = match parts.next()? {
            b"stdout" => LogStream::Stdout,
            b"stderr" => LogStream::Stderr,
            _ => return None,
        };
        let partial = match parts.next()? {
            b"F" => false,
            b"P" => true,
            _ => return None,
        };
        let moment: jiff::Timestamp = moment.parse().ok()?;
        let nanos = u64::try_from(moment.as_nanosecond()).ok()?;
        Some(Self { nanos, stream, partial, line: parts.next()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_come_back_as_written() {
        for line in [&b"hello  world"[..], b"", b"\xff\x00 \xfe"] {
            let entry =
                Entry { nanos: 1_767_322_145_000_000_006, stream: LogStream::Stderr, partial: line.is_empty(), line };
            let mut out = Vec::new();
            entry.write(&mut out);
            assert_eq!(out.pop(), Some(b'\n'));
            assert!(out.starts_with(b"2026-01-02T02:49:05.000000006Z stderr "), "{}", out.escape_ascii());
            assert_eq!(Entry::parse(&out), Some(entry));
        }
        assert_eq!(Entry::parse(b"not a log line"), None);
    }
}
