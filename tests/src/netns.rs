//! Network namespaces. One that is not [pinned](Netns::pin) lives as long as a descriptor or a process holds it, so
//! nothing is left; a pinned one can be opened by others and stays until its file is unmounted.

use std::{
    fs::{self, File},
    io,
    os::{
        fd::AsFd,
        unix::{fs::MetadataExt, process::CommandExt},
    },
    path::Path,
    process::Command,
    sync::Arc,
};

use nix::{
    errno::Errno,
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, setns, unshare},
};

#[derive(Clone, Debug)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new namespace in which only the loopback interface is up.
    pub fn new() -> io::Result<Self> {
        Self::make(|| File::open("/proc/thread-self/ns/net"))
    }

    /// A new namespace that stays until [`unpin`]. The file is made.
    pub fn pin(path: &Path) -> io::Result<Self> {
        File::create(path)?;
        let target = path.to_owned();
        Self::make(move || {
            let own = Some("/proc/thread-self/ns/net");
            mount(own, &target, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            File::open(&target)
        })
    }

    /// The namespace that is pinned there; `None` when there is none.
    pub fn open(path: &Path) -> io::Result<Option<Self>> {
        match File::open(path) {
            // An empty file is what is left of a namespace when the mount is gone.
            Ok(file) if file.metadata()?.dev() != path.parent().map_or(Ok(0), device)? => Ok(Some(Self(file.into()))),
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn make(open: impl FnOnce() -> io::Result<File> + Send + 'static) -> io::Result<Self> {
        // On a thread of its own: the caller's namespace must stay what it is.
        let file = std::thread::spawn(move || {
            unshare(CloneFlags::CLONE_NEWNET)?;
            open()
        })
        .join()
        .map_err(|_| io::Error::other("the thread that makes the namespace panicked"))??;
        let netns = Self(Arc::new(file));
        let status = netns.command("ip").args(["link", "set", "lo", "up"]).status()?;
        if !status.success() {
            return Err(io::Error::other(format!("ip link set lo up: {status}")));
        }
        Ok(netns)
    }

    /// A command that will run inside.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let file = self.0.clone();
        let mut command = Command::new(program);
        // SAFETY: between fork and exec only setns(2) is called, which is async-signal-safe and allocates nothing.
        unsafe {
            command.pre_exec(move || setns(file.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from));
        }
        command
    }

    /// Moves the calling thread inside for good.
    pub fn enter(&self) -> io::Result<()> {
        setns(self.0.as_fd(), CloneFlags::CLONE_NEWNET).map_err(io::Error::from)
    }

    /// Whether a process is in it. One that has ended is nowhere.
    pub fn holds(&self, pid: u32) -> bool {
        let theirs = fs::metadata(format!("/proc/{pid}/ns/net"));
        let ours = self.0.metadata();
        matches!((ours, theirs), (Ok(a), Ok(b)) if (a.dev(), a.ino()) == (b.dev(), b.ino()))
    }

    /// The body of an HTTP answer, asked for from inside.
    pub fn get(&self, url: &str) -> Result<String, String> {
        let output = self
            .command("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "5", url])
            .output()
            .map_err(|error| format!("cannot run curl: {error}"))?;
        if output.status.success() {
            Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
        } else {
            Err(format!("GET {url}: {}", String::from_utf8_lossy(&output.stderr).trim()))
        }
    }
}

fn device(path: &Path) -> io::Result<u64> {
    Ok(fs::metadata(path)?.dev())
}

/// Lets go of a pinned namespace and removes its file; nothing to do is fine.
pub fn unpin(path: &Path) -> io::Result<()> {
    match umount2(path, MntFlags::MNT_DETACH) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => {}
        Err(error) => return Err(error.into()),
    }
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}
