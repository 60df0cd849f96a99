//! Reads a tar stream entry by entry: ustar, GNU long names, pax extended headers.
//!
//! Guarantees: memory is bounded whatever the stream says (an extended header is at most a limit long), nothing is
//! sought back to, every header's checksum holds, and a stream that ends within an entry is an error. Deliberately
//! absent: sparse files (no image builder writes them) and global extended headers (skipped, as Docker does).
//!
//! Formats: tar(5); pax extended headers: POSIX.1-2017, pax, "pax Extended Header".

use std::io::{self, Read};

use tar::{EntryType, Header};

const BLOCK: usize = 512;

/// Whether a stream may end without the two blocks of zeros that POSIX wants at its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trailer {
    /// Without it, a stream cut off between two entries would go unnoticed.
    Required,
    /// For layers: their digest tells, and some builders leave it out.
    Optional,
}

#[derive(Debug)]
pub struct TarReader<R> {
    input: R,
    trailer: Trailer,
    bounds: Bounds,
    /// Bytes of the current entry not yet read, and what pads them to a whole block.
    body: u64,
    padding: u64,
    entries: u64,
}

/// What a stream may cost to read.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    pub entries: u64,
    /// Of one extended header.
    pub extension_bytes: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum TarError {
    #[error("{0}")]
    Bad(String),
    #[error("{what} goes over the limit of {limit}")]
    TooLarge { what: &'static str, limit: u64 },
    #[error("cannot read it")]
    Read(#[from] io::Error),
}

/// One file, directory or link, with what the extended headers before it said.
#[derive(Debug)]
pub struct Entry {
    pub kind: EntryType,
    pub path: Vec<u8>,
    pub link: Vec<u8>,
    /// Bytes of content that follow; 0 for all but files.
    pub size: u64,
    /// Permission bits with setuid, setgid and sticky.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds and nanoseconds since 1970.
    pub mtime: (i64, u32),
    pub device: (u32, u32),
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// What extended headers say of the entry that follows them.
#[derive(Debug, Default)]
struct Extensions {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl<R: Read> TarReader<R> {
    pub fn new(input: R, trailer: Trailer, bounds: Bounds) -> Self {
        Self { input, trailer, bounds, body: 0, padding: 0, entries: 0 }
    }

    /// The next entry; what was not read of the last one is skipped.
    pub fn next_entry(&mut self) -> Result<Option<Entry>, TarError> {
        let mut extensions = Extensions::default();
        loop {
            self.skip_body()?;
            let Some(block) = self.header_block()? else { return Ok(None) };
            let header = Header::from_byte_slice(&block);
            let size = header.entry_size().map_err(|error| self.bad(error.to_string()))?;
            self.entries += 1;
            if self.entries > self.bounds.entries {
                return Err(TarError::TooLarge { what: "the number of its entries", limit: self.bounds.entries });
            }
            match header.entry_type() {
                EntryType::XGlobalHeader => self.begin_body(size)?,
                EntryType::XHeader => {
                    let text = self.extension(size)?;
                    parse_pax(&text, &mut extensions).map_err(|what| self.bad(what))?;
                }
                EntryType::GNULongName => extensions.path = Some(until_nul(self.extension(size)?)),
                EntryType::GNULongLink => extensions.link = Some(until_nul(self.extension(size)?)),
                kind => return self.entry(kind, header, size, extensions).map(Some),
            }
        }
    }

    /// The current entry's content.
    pub fn content(&mut self) -> Content<'_, R> {
        Content(self)
    }

    /// Gives the input back, to read what follows the end of the archive.
    pub fn into_inner(self) -> R {
        self.input
    }

    fn entry(
        &mut self,
        kind: EntryType,
        header: &Header,
        size: u64,
        extensions: Extensions,
    ) -> Result<Entry, TarError> {
        let path = extensions.path.unwrap_or_else(|| header.path_bytes().into_owned());
        let link =
            extensions.link.unwrap_or_else(|| header.link_name_bytes().map(|l| l.into_owned()).unwrap_or_default());
        // Before POSIX, a directory was a file whose name ends in a slash.
        let kind = if kind == EntryType::Regular && path.ends_with(b"/") { EntryType::Directory } else { kind };
        let has_content = matches!(kind, EntryType::Regular | EntryType::Continuous);
        let size = if has_content { extensions.size.unwrap_or(size) } else { 0 };
        self.begin_body(size)?;

        let bad = |error: io::Error| self.bad(format!("{}: {error}", printable(&path)));
        let id = |what: &str, from_pax: Option<u64>, from_header: io::Result<u64>| {
            let value = from_pax.map_or(from_header, Ok).map_err(bad)?;
            // The last value means "leave as it is" to chown.
            u32::try_from(value)
                .ok()
                .filter(|id| *id != u32::MAX)
                .ok_or_else(|| self.bad(format!("{}: {what} {value} does not exist", printable(&path))))
        };
        let device = (header.device_major().ok().flatten(), header.device_minor().ok().flatten());
        Ok(Entry {
            kind,
            size,
            mode: header.mode().map_err(bad)? & 0o7777,
            uid: id("user", extensions.uid, header.uid())?,
            gid: id("group", extensions.gid, header.gid())?,
            mtime: match extensions.mtime {
                Some(time) => time,
                None => (header.mtime().map_err(bad)?.cast_signed(), 0),
            },
            device: (device.0.unwrap_or(0), device.1.unwrap_or(0)),
            xattrs: extensions.xattrs,
            path,
            link,
        })
    }

    fn begin_body(&mut self, size: u64) -> Result<(), TarError> {
        self.body = size;
        self.padding = size
            .checked_next_multiple_of(BLOCK as u64)
            .map(|end| end - size)
            .ok_or_else(|| self.bad("an entry's size is beyond all bounds"))?;
        Ok(())
    }

    /// The content of an extended header.
    fn extension(&mut self, size: u64) -> Result<Vec<u8>, TarError> {
        if size > self.bounds.extension_bytes {
            return Err(TarError::TooLarge { what: "an extended header", limit: self.bounds.extension_bytes });
        }
        self.begin_body(size)?;
        let mut bytes = vec![0; size as usize];
        self.content().read_exact(&mut bytes)?;
        Ok(bytes)
    }

    fn skip_body(&mut self) -> Result<(), TarError> {
        let left = self.body + self.padding;
        (self.body, self.padding) = (0, 0);
        let skipped = io::copy(&mut (&mut self.input).take(left), &mut io::sink())?;
        if skipped < left {
            return Err(self.cut_off());
        }
        Ok(())
    }

    /// The next header, or `None` at the end of the archive.
    fn header_block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let Some(block) = self.block()? else {
            return match self.trailer {
                Trailer::Required => Err(self.cut_off()),
                Trailer::Optional => Ok(None),
            };
        };
        if block.iter().all(|&byte| byte == 0) {
            let second = self.block()?;
            if self.trailer == Trailer::Required && second.is_none_or(|block| block.iter().any(|&byte| byte != 0)) {
                return Err(self.cut_off());
            }
            return Ok(None);
        }
        let header = Header::from_byte_slice(&block);
        // The sum is taken with the checksum's own eight bytes as spaces.
        let sum: u32 =
            block.iter().enumerate().map(|(i, &b)| u32::from(if (148..156).contains(&i) { b' ' } else { b })).sum();
        if header.cksum().ok() != Some(sum) {
            return Err(self.bad("it is not a tar archive, or damaged: a header's checksum does not hold"));
        }
        Ok(Some(block))
    }

    /// A whole block, or `None` at the end of the input.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>, TarError> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while filled < BLOCK {
            match self.input.read(&mut block[filled..]) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(self.cut_off()),
                Ok(n) => filled += n,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(block))
    }

    fn bad(&self, what: impl Into<String>) -> TarError {
        TarError::Bad(what.into())
    }

    fn cut_off(&self) -> TarError {
        self.bad("it ends too early")
    }
}

/// The content of a tar reader's current entry. Ends with an error where the stream ends before the entry does.
#[derive(Debug)]
pub struct Content<'r, R>(&'r mut TarReader<R>);

impl<R: Read> Read for Content<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let tar = &mut *self.0;
        let most = usize::try_from(tar.body).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 {
            return Ok(0);
        }
        let n = tar.input.read(&mut buffer[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        tar.body -= n as u64;
        Ok(n)
    }
}

/// Records of the form `LENGTH KEY=VALUE\n`, where the length counts the whole record and a value may hold any byte.
fn parse_pax(mut text: &[u8], extensions: &mut Extensions) -> Result<(), String> {
    const WRONG: &str = "an extended header is malformed";
    while !text.is_empty() {
        let space = text.iter().take(20).position(|&b| b == b' ').ok_or(WRONG)?;
        let length: usize = std::str::from_utf8(&text[..space]).ok().and_then(|n| n.parse().ok()).ok_or(WRONG)?;
        if length <= space + 1 || length > text.len() || text[length - 1] != b'\n' {
            return Err(WRONG.to_owned());
        }
        let record = &text[space + 1..length - 1];
        text = &text[length..];
        let equals = record.iter().position(|&b| b == b'=').ok_or(WRONG)?;
        let (key, value) = (&record[..equals], &record[equals + 1..]);
        let number = || std::str::from_utf8(value).ok().and_then(|n| n.parse::<u64>().ok()).ok_or(WRONG);
        match key {
            b"path" => extensions.path = Some(value.to_vec()),
            b"linkpath" => extensions.link = Some(value.to_vec()),
            b"size" => extensions.size = Some(number()?),
            b"uid" => extensions.uid = Some(number()?),
            b"gid" => extensions.gid = Some(number()?),
            b"mtime" => extensions.mtime = Some(parse_time(value).ok_or(WRONG)?),
            _ if key.starts_with(b"GNU.sparse.") => return Err("sparse files are not supported".to_owned()),
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    extensions.xattrs.push((name.to_vec(), value.to_vec()));
                }
            }
        }
    }
    Ok(())
}

/// Seconds with an optional fraction, and an optional minus sign.
fn parse_time(text: &[u8]) -> Option<(i64, u32)> {
    let text = std::str::from_utf8(text).ok()?;
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    if !fraction.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let nanos: u32 = format!("{fraction:0<9.9}").parse().ok()?;
    if text.starts_with('-') && nanos > 0 {
        return Some((seconds.checked_sub(1)?, 1_000_000_000 - nanos));
    }
    Some((seconds, nanos))
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.truncate(bytes.iter().position(|&b| b == 0).unwrap_or(bytes.len()));
    bytes
}

/// A path from an archive, for a message: no control characters, and not endless.
pub fn printable(path: &[u8]) -> String {
    const LONGEST: usize = 200;
    let shown = &path[..path.len().min(LONGEST)];
    let mut text: String = String::from_utf8_lossy(shown).escape_debug().collect();
    if path.len() > LONGEST {
        text.push('…');
    }
    text
}
