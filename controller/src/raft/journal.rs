//! The journal in front of sled: every batch, in order, each made durable by one write and one fdatasync(2).
//!
//! sled needs several synchronous writes for a batch, one after the other. The journal needs one, and sled gets what is
//! left of many batches at once from it ([`super::checkpoint`]). Two files are written in turn, over in place, so that a
//! flush has data to write and nothing else; one may be written over once sled has all that is in it.
//!
//! ```text
//! record: length of the payload (4), CRC-32 of store, sequence and payload (4), sequence (8), payload,
//!         zeros up to the next multiple of 512 bytes
//! ```
//!
//! The store's random identity keeps what somebody put into a payload from being taken for a record.
//!
//! Guarantees: [`Journal::open`] returns the batches that follow one another up to the last whole one. A record that
//! does not fit ends them; what whole ones there are behind it is told, for a record is only written once the one
//! before it was flushed.

use std::{
    fs::{DirBuilder, File, OpenOptions},
    io::{self, Read as _},
    os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt},
    path::{Path, PathBuf},
};

use super::{
    disk::{Batch, ReadError},
    error::{Damage, DiskError},
    record::{Fields, checksum},
};

const HEADER: usize = 16;
/// Where records begin, so that those behind a damaged one are found.
const ALIGNMENT: u64 = 512;
const NAMES: [&str; 2] = ["0", "1"];

#[derive(Debug)]
pub(super) struct Journal {
    segments: [Segment; 2],
    current: usize,
    /// After so many bytes the other segment's turn comes.
    limit: u64,
    salt: Salt,
    buffer: Vec<u8>,
}

/// Of the store's identity.
#[derive(Clone, Copy, Debug)]
struct Salt(u32);

/// What was found when the journal was opened.
#[derive(Debug)]
pub(super) struct Found {
    /// Oldest first.
    pub(super) entries: Vec<Entry>,
    /// The highest sequence of a whole record behind one that does not fit; 0 when there is none.
    pub(super) beyond: u64,
}

#[derive(Debug)]
struct Segment {
    file: File,
    path: PathBuf,
    /// Where the next record goes.
    end: u64,
    /// The sequence of its last record; 0 without one.
    last: u64,
}

#[derive(Debug, PartialEq)]
pub(super) struct Entry {
    pub(super) sequence: u64,
    pub(super) batch: Batch,
}

impl Journal {
    /// The files of an empty journal, written out once so that later writes need no new blocks.
    pub(super) fn create(dir: &Path, limit: u64) -> Result<(), DiskError> {
        let made = DirBuilder::new().mode(0o700).create(dir);
        made.map_err(DiskError::failed_to("create", dir))?;
        for name in NAMES {
            let path = dir.join(name);
            let written = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).and_then(|file| {
                io::copy(&mut io::repeat(0).take(limit), &mut &file)?;
                file.sync_all()
            });
            written.map_err(DiskError::failed_to("write", &path))?;
        }
        File::open(dir).and_then(|dir| dir.sync_all()).map_err(DiskError::failed_to("flush", dir))
    }

    pub(super) fn open(dir: &Path, limit: u64, store: u64) -> Result<(Self, Found), ReadError> {
        let salt = Salt(checksum(0, &store.to_be_bytes()));
        let (first, in_first) = Segment::open(dir.join(NAMES[0]), salt)?;
        let (second, in_second) = Segment::open(dir.join(NAMES[1]), salt)?;
        let beyond = in_first.beyond.max(in_second.beyond);
        let mut segments = [first, second];
        let mut found = [in_first.entries, in_second.entries];
        let current = usize::from(segments[1].last > segments[0].last);
        let newest = std::mem::take(&mut found[current]);
        let mut entries = std::mem::take(&mut found[1 - current]);
        match (entries.last(), newest.first()) {
            // What an older turn left; sled has all of it.
            (Some(before), Some(after)) if before.sequence + 1 != after.sequence => {
                entries.clear();
                segments[1 - current].last = 0;
            }
            _ => {}
        }
        entries.extend(newest);
        Ok((Self { segments, current, limit, salt, buffer: Vec::new() }, Found { entries, beyond }))
    }

    /// sled has everything: nothing that was found needs to be kept, and what comes need not follow it.
    pub(super) fn restart(&mut self) {
        self.current = 0;
        for segment in &mut self.segments {
            (segment.end, segment.last) = (0, 0);
        }
    }

    /// The sequence up to which sled must have everything before the next batch can be appended.
    pub(super) fn needs_checkpoint(&self) -> Option<u64> {
        let is_full = self.segments[self.current].end >= self.limit;
        is_full.then_some(self.segments[1 - self.current].last)
    }

    /// Bytes in the file that is being written.
    pub(super) fn used(&self) -> u64 {
        self.segments[self.current].end
    }

    /// On the disk for good once this returns. What [`Self::needs_checkpoint`] said must be so.
    pub(super) fn append(&mut self, sequence: u64, batch: &Batch) -> Result<(), DiskError> {
        if self.segments[self.current].end >= self.limit {
            self.current = 1 - self.current;
            self.segments[self.current].end = 0;
        }
        self.buffer.clear();
        encode(self.salt, sequence, batch, &mut self.buffer);
        let segment = &mut self.segments[self.current];
        let written = segment.file.write_all_at(&self.buffer, segment.end).and_then(|()| segment.file.sync_data());
        written.map_err(DiskError::failed_to("write", &segment.path))?;
        segment.end += self.buffer.len() as u64;
        segment.last = sequence;
        Ok(())
    }
}

impl Segment {
    fn open(path: PathBuf, salt: Salt) -> Result<(Self, Found), ReadError> {
        let disk_error = DiskError::failed_to("read", &path);
        let file = match OpenOptions::new().read(true).write(true).open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Damage::JournalMissing.into()),
            opened => opened.map_err(&disk_error)?,
        };
        let mut entries: Vec<Entry> = Vec::new();
        let mut end = 0;
        while let Some((entry, length)) = read(&file, end, salt).map_err(&disk_error)? {
            if entries.last().is_some_and(|before| before.sequence + 1 != entry.sequence) {
                break;
            }
            entries.push(entry);
            end += length;
        }
        let last = entries.last().map_or(0, |entry| entry.sequence);
        let beyond = beyond(&file, end, last, salt).map_err(&disk_error)?;
        Ok((Self { file, path, end, last }, Found { entries, beyond }))
    }
}

/// The highest sequence after `last` that a whole record from there on has, or 0.
fn beyond(file: &File, from: u64, last: u64, salt: Salt) -> io::Result<u64> {
    const AT_ONCE: u64 = 128;
    let length = file.metadata()?.len();
    let mut highest = 0;
    let mut block = vec![0; (AT_ONCE * ALIGNMENT) as usize];
    for start in (from..length).step_by(block.len()) {
        let bytes = block.len().min((length - start) as usize);
        file.read_exact_at(&mut block[..bytes], start)?;
        for (number, head) in block[..bytes].chunks(ALIGNMENT as usize).enumerate() {
            // Most of what older turns left is told by its sequence alone.
            let sequence = head.get(8..HEADER).and_then(|bytes| Fields(bytes).u64()).unwrap_or(0);
            if sequence > last.max(highest) && read(file, start + number as u64 * ALIGNMENT, salt)?.is_some() {
                highest = sequence;
            }
        }
    }
    Ok(highest)
}

/// The record that begins there, and how long it is. Only that much of the file is read.
fn read(file: &File, at: u64, salt: Salt) -> io::Result<Option<(Entry, u64)>> {
    let Some(length) = length_at(file, at)? else { return Ok(None) };
    if length > file.metadata()?.len().saturating_sub(at) {
        return Ok(None);
    }
    let mut bytes = vec![0; length as usize];
    file.read_exact_at(&mut bytes, at)?;
    Ok(decode(salt, &bytes).map(|entry| (entry, length.next_multiple_of(ALIGNMENT))))
}

/// How long the record that begins there is, if it is one.
fn length_at(file: &File, at: u64) -> io::Result<Option<u64>> {
    let mut length = [0; 4];
    match file.read_exact_at(&mut length, at) {
        Ok(()) => Ok(Some(HEADER as u64 + u64::from(u32::from_be_bytes(length)))),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
    }
}

fn encode(salt: Salt, sequence: u64, batch: &Batch, buffer: &mut Vec<u8>) {
    buffer.resize(HEADER, 0);
    let mut part = |bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("a key or record is far smaller than 4 GiB");
        buffer.extend(length.to_be_bytes());
        buffer.extend(bytes);
    };
    for (key, record) in &batch.puts {
        part(key);
        part(record);
    }
    // No key is empty: from here on there are removals.
    part(&[]);
    batch.removals.iter().for_each(|key| part(key));
    let length = u32::try_from(buffer.len() - HEADER).expect("a batch is far smaller than 4 GiB");
    buffer[8..HEADER].copy_from_slice(&sequence.to_be_bytes());
    let crc = checksum(salt.0, &buffer[8..]);
    buffer[..4].copy_from_slice(&length.to_be_bytes());
    buffer[4..8].copy_from_slice(&crc.to_be_bytes());
    buffer.resize(buffer.len().next_multiple_of(ALIGNMENT as usize), 0);
}

/// The record that begins here.
fn decode(salt: Salt, bytes: &[u8]) -> Option<Entry> {
    let mut fields = Fields(bytes);
    let (length, crc) = (fields.u32()?, fields.u32()?);
    let end = HEADER.checked_add(length as usize)?;
    if checksum(salt.0, bytes.get(8..end)?) != crc {
        return None;
    }
    let sequence = fields.u64()?;
    let mut fields = Fields(&bytes[HEADER..end]);
    let mut part = || {
        let length = fields.u32()? as usize;
        let (part, rest) = fields.0.split_at_checked(length)?;
        fields.0 = rest;
        Some(part.to_vec())
    };
    let mut batch = Batch::default();
    loop {
        match part()? {
            key if key.is_empty() => break,
            key => batch.puts.push((key, part()?)),
        }
    }
    while let Some(key) = part() {
        batch.removals.push(key);
    }
    Some(Entry { sequence, batch })
}

#[cfg(test)]
mod tests {
    use std::fs;

    use tempfile::TempDir;

    use super::*;

    const LIMIT: u64 = 4096;
    const STORE: u64 = 7;

    fn batch(sequence: u64) -> Batch {
        let key = sequence.to_be_bytes().to_vec();
        Batch { puts: vec![(key.clone(), vec![7; 80]), (b"head".to_vec(), key.clone())], removals: vec![key] }
    }

    fn journal() -> (TempDir, PathBuf) {
        let dir = TempDir::new().unwrap();
        let path = dir.path().join("journal");
        Journal::create(&path, LIMIT).unwrap();
        (dir, path)
    }

    fn sequences(path: &Path) -> Vec<u64> {
        let (_, found) = Journal::open(path, LIMIT, STORE).unwrap();
        for entry in &found.entries {
            assert_eq!(entry.batch, batch(entry.sequence));
        }
        assert_eq!(found.beyond, 0);
        found.entries.into_iter().map(|entry| entry.sequence).collect()
    }

    /// Appends and says from which sequence on everything must be there.
    fn append(path: &Path, from: u64, until: u64) -> u64 {
        let (mut journal, _) = Journal::open(path, LIMIT, STORE).unwrap();
        let mut checkpoint = 0;
        for sequence in from..=until {
            checkpoint = journal.needs_checkpoint().unwrap_or(checkpoint).max(checkpoint);
            journal.append(sequence, &batch(sequence)).unwrap();
        }
        checkpoint + 1
    }

    #[test]
    fn what_was_appended_is_there_across_turns_and_openings() {
        let (_dir, path) = journal();
        assert!(sequences(&path).is_empty());
        let mut next = 1;
        let mut oldest = 1;
        for count in [1, 2, 5, 30, 3, 40] {
            oldest = append(&path, next, next + count - 1).max(oldest);
            next += count;
            let found = sequences(&path);
            assert_eq!(found.last(), Some(&(next - 1)));
            assert!(found[0] <= oldest, "{found:?} from {oldest}");
            assert!(found.windows(2).all(|pair| pair[0] + 1 == pair[1]), "{found:?}");
        }
    }

    /// Of a record, and of its place.
    fn length(path: &Path) -> (usize, usize) {
        let bytes = fs::read(path.join(NAMES[0])).unwrap();
        let length = HEADER + Fields(&bytes).u32().unwrap() as usize;
        (length, length.next_multiple_of(ALIGNMENT as usize))
    }

    #[test]
    fn a_record_that_was_not_finished_ends_the_journal() {
        let (_dir, path) = journal();
        append(&path, 1, 4);
        let file = path.join(NAMES[0]);
        let whole = fs::read(&file).unwrap();
        let (length, place) = length(&path);
        for lost in 1..length {
            let mut torn = whole.clone();
            torn[3 * place + length - lost..].fill(0);
            fs::write(&file, torn).unwrap();
            assert_eq!(sequences(&path), [1, 2, 3], "without {lost} bytes");
        }
    }

    #[test]
    fn what_follows_damage_is_told() {
        let (_dir, path) = journal();
        append(&path, 1, 6);
        let file = path.join(NAMES[0]);
        let whole = fs::read(&file).unwrap();
        let (_, place) = length(&path);
        // A bit, a length, and more than one record.
        for (at, bytes) in [(place + HEADER + 9, 1), (place, 4), (place, 3 * place), (0, place)] {
            let mut damaged = whole.clone();
            damaged[at..at + bytes].fill(0xa5);
            fs::write(&file, damaged).unwrap();
            let (_, found) = Journal::open(&path, LIMIT, STORE).unwrap();
            assert_eq!((found.entries.len(), found.beyond), (at / place, 6), "{bytes} bytes at {at}");
        }
        // Of another store it is nothing at all.
        let (_, found) = Journal::open(&path, LIMIT, STORE + 1).unwrap();
        assert!(found.entries.is_empty() && found.beyond == 0);
        fs::remove_file(&file).unwrap();
        let missing = Journal::open(&path, LIMIT, STORE).unwrap_err();
        assert!(matches!(missing, ReadError::Damage(Damage::JournalMissing)));
    }

    #[test]
    fn after_a_restart_older_records_are_not_found() {
        let (_dir, path) = journal();
        append(&path, 1, 12);
        let (mut journal, found) = Journal::open(&path, LIMIT, STORE).unwrap();
        assert_eq!(found.entries.last().unwrap().sequence, 12);
        journal.restart();
        // The one before it was never found: sled alone has it.
        journal.append(14, &batch(14)).unwrap();
        journal.append(15, &batch(15)).unwrap();
        assert_eq!(sequences(&path), [14, 15]);
    }
}
