//! A network namespace of a test's own. It lives as long as a descriptor or a process holds it, so nothing is left.

use std::{
    fs::File,
    io,
    os::{fd::AsFd, unix::process::CommandExt},
    process::Command,
    sync::Arc,
};

use nix::sched::{CloneFlags, setns, unshare};

#[derive(Clone, Debug)]
pub struct Netns(Arc<File>);

impl Netns {
    /// A new namespace in which only the loopback interface is up.
    pub fn new() -> io::Result<Self> {
        // On a thread of its own: the caller's namespace must stay what it is.
        let file = std::thread::spawn(|| -> io::Result<File> {
            unshare(CloneFlags::CLONE_NEWNET)?;
            File::open("/proc/thread-self/ns/net")
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
