//! Tar archives out of arbitrary bytes: as they come, or with headers whose checksums are right, or put together from
//! entries; then compressed, or not.

use std::io::Write;

use libfuzzer_sys::arbitrary::{self, Arbitrary};

const BLOCK: usize = 512;
const CHECKSUM: std::ops::Range<usize> = 148..156;
const MAGIC: std::ops::Range<usize> = 257..262;
/// Names that say something to who unpacks; few, so that entries meet.
const PARTS: [&str; 12] = ["a", "b", "c", "d", "..", ".", "", ".wh.a", ".wh..wh..opq", ".wh.", ".wh..wh.x", "working"];

#[derive(Arbitrary, Debug)]
pub struct Archive {
    stream: Stream,
    packed: Packed,
}

#[derive(Arbitrary, Debug)]
enum Stream {
    Raw(Vec<u8>),
    Sealed(Vec<u8>),
    Entries { entries: Vec<Entry>, has_end: bool, cut: u16 },
}

#[derive(Arbitrary, Debug)]
enum Packed {
    Plain,
    Gzip,
    Zstd,
    /// One after the other.
    TwoGzips(u16),
}

#[derive(Arbitrary, Debug)]
struct Entry {
    kind: Kind,
    path: Name,
    link: Name,
    mode: u16,
    owner: u32,
    content: Vec<u8>,
    /// Other than the content's.
    size: Option<u16>,
    device: (u8, u8),
    mtime: i64,
    extended: Vec<(Key, Vec<u8>)>,
    /// What the header has elsewhere.
    patch: Option<(u16, u8)>,
}

#[derive(Arbitrary, Debug)]
enum Kind {
    File,
    Link,
    Symlink,
    Char,
    Block,
    Dir,
    Fifo,
    LongName,
    LongLink,
    Global,
    Sparse,
    Other(u8),
}

#[derive(Arbitrary, Debug)]
enum Name {
    Parts { absolute: bool, parts: Vec<u8> },
    Bytes(Vec<u8>),
}

#[derive(Arbitrary, Debug)]
enum Key {
    Path,
    Link,
    Size,
    Uid,
    Gid,
    Mtime,
    Capability,
    User,
    Trusted,
    SparseMap,
    Other(Vec<u8>),
}

impl Archive {
    pub fn bytes(&self) -> Vec<u8> {
        let plain = match &self.stream {
            Stream::Raw(bytes) => bytes.clone(),
            Stream::Sealed(bytes) => sealed(bytes.clone()),
            Stream::Entries { entries, has_end, cut } => {
                let mut all: Vec<u8> = entries.iter().flat_map(Entry::bytes).collect();
                if *has_end {
                    all.extend([0; 2 * BLOCK]);
                }
                // Mostly nothing.
                let cut = usize::from(*cut).saturating_sub(60_000);
                all.truncate(all.len().saturating_sub(cut));
                all
            }
        };
        match self.packed {
            Packed::Plain => plain,
            Packed::Gzip => gzip(&plain),
            Packed::Zstd => zstd::encode_all(&plain[..], 1).expect("compressed"),
            Packed::TwoGzips(at) => {
                let (one, other) = plain.split_at(usize::from(at).min(plain.len()));
                [gzip(one), gzip(other)].concat()
            }
        }
    }
}

impl Entry {
    fn bytes(&self) -> Vec<u8> {
        let records: Vec<u8> = self.extended.iter().flat_map(|(key, value)| record(&key.bytes(), value)).collect();
        let mut all = Vec::new();
        if !records.is_empty() {
            all.extend(self.header(b'x', b"x", b"", records.len() as u64));
            padded(&mut all, &records);
        }
        let size = self.size.map_or(self.content.len() as u64, u64::from);
        all.extend(self.header(self.kind.byte(), &self.path.bytes(), &self.link.bytes(), size));
        padded(&mut all, &self.content);
        all
    }

    fn header(&self, kind: u8, path: &[u8], link: &[u8], size: u64) -> Vec<u8> {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(tar::EntryType::new(kind));
        header.set_mode(self.mode.into());
        header.set_uid(self.owner.into());
        header.set_gid(self.owner.into());
        header.set_size(size);
        header.set_mtime(self.mtime.unsigned_abs());
        header.set_device_major(self.device.0.into()).expect("ustar has it");
        header.set_device_minor(self.device.1.into()).expect("ustar has it");
        let old = header.as_old_mut();
        let (path, link) = (&path[..path.len().min(100)], &link[..link.len().min(100)]);
        old.name[..path.len()].copy_from_slice(path);
        old.linkname[..link.len()].copy_from_slice(link);
        let mut bytes = header.as_bytes().to_vec();
        if let Some((at, value)) = self.patch {
            bytes[usize::from(at) % BLOCK] = value;
        }
        sealed(bytes)
    }
}

impl Kind {
    fn byte(&self) -> u8 {
        match self {
            Kind::File => b'0',
            Kind::Link => b'1',
            Kind::Symlink => b'2',
            Kind::Char => b'3',
            Kind::Block => b'4',
            Kind::Dir => b'5',
            Kind::Fifo => b'6',
            Kind::LongName => b'L',
            Kind::LongLink => b'K',
            Kind::Global => b'g',
            Kind::Sparse => b'S',
            Kind::Other(byte) => *byte,
        }
    }
}

impl Name {
    fn bytes(&self) -> Vec<u8> {
        match self {
            Name::Bytes(bytes) => bytes.clone(),
            Name::Parts { absolute, parts } => {
                let parts: Vec<&str> = parts.iter().map(|part| PARTS[usize::from(*part) % PARTS.len()]).collect();
                let start = if *absolute { "/" } else { "" };
                format!("{start}{}", parts.join("/")).into_bytes()
            }
        }
    }
}

impl Key {
    fn bytes(&self) -> Vec<u8> {
        let key: &[u8] = match self {
            Key::Path => b"path",
            Key::Link => b"linkpath",
            Key::Size => b"size",
            Key::Uid => b"uid",
            Key::Gid => b"gid",
            Key::Mtime => b"mtime",
            Key::Capability => b"SCHILY.xattr.security.capability",
            Key::User => b"SCHILY.xattr.user.a",
            Key::Trusted => b"SCHILY.xattr.trusted.overlay.opaque",
            Key::SparseMap => b"GNU.sparse.map",
            Key::Other(bytes) => bytes,
        };
        key.to_vec()
    }
}

/// Every block that looks like a header gets the checksum of one.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    for block in bytes.chunks_exact_mut(BLOCK).filter(|block| block[MAGIC] == *b"ustar") {
        block[CHECKSUM].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[CHECKSUM].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
    bytes
}

fn padded(all: &mut Vec<u8>, content: &[u8]) {
    all.extend_from_slice(content);
    all.resize(all.len().next_multiple_of(BLOCK), 0);
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length != rest + length.to_string().len() {
        length = rest + length.to_string().len();
    }
    [length.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).expect("compressed");
    encoder.finish().expect("compressed")
}
