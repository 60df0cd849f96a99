//! Failed containers that are kept for inspection.
//!
//! ```text
//! DATA/kept/TASK/  the upper directory, the generated /etc files, config.json with these places, kept.json; where its
//!                  disk is limited, the former two on what is mounted at files/, which is in the file disk
//! DATA/logs/TASK/  its log, which is not pruned meanwhile
//! ```
//!
//! Which are kept is the controller's to say, of each slot one; here is only that, and a bound on their number.
//!
//! Guarantees: a container is kept from the moment its directory has its place, by one rename; whatever is interrupted
//! before that is begun again, or removed. Of a disk that is nearly full nothing is kept. What somebody looks into by
//! `rctl debug` stays until he has done.

use std::{
    fs, io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use nix::{
    mount::{MntFlags, MsFlags, mount, umount2},
    sched::{CloneFlags, unshare},
    sys::statvfs::statvfs,
};
use oci_spec::runtime::Spec;
use roster_proto::{id::TaskId, time::Timestamp, wire};
use roster_runtime::cgroup::CgroupDirs;
use roster_tree::Root;
use serde::{Deserialize, Serialize};

use super::{Containers, blocking, failed};
use crate::runtime::{
    Ended, RuntimeError,
    linux::{
        disk,
        live::{self, LiveError, LiveInput, LiveOutput},
        record::{self, BundleDir},
        shim::Call,
    },
};

/// Failed containers kept on one node where nothing else is said.
pub const KEPT: usize = 32;
/// Of one whose disk is limited: the file that is its disk, and where that is mounted.
const DISK: &str = "disk";
pub(super) const FILES: &str = "files";
/// For whoever looks into it already.
const PATIENCE: Duration = Duration::from_secs(1);
/// One part in so many of the disk must be free, or nothing is kept.
const FREE_SHARE: u64 = 20;

/// What is known of a kept container beside its files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeptRecord {
    pub started: Timestamp,
    pub ended: Ended,
    pub figures: Figures,
}

/// The last that its control groups said. Absent is what the kernel did not count.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Figures {
    /// Nanoseconds of processors.
    pub cpu: Option<u64>,
    /// Bytes at the most.
    pub memory_peak: Option<u64>,
    pub memory_limit: Option<u64>,
    /// Processes that were killed for memory.
    pub oom_kills: u64,
    /// Processes and threads at the most.
    pub pids_peak: Option<u64>,
    /// Bytes.
    pub read: Option<u64>,
    pub written: Option<u64>,
}

impl Figures {
    fn of(cgroup: &CgroupDirs) -> Self {
        let stats = cgroup.stats();
        let memory = cgroup.out_of_memory();
        let number = |name: &str| {
            cgroup.0.iter().find_map(|dir| fs::read_to_string(dir.join(name)).ok()?.trim().parse::<u64>().ok())
        };
        let moved = |op: &str| {
            let entries = stats.blkio.io_service_bytes_recursive.as_ref()?;
            Some(entries.iter().filter(|entry| entry.op.eq_ignore_ascii_case(op)).map(|entry| entry.value).sum())
        };
        Self {
            cpu: stats.cpu.usage.total,
            memory_peak: stats.memory.usage.max,
            memory_limit: memory.limit,
            oom_kills: memory.kills,
            pids_peak: number("pids.peak"),
            read: moved("read"),
            written: moved("write"),
        }
    }
}

/// Held while somebody looks into it.
struct Inspection {
    containers: Arc<Containers>,
    task: TaskId,
}

impl Drop for Inspection {
    fn drop(&mut self) {
        self.containers.inspected.send_modify(|all| _ = all.remove(&self.task));
    }
}

impl Containers {
    pub(super) fn kept_dir(&self) -> PathBuf {
        self.config.data_dir.join("kept")
    }

    pub(super) fn kept_place(&self, task: &TaskId) -> PathBuf {
        self.kept_dir().join(task.as_str())
    }

    /// Where what is kept of it lies, if it is.
    pub(super) fn kept_bundle(&self, task: &TaskId) -> Option<BundleDir> {
        let place = self.kept_place(task);
        place.is_dir().then_some(BundleDir(place))
    }

    pub fn is_kept(&self, task: &TaskId) -> bool {
        self.kept_bundle(task).is_some()
    }

    /// Ends everything of it but what is kept. False: it is removed, for there was nothing to keep, or no room.
    pub async fn keep(self: &Arc<Self>, task: &TaskId) -> Result<bool, RuntimeError> {
        let lock = self.lock(task);
        let _guard = lock.lock().await;
        let (this, task) = (self.clone(), task.clone());
        blocking(move || {
            let kept = this.keep_now(&task)?;
            this.make_room()?;
            Ok(kept)
        })
        .await
    }

    fn keep_now(&self, task: &TaskId) -> Result<bool, RuntimeError> {
        let step = |error: io::Error| failed(format!("keep the failed container of task {task}"), error);
        if self.kept_bundle(task).is_none() {
            let wanted = self.config.keep_failed > 0;
            let room = wanted && has_room(&self.config.data_dir).map_err(step)?;
            if !room || !self.set_aside(task).map_err(step)? {
                return self.tear_down(task).map(|()| false);
            }
            self.take_disk_along(task).map_err(step)?;
            // Last: from now on it is kept, and nothing else of it is left.
            self.tear_down_all_but(task, &self.layer_dir(task))?;
            fs::rename(self.layer_dir(task), self.kept_place(task)).map_err(step)?;
        }
        mount_disk(&BundleDir(self.kept_place(task))).map_err(step)?;
        Ok(true)
    }

    fn take_disk_along(&self, task: &TaskId) -> io::Result<()> {
        match fs::rename(self.disks.of(task), self.layer_dir(task).join(DISK)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Writes beside its files what is to be known of it. False: it never came to be a container.
    fn set_aside(&self, task: &TaskId) -> io::Result<bool> {
        let (bundle, dir) = (self.bundle(task), self.layer_dir(task));
        let aside = BundleDir(dir.clone());
        if aside.kept()?.is_some() {
            return Ok(true);
        }
        let Some(running) = bundle.running()? else { return Ok(false) };
        let cgroup = self.cgroup(task).map_err(io::Error::other)?;
        cgroup.kill()?;
        self.end_shim(task)?;
        let lost = || Ended { how: crate::runtime::Exit::ShimLost, at: record::now() };
        let ended = bundle.ended()?.unwrap_or_else(lost);
        let mut spec = bundle.spec().map_err(io::Error::other)?;
        let files = self.kept_place(task).join(if self.disks.of(task).exists() { FILES } else { "" });
        move_places(&mut spec, &dir, &files);
        // They may be on a disk of their own that is full; what is written down now is beside that.
        disk::move_mount(&dir, &dir.join(FILES))?;
        fs::write(aside.config(), serde_json::to_vec(&spec)?)?;
        match fs::create_dir(aside.rootfs()) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        aside.write_kept(&KeptRecord { started: running.at, ended, figures: Figures::of(&cgroup) })?;
        Ok(true)
    }

    /// The oldest go first where there are too many, and one each time while the disk is nearly full.
    pub(super) fn make_room(&self) -> Result<(), RuntimeError> {
        let dir = self.kept_dir();
        let step = |error: io::Error| failed(format!("make room in {}", dir.display()), error);
        let mut all: Vec<(SystemTime, TaskId)> = Vec::new();
        for entry in fs::read_dir(&dir).map_err(step)? {
            let entry = entry.map_err(step)?;
            let task = entry.file_name().into_string().ok().and_then(|name| TaskId::new(name).ok());
            let written = fs::metadata(entry.path().join(record::KEPT)).and_then(|found| found.modified());
            all.extend(task.map(|task| (written.unwrap_or(SystemTime::UNIX_EPOCH), task)));
        }
        let most = match has_room(&dir).map_err(step)? {
            true => self.config.keep_failed,
            false => self.config.keep_failed.min(all.len().saturating_sub(1)),
        };
        all.sort();
        let too_many = all.len().saturating_sub(most);
        for (_, task) in all.into_iter().take(too_many).filter(|(_, task)| !self.is_inspected(task)) {
            let place = self.kept_place(&task);
            disk::unmount(&place.join(FILES)).and_then(|()| self.trash.take(&place)).map_err(step)?;
        }
        Ok(())
    }

    /// Ends what sessions of an agent of before may have left running, and mounts what the host's last start has not.
    pub(super) fn ready_kept(&self) -> Result<(), RuntimeError> {
        let step = |error: io::Error| failed("ready the kept containers".to_owned(), error);
        for entry in fs::read_dir(self.kept_dir()).map_err(step)? {
            let name = entry.map_err(step)?.file_name().into_string();
            if let Some(task) = name.ok().and_then(|name| TaskId::new(name).ok()) {
                self.clear_group(&task)?;
                if let Err(error) = mount_disk(&BundleDir(self.kept_place(&task))) {
                    tracing::warn!(%task, %error, "cannot mount the disk of a kept container: its files cannot be read");
                }
            }
        }
        Ok(())
    }

    fn clear_group(&self, task: &TaskId) -> Result<(), RuntimeError> {
        let cgroup = self.cgroup(task)?;
        let cleared = cgroup.kill().and_then(|()| cgroup.remove());
        cleared.map_err(|error| failed("clear the program's cgroup".to_owned(), error))
    }

    pub(super) fn is_inspected(&self, task: &TaskId) -> bool {
        self.inspected.borrow().contains(task)
    }

    /// The one before may be about to end.
    async fn inspect(self: &Arc<Self>, task: &TaskId) -> Option<Inspection> {
        let mut all = self.inspected.subscribe();
        let begun = async {
            loop {
                let free = all.wait_for(|all| !all.contains(task)).await.is_ok();
                if free && self.inspected.send_if_modified(|all| all.insert(task.clone())) {
                    return;
                }
            }
        };
        tokio::time::timeout(PATIENCE, begun).await.ok()?;
        Some(Inspection { containers: self.clone(), task: task.clone() })
    }

    pub fn kept_record(&self, task: &TaskId) -> io::Result<Option<KeptRecord>> {
        BundleDir(self.kept_place(task)).kept()
    }

    /// Runs a program of the host's in it, to its end.
    pub(in crate::runtime::linux) async fn run_in_kept(
        self: &Arc<Self>,
        task: &TaskId,
        program: &wire::Program,
        input: LiveInput,
        output: LiveOutput,
    ) -> Result<(), LiveError> {
        if !program.tools {
            return Err(LiveError::OnlyKept(task.to_string()));
        }
        if program.detached {
            return Err(live::stays());
        }
        let lock = self.lock(task);
        // Not while it is being removed.
        let guard = lock.lock().await;
        let bundle = self.kept_bundle(task).ok_or_else(|| LiveError::NotRunning(task.to_string()))?;
        // Its files can be mounted to be written to only once at a time.
        let inspection = self.inspect(task).await.ok_or(LiveError::Inspected)?;
        drop(guard);
        let cannot = |source| LiveError::Io { doing: "ready the kept container's files", source };
        renew_work(&bundle).map_err(cannot)?;
        let spec = bundle.spec().map_err(LiveError::Start)?;
        let resources = spec.linux().as_ref().and_then(|linux| linux.resources().clone()).unwrap_or_default();
        let cgroup = self.hierarchies.create(&self.group(task), &resources, true).map_err(LiveError::Start)?;
        // However this future ends, also by being dropped.
        let _cleared = Cleared { inspection: Some(inspection) };
        let shim = self.shim.live(&Call::Kept { bundle: bundle.0, cgroup: cgroup.0 })?;
        live::run(shim, &program.into(), false, input, output).await
    }

    /// What it had for `/`, without what was mounted in it; to be read only.
    pub(super) fn kept_root(&self, bundle: &BundleDir) -> Result<Root, LiveError> {
        let cannot = |source| LiveError::Io { doing: "open the kept container's root", source };
        let layers = layers_of(&bundle.spec().map_err(LiveError::Start)?);
        let place = bundle.rootfs();
        // A thread of its own may leave the agent's mount namespace; what it has opened outlives that.
        let mounted = std::thread::spawn(move || mounted_alone(&layers, &place)).join();
        let root = mounted.unwrap_or_else(|_| Err(io::Error::other("the thread that mounts it broke")));
        root.map(Root::whole).map_err(cannot)
    }
}

/// Empties the group and lets the container go.
struct Cleared {
    inspection: Option<Inspection>,
}

impl Drop for Cleared {
    fn drop(&mut self) {
        let Some(inspection) = self.inspection.take() else { return };
        let clear = move || {
            if let Err(error) = inspection.containers.clear_group(&inspection.task) {
                tracing::warn!(task = %inspection.task, "{error}");
            }
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn_blocking(clear)),
            Err(_) => clear(),
        }
    }
}

/// An overlay that is not flushed to the disk leaves a work directory that no other one takes.
fn renew_work(bundle: &BundleDir) -> io::Result<()> {
    let work = if bundle.file(DISK).exists() { bundle.file(FILES).join("work") } else { bundle.file("work") };
    match fs::remove_dir_all(&work) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::create_dir(work)
}

fn mount_disk(bundle: &BundleDir) -> io::Result<()> {
    let disk = bundle.file(DISK);
    if disk.exists() { disk::mount_again(&disk, &bundle.file(FILES)) } else { Ok(()) }
}

fn mounted_alone(layers: &[PathBuf], place: &Path) -> io::Result<fs::File> {
    unshare(CloneFlags::CLONE_FS | CloneFlags::CLONE_NEWNS)?;
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>)?;
    let open: Vec<fs::File> = layers.iter().map(fs::File::open).collect::<io::Result<_>>()?;
    let names: Vec<String> = open.iter().map(|layer| format!("/proc/self/fd/{}", layer.as_raw_fd())).collect();
    // `/proc/self` is the process, whose descriptors the thread shares.
    let data = format!("lowerdir={}", names.join(":"));
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID | MsFlags::MS_NOEXEC;
    mount(Some("overlay"), place, Some("overlay"), flags, Some(data.as_str()))?;
    let root = fs::File::open(place)?;
    umount2(place, MntFlags::MNT_DETACH)?;
    Ok(root)
}

/// The layers of a root file system, the one that is written to first.
pub(super) fn layers_of(spec: &Spec) -> Vec<PathBuf> {
    let mounts = spec.mounts().as_deref().unwrap_or_default();
    let root = mounts.iter().find(|mount| mount.destination() == Path::new("/"));
    let options = root.and_then(|root| root.options().clone()).unwrap_or_default();
    let of = |key: &str| options.iter().filter_map(|option| option.strip_prefix(key)).map(PathBuf::from).collect();
    let layers: [Vec<PathBuf>; 2] = [of("upperdir="), of("lowerdir=")];
    layers.concat()
}

/// The layers of every container of these directories, made and kept: no image may be deleted from under them.
pub fn layers_in_use(data_dir: &Path, run_dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut layers = Vec::new();
    for dir in [data_dir.join("kept"), run_dir.join("tasks")] {
        let entries = match fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            entries => entries?,
        };
        for entry in entries {
            match BundleDir(entry?.path()).spec() {
                Ok(spec) => layers.extend(layers_of(&spec)),
                // Half made, or gone meanwhile: it has none mounted.
                Err(error) => tracing::debug!(%error, "a container without a configuration"),
            }
        }
    }
    Ok(layers)
}

/// The paths below `from` as they are once that is called `to`.
fn move_places(spec: &mut Spec, from: &Path, to: &Path) {
    let moved = |path: &Path| path.strip_prefix(from).ok().map(|rest| to.join(rest));
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if let Some(source) = mount.source().as_deref().and_then(moved) {
            mount.set_source(Some(source));
        }
        if mount.destination() != Path::new("/") {
            continue;
        }
        let mut options = mount.options().clone().unwrap_or_default();
        for option in &mut options {
            let place = option.split_once('=').and_then(|(key, path)| Some((key, moved(Path::new(path))?)));
            if let Some((key, path)) = place {
                *option = format!("{key}={}", path.display());
            }
        }
        mount.set_options(Some(options));
    }
    spec.set_mounts(Some(mounts));
}

fn has_room(dir: &Path) -> io::Result<bool> {
    let disk = statvfs(dir)?;
    // As df(1) counts: what is reserved for root is nobody's.
    let usable = disk.blocks() - disk.blocks_free() + disk.blocks_available();
    Ok(disk.blocks_available() >= usable / FREE_SHARE)
}
