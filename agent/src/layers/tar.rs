//! Writes a tar stream: ustar, with pax extended headers for what does not fit it, and GNU's form of files with holes.
//!
//! Formats: tar(5); POSIX.1-2017, pax, "pax Extended Header"; GNU tar's manual, "PAX Format, Version 1.0" of sparse
//! files.

use std::io::{self, Write};

use tar::{EntryType, Header};

const BLOCK: usize = 512;
/// Of a name or a link in ustar, without its prefix.
const NAME: usize = 100;

/// What a header says.
#[derive(Clone, Debug)]
pub(super) struct Head {
    pub(super) kind: EntryType,
    pub(super) path: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Seconds since 1970.
    pub(super) mtime: u64,
    pub(super) device: (u32, u32),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// A stretch of a file that holds data: where it begins, and its length.
pub(super) type Stretch = (u64, u64);

#[derive(Debug)]
pub(super) struct TarWriter<W> {
    out: W,
}

impl<W: Write> TarWriter<W> {
    pub(super) fn new(out: W) -> Self {
        Self { out }
    }

    /// Its `size` bytes of content follow, then [`TarWriter::pad`].
    pub(super) fn head(&mut self, head: &Head, size: u64) -> io::Result<&mut W> {
        self.write(head, size, Vec::new())
    }

    /// The data of all stretches follows, then [`TarWriter::pad`]; returned is how many bytes to pad for.
    pub(super) fn sparse(&mut self, head: &Head, size: u64, stretches: &[Stretch]) -> io::Result<u64> {
        let mut map = format!("{}\n", stretches.len());
        stretches.iter().for_each(|(at, length)| map.push_str(&format!("{at}\n{length}\n")));
        let mut map = map.into_bytes();
        map.resize(map.len().next_multiple_of(BLOCK), 0);
        let data: u64 = stretches.iter().map(|(_, length)| length).sum();
        let records = vec![
            (b"GNU.sparse.major".to_vec(), b"1".to_vec()),
            (b"GNU.sparse.minor".to_vec(), b"0".to_vec()),
            (b"GNU.sparse.name".to_vec(), head.path.clone()),
            (b"GNU.sparse.realsize".to_vec(), size.to_string().into_bytes()),
        ];
        // For those who do not know the form, under a name that is not the file's.
        let path = [b"GNUSparseFile.0/".as_slice(), &head.path].concat();
        let stored = map.len() as u64 + data;
        self.write(&Head { path, ..head.clone() }, stored, records)?.write_all(&map)?;
        Ok(stored)
    }

    pub(super) fn out(&mut self) -> &mut W {
        &mut self.out
    }

    /// After `size` bytes of content.
    pub(super) fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = usize::try_from(size % BLOCK as u64).unwrap_or(0);
        if over > 0 { self.out.write_all(&[0; BLOCK][over..]) } else { Ok(()) }
    }

    pub(super) fn finish(mut self) -> io::Result<W> {
        self.out.write_all(&[0; 2 * BLOCK])?;
        self.out.flush()?;
        Ok(self.out)
    }

    fn write(&mut self, head: &Head, size: u64, mut records: Vec<(Vec<u8>, Vec<u8>)>) -> io::Result<&mut W> {
        if head.path.len() > NAME {
            records.push((b"path".to_vec(), head.path.clone()));
        }
        if head.link.len() > NAME {
            records.push((b"linkpath".to_vec(), head.link.clone()));
        }
        let named = |(name, value): &(Vec<u8>, Vec<u8>)| ([b"SCHILY.xattr.", name.as_slice()].concat(), value.clone());
        records.extend(head.xattrs.iter().map(named));
        if !records.is_empty() {
            let body: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            let extension = Head { kind: EntryType::XHeader, path: b"pax".to_vec(), link: Vec::new(), ..head.clone() };
            self.out.write_all(block(&extension, body.len() as u64)?.as_bytes())?;
            self.out.write_all(&body)?;
            self.pad(body.len() as u64)?;
        }
        self.out.write_all(block(head, size)?.as_bytes())?;
        Ok(&mut self.out)
    }
}

fn block(head: &Head, size: u64) -> io::Result<Header> {
    let mut header = Header::new_ustar();
    header.set_entry_type(head.kind);
    header.set_mode(head.mode);
    header.set_uid(head.uid.into());
    header.set_gid(head.gid.into());
    header.set_mtime(head.mtime);
    header.set_size(size);
    header.set_device_major(head.device.0)?;
    header.set_device_minor(head.device.1)?;
    let fields = header.as_old_mut();
    let (name, link) = (head.path.len().min(NAME), head.link.len().min(NAME));
    fields.name[..name].copy_from_slice(&head.path[..name]);
    fields.linkname[..link].copy_from_slice(&head.link[..link]);
    header.set_cksum();
    Ok(header)
}

/// `LENGTH KEY=VALUE\n`, where the length counts its own digits.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + 1;
    while length.to_string().len() + rest > length {
        length += 1;
    }
    [format!("{length} ").as_bytes(), key, b"=", value, b"\n"].concat()
}
