//! The writing end of a container's log: lines with their moment and stream, in files of bounded size.
//!
//! `0.log` is written to; when full it becomes `1.log`, that one `2.log`, and the oldest goes. A disk that is full
//! loses lines, never the container: how much was lost is noted in the log as soon as it can be written again.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use roster_proto::report::LogStream;

use crate::runtime::linux::logs::{Entry, LOG_FILE_SIZE, LOG_FILES, file_name};

/// Bytes of a line kept in one piece; longer ones are split, as the Container Runtime Interface has it.
const LONGEST_LINE: usize = 16 * 1024;
/// What will be `0.log`, for the moment of a rotation.
const NEXT_FILE: &str = "next.log";

#[derive(Debug)]
pub struct LogFile {
    dir: PathBuf,
    file: File,
    size: u64,
    /// When to begin a new file.
    capacity: u64,
    /// The beginning of an unfinished line of each stream.
    unfinished: [Vec<u8>; 2],
    /// Entries on their way to the file.
    pending: Vec<u8>,
    /// Bytes that could not be written since the last note of it.
    lost: u64,
}

impl LogFile {
    pub fn open(dir: &Path) -> io::Result<Self> {
        Self::with_capacity(dir, LOG_FILE_SIZE)
    }

    /// Begins a new file after so many bytes.
    pub fn with_capacity(dir: &Path, capacity: u64) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let file = append_to(dir, &file_name(0))?;
        let size = file.metadata()?.len();
        let unfinished = [Vec::new(), Vec::new()];
        Ok(Self { dir: dir.to_owned(), file, size, capacity, unfinished, pending: Vec::new(), lost: 0 })
    }

    /// Takes what the container wrote at `nanos`, in pieces of any kind.
    pub fn write(&mut self, stream: LogStream, mut bytes: &[u8], nanos: u64) {
        self.note_loss(nanos);
        while !bytes.is_empty() {
            let room = LONGEST_LINE - self.unfinished[stream as usize].len();
            let (piece, partial) = match bytes.iter().take(room + 1).position(|byte| *byte == b'\n') {
                Some(end) => (end, false),
                None if bytes.len() > room => (room, true),
                None => {
                    self.unfinished[stream as usize].extend_from_slice(bytes);
                    break;
                }
            };
            self.entry(stream, partial, &bytes[..piece], nanos);
            bytes = &bytes[piece + usize::from(!partial)..];
        }
        self.flush();
    }

    /// Writes what is left of a line without an end.
    pub fn finish(&mut self, stream: LogStream) {
        if !self.unfinished[stream as usize].is_empty() {
            self.entry(stream, false, &[], super::run::clock());
        }
        self.flush();
    }

    fn entry(&mut self, stream: LogStream, partial: bool, rest: &[u8], nanos: u64) {
        let start = &mut self.unfinished[stream as usize];
        let whole;
        let line = if start.is_empty() {
            rest
        } else {
            start.extend_from_slice(rest);
            whole = std::mem::take(start);
            &whole
        };
        Entry { nanos, stream, partial, line }.write(&mut self.pending);
    }

    fn note_loss(&mut self, nanos: u64) {
        if self.lost > 0 {
            let note = format!("[roster: {} bytes of log were lost here, the disk was full]", self.lost);
            Entry { nanos, stream: LogStream::Stderr, partial: false, line: note.as_bytes() }.write(&mut self.pending);
        }
    }

    fn flush(&mut self) {
        let length = self.pending.len() as u64;
        if length == 0 {
            return;
        }
        match self.append() {
            Ok(()) => {
                self.size += length;
                self.lost = 0;
            }
            Err(_) => {
                self.lost += length;
                // Part of it may be there: cut it off, so that no half line stays in the middle of the file.
                if self.file.set_len(self.size).is_err() {
                    self.size = self.file.metadata().map_or(self.size, |metadata| metadata.len());
                }
            }
        }
        self.pending.clear();
    }

    fn append(&mut self) -> io::Result<()> {
        if self.size > 0 && self.size + self.pending.len() as u64 > self.capacity {
            self.rotate()?;
        }
        self.file.write_all(&self.pending)
    }

    /// The new file is made first: where that fails, nothing has moved.
    fn rotate(&mut self) -> io::Result<()> {
        let fresh = append_to(&self.dir, NEXT_FILE)?;
        for number in (1..LOG_FILES).rev() {
            match fs::rename(self.dir.join(file_name(number - 1)), self.dir.join(file_name(number))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        fs::rename(self.dir.join(NEXT_FILE), self.dir.join(file_name(0)))?;
        self.file = fresh;
        self.size = 0;
        Ok(())
    }
}

fn append_to(dir: &Path, name: &str) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).open(dir.join(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lines(dir: &Path, number: u32) -> Vec<(bool, Vec<u8>)> {
        let bytes = fs::read(dir.join(file_name(number))).expect("log file");
        bytes
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| Entry::parse(line).map(|entry| (entry.partial, entry.line.to_vec())).expect("an entry"))
            .collect()
    }

    #[test]
    fn lines_are_put_together_and_long_ones_split() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = LogFile::open(dir.path()).expect("log");
        log.write(LogStream::Stdout, b"one\ntw", 1);
        log.write(LogStream::Stderr, b"other\n", 2);
        log.write(LogStream::Stdout, b"o\n", 3);
        log.write(LogStream::Stdout, &vec![b'x'; LONGEST_LINE + 3], 4);
        log.finish(LogStream::Stdout);
        let expected: [(bool, Vec<u8>); 5] = [
            (false, b"one".to_vec()),
            (false, b"other".to_vec()),
            (false, b"two".to_vec()),
            (true, vec![b'x'; LONGEST_LINE]),
            (false, b"xxx".to_vec()),
        ];
        assert_eq!(lines(dir.path(), 0), expected);
    }

    #[test]
    fn a_full_file_is_rotated_and_the_oldest_goes() {
        let dir = tempfile::tempdir().expect("tempdir");
        let mut log = LogFile::with_capacity(dir.path(), 100).expect("log");
        for number in 0..20 {
            log.write(LogStream::Stdout, format!("line {number:02}\n").as_bytes(), number);
        }
        let files: Vec<_> = (0..LOG_FILES).map(|number| lines(dir.path(), number)).collect();
        assert_eq!(files[0].last().map(|(_, line)| line.clone()), Some(b"line 19".to_vec()));
        assert!(files.iter().all(|lines| !lines.is_empty() && lines.len() <= 2));
        assert_eq!(fs::read_dir(dir.path()).expect("dir").count(), LOG_FILES as usize);
    }

    /// A tmpfs of its own for the calling thread, which must end with the test.
    fn tiny_disk(dir: &Path, size: &str) {
        use nix::{mount::MsFlags, sched::CloneFlags};
        nix::sched::unshare(CloneFlags::CLONE_NEWNS).expect("root");
        let none = None::<&str>;
        nix::mount::mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).expect("private");
        nix::mount::mount(Some("tmpfs"), dir, Some("tmpfs"), MsFlags::empty(), Some(size)).expect("tmpfs");
    }

    #[test]
    fn a_full_disk_costs_lines_and_is_told_and_gotten_over() {
        let dir = tempfile::tempdir().expect("tempdir");
        // Of the file entries one is the directory itself, one 0.log and one the file that fills the disk.
        tiny_disk(dir.path(), "size=64k,nr_inodes=3");
        let (logs, filler) = (dir.path(), dir.path().join("filler"));
        let mut log = LogFile::with_capacity(logs, 100).expect("log");
        fs::write(&filler, "").expect("the last inode");
        // Rotation cannot make a file; then the disk has no room for a line either.
        (0..20).for_each(|number| log.write(LogStream::Stdout, format!("first {number:02}\n").as_bytes(), number));
        let kept = lines(logs, 0);
        assert!(!kept.is_empty() && kept.len() <= 2, "{kept:?}");
        fs::remove_file(&filler).expect("room");
        log.write(LogStream::Stdout, b"after\n", 21);
        let told: Vec<_> =
            lines(logs, 0).into_iter().map(|(_, line)| String::from_utf8_lossy(&line).into_owned()).collect();
        assert!(told[0].contains("bytes of log were lost here"), "{told:?}");
        assert_eq!(told[1..], ["after"]);
        assert_eq!(lines(logs, 1), kept, "what was written before has moved on as a whole");
    }
}
