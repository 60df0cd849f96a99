//! One container that runs `/bin/true`: roster-runtime beside Debian's runc and crun, and beside the bare system calls.
//!
//! The same bundle for all of them: five namespaces, limits of pids, memory and cpu, the default seccomp profile. They
//! take turns, so that what else the machine does meets all alike, and what is compared is of the same turn: a machine may
//! be half as fast again a minute later. But they do so by series: what one does to the caches and to the kernel's locks
//! (moving a process between cgroups of v1 warms them for a while) is not to be another's gain or loss.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use oci_spec::runtime::{Capability, LinuxSeccomp, Spec};
use roster_runtime::{process::capabilities, seccomp};
use serde_json::{Value, json};
use tempfile::TempDir;

use super::{bare::Bare, wait_for};

/// What the kernel still does after a container (its network is taken apart by a worker) is done in less.
const SETTLING: Duration = Duration::from_millis(100);
/// Back to back: each start but the first, which is not counted, follows one of its own kind.
const SERIES: usize = 30;
const IN_A_SERIES: usize = 10;
/// The kernel's locks for moving processes between cgroups go cold in less.
const IDLE: Duration = Duration::from_millis(120);
const IDLE_ROUNDS: usize = 40;
/// Containers made by some at the same time.
const MANY: usize = 200;
const WORKERS: usize = 8;
const RATES: usize = 7;
const HELD: [Capability; 5] =
    [Capability::Chown, Capability::Kill, Capability::NetBindService, Capability::Setgid, Capability::Setuid];
const PEERS: [&str; 2] = ["runc", "crun"];

/// Milliseconds a start, of each turn.
#[derive(Clone, Debug, Default)]
pub struct Starts {
    pub back_to_back: Vec<f64>,
    pub after_idling: Vec<f64>,
}

/// Of one runtime.
#[derive(Clone, Debug)]
pub struct Took {
    pub name: &'static str,
    pub starts: Starts,
    /// Containers a second with [`WORKERS`], of each turn.
    pub rates: Vec<f64>,
    /// Of the process, in MB.
    pub peak_memory: f64,
}

#[derive(Debug)]
pub struct Measured {
    pub ours: Took,
    pub peers: Vec<Took>,
    /// Of the bare system calls.
    pub floor: Starts,
}

pub fn measure(with_peers: bool) -> Result<Measured, String> {
    own_mounts()?;
    hide_unified_hierarchy()?;
    let bundle = Bundle::new()?;
    let ours = std::env::current_exe().map_err(|error| error.to_string())?.with_file_name("roster-runtime");
    let mut programs = vec![("roster", ours)];
    for peer in PEERS.into_iter().filter(|_| with_peers) {
        match which(peer) {
            Some(path) => programs.push((peer, path)),
            None => eprintln!("bench: {peer} is not installed, so it is not compared with (deploy/bench --peers)"),
        }
    }
    for (name, program) in &mut programs {
        *program = bundle.installed(name, program)?;
    }
    let one = bundle.prepared("one")?;
    let bare = bundle.bare()?;
    let mut starts = vec![Starts::default(); programs.len()];
    let mut floor = Starts::default();
    let run = |program: &Path| ended(&mut bundle.command(program, &one, "one"));
    for _ in 0..SERIES {
        for ((_, program), starts) in programs.iter().zip(&mut starts) {
            starts.back_to_back.push(back_to_back(|| run(program))?);
        }
        floor.back_to_back.push(back_to_back(|| bare.run())?);
    }
    for _ in 0..IDLE_ROUNDS {
        for ((_, program), starts) in programs.iter().zip(&mut starts) {
            starts.after_idling.push(after_idling(|| run(program))?);
        }
        floor.after_idling.push(after_idling(|| bare.run())?);
    }
    let mut rates = vec![Vec::new(); programs.len()];
    for _ in 0..RATES {
        for ((_, program), rates) in programs.iter().zip(&mut rates) {
            rates.push(bundle.many(program)?);
        }
    }
    let mut all = Vec::new();
    for (((name, program), starts), rates) in programs.iter().zip(starts).zip(rates) {
        all.push(Took { name, starts, rates, peak_memory: bundle.peak_memory(program)? });
    }
    let ours = all.remove(0);
    Ok(Measured { ours, peers: all, floor })
}

fn back_to_back(work: impl Fn() -> Result<(), String>) -> Result<f64, String> {
    std::thread::sleep(SETTLING);
    work()?;
    let all = timed(|| (0..IN_A_SERIES).try_for_each(|_| work()))?;
    Ok(all / IN_A_SERIES as f64)
}

fn after_idling(work: impl Fn() -> Result<(), String>) -> Result<f64, String> {
    std::thread::sleep(IDLE);
    timed(work)
}

fn timed(work: impl FnOnce() -> Result<(), String>) -> Result<f64, String> {
    let began = Instant::now();
    work()?;
    Ok(began.elapsed().as_secs_f64() * 1000.0)
}

/// Without pipes, which would be made, read and closed in each of the times that are measured.
fn ended(command: &mut Command) -> Result<(), String> {
    let status = command.status().map_err(|error| format!("cannot start {command:?}: {error}"))?;
    if status.success() { Ok(()) } else { Err(format!("{command:?}: {status}")) }
}

fn own_mounts() -> Result<(), String> {
    let cut_off = unshare(CloneFlags::CLONE_NEWNS)
        .and_then(|()| mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>));
    cut_off.map_err(|error| format!("cannot make a mount namespace: {error}"))
}

/// crun refuses a host with both kinds of hierarchies: it, and with it all the others, is shown only those of v1.
fn hide_unified_hierarchy() -> Result<(), String> {
    let unified = "/sys/fs/cgroup/unified";
    if !Path::new(unified).exists() {
        return Ok(());
    }
    umount2(unified, MntFlags::MNT_DETACH).map_err(|error| format!("cannot hide {unified}: {error}"))
}

fn which(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|folder| folder.join(name)).find(|file| file.exists())
}

fn profile() -> LinuxSeccomp {
    seccomp::default_profile(&HELD.into())
}

struct Bundle {
    folder: TempDir,
    cgroup: String,
    next: AtomicUsize,
}

impl Bundle {
    fn new() -> Result<Self, String> {
        let made = || -> std::io::Result<Self> {
            let folder = tempfile::tempdir()?;
            let bin = folder.path().join("rootfs/bin");
            fs::create_dir_all(&bin)?;
            for place in ["proc", "dev", "sys"] {
                fs::create_dir(folder.path().join("rootfs").join(place))?;
            }
            fs::copy("/bin/busybox", bin.join("true"))?;
            fs::hard_link(bin.join("true"), bin.join("sleep"))?;
            // As /run is, where all of them keep it by default.
            let state = folder.path().join("state");
            fs::create_dir(&state)?;
            mount(Some("tmpfs"), &state, Some("tmpfs"), MsFlags::empty(), None::<&str>)?;
            let cgroup = format!("/roster-bench-{}", std::process::id());
            Ok(Self { folder, cgroup, next: AtomicUsize::new(0) })
        };
        made().map_err(|error| format!("cannot make a bundle: {error}"))
    }

    /// A copy, as an installation makes it. How a file was written, and how long ago, decides in pieces of what size the
    /// kernel keeps it: a linker's output is in single pages, which take three times as long to map.
    fn installed(&self, name: &str, program: &Path) -> Result<PathBuf, String> {
        let copy = self.folder.path().join(name);
        fs::copy(program, &copy).map_err(|error| format!("cannot copy {}: {error}", program.display()))?;
        Ok(copy)
    }

    /// A configuration is of one container: its cgroup has its own name.
    fn config(&self, id: &str, args: &[&str]) -> Value {
        let profile = profile();
        let mount = |destination: &str, kind: &str, options: &[&str]| json!({ "destination": destination, "type": kind, "source": kind, "options": options });
        let namespaces = ["pid", "network", "ipc", "uts", "mount"].map(|kind| json!({ "type": kind }));
        json!({
            "ociVersion": "1.0.2",
            "process": {
                "args": args, "cwd": "/", "env": ["PATH=/bin"], "user": { "uid": 0, "gid": 0 },
                "capabilities": { "bounding": HELD, "effective": HELD, "permitted": HELD },
                "noNewPrivileges": true
            },
            "root": { "path": self.folder.path().join("rootfs") },
            "hostname": "bench",
            "mounts": [
                mount("/proc", "proc", &["nosuid", "noexec", "nodev"]),
                mount("/dev", "tmpfs", &["nosuid", "mode=755", "size=65536k"]),
                mount("/sys", "sysfs", &["nosuid", "noexec", "nodev", "ro"]),
            ],
            "linux": {
                "cgroupsPath": format!("{}/{id}", self.cgroup),
                "resources": {
                    "pids": { "limit": 100 },
                    "memory": { "limit": 256 << 20 },
                    "cpu": { "quota": 100_000, "period": 100_000 }
                },
                "namespaces": namespaces,
                "seccomp": profile
            }
        })
    }

    fn prepared(&self, id: &str) -> Result<PathBuf, String> {
        self.prepared_with(id, &["/bin/true"])
    }

    fn prepared_with(&self, id: &str, args: &[&str]) -> Result<PathBuf, String> {
        let folder = self.folder.path().join(id);
        let config = self.config(id, args);
        serde_json::from_value::<Spec>(config.clone()).map_err(|error| error.to_string())?;
        let written =
            fs::create_dir_all(&folder).and_then(|()| fs::write(folder.join("config.json"), config.to_string()));
        written.map_err(|error| format!("cannot write a bundle: {error}"))?;
        Ok(folder)
    }

    fn command(&self, program: &Path, bundle: &Path, id: &str) -> Command {
        let mut command = Command::new(program);
        command.arg("--root").arg(self.folder.path().join("state")).arg("run").arg("--bundle").arg(bundle).arg(id);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        command
    }

    fn bare(&self) -> Result<Bare, String> {
        let filter = seccomp::compile(&profile()).map_err(|error| error.to_string())?;
        let capabilities = HELD.iter().fold(0, |set, held| set | 1 << capabilities::number(*held));
        Ok(Bare { root: self.folder.path().join("rootfs"), capabilities, filter })
    }

    /// Containers a second.
    fn many(&self, program: &Path) -> Result<f64, String> {
        let bundles =
            (0..WORKERS).map(|worker| self.prepared(&format!("worker-{worker}"))).collect::<Result<Vec<_>, _>>()?;
        let left = AtomicUsize::new(MANY);
        let began = Instant::now();
        let ended: Vec<Result<(), String>> = std::thread::scope(|scope| {
            let work = |bundle: &PathBuf| {
                let (left, bundle) = (&left, bundle.clone());
                scope.spawn(move || {
                    while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok() {
                        let id = format!("many-{}", self.next.fetch_add(1, Ordering::Relaxed));
                        ended(&mut self.command(program, &bundle, &id))?;
                    }
                    Ok(())
                })
            };
            let threads: Vec<_> = bundles.iter().map(work).collect();
            threads.into_iter().map(|thread| thread.join().expect("a worker does not panic")).collect()
        });
        ended.into_iter().collect::<Result<Vec<()>, _>>()?;
        Ok(MANY as f64 / began.elapsed().as_secs_f64())
    }

    /// Of the process that stays with a container, by its own high-water mark: what a process used before exec does not
    /// count there.
    fn peak_memory(&self, program: &Path) -> Result<f64, String> {
        let bundle = self.prepared_with("memory", &["/bin/sleep", "1000"])?;
        let mut staying = self.command(program, &bundle, "memory");
        let mut staying = staying.spawn().map_err(|error| format!("cannot start {}: {error}", program.display()))?;
        // A runtime of several threads starts it from any of them.
        let threads = format!("/proc/{}/task", staying.id());
        let runs = || {
            let threads = fs::read_dir(&threads).into_iter().flatten().flatten();
            let children: String =
                threads.filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok()).collect();
            let sleeps = |pid: &str| {
                fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| line.ends_with(b"sleep\x001000\x00"))
            };
            children.split_whitespace().find(|pid| sleeps(pid)).and_then(|pid| pid.parse().ok())
        };
        let container: i32 = wait_for(runs).ok_or("the container with a sleeping program never ran")?;
        let status = fs::read_to_string(format!("/proc/{}/status", staying.id())).map_err(|error| error.to_string())?;
        let killed = kill(Pid::from_raw(container), Signal::SIGKILL);
        killed.map_err(|error| format!("cannot end the container: {error}"))?;
        staying.wait().map_err(|error| format!("cannot wait for {}: {error}", program.display()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB"));
        let kilobytes: f64 = line.and_then(|number| number.parse().ok()).ok_or(status.clone())?;
        Ok(kilobytes * 1024.0 / 1e6)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        // Else its folder stays. The mount ends with this process as well.
        let _ = umount2(&self.folder.path().join("state"), MntFlags::MNT_DETACH);
        for root in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
            // Absent where there was nothing to make.
            let _ = fs::remove_dir(root.path().join(self.cgroup.trim_start_matches('/')));
        }
    }
}
