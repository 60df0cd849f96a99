//! Where the kernel's hierarchies are, and making, changing, finding and listing groups in them.

use std::{
    fs::{self, File},
    io,
    path::{Component, Path, PathBuf},
    time::{Duration, Instant},
};

use cgroups_rs::fs::hierarchies::{UNIFIED_MOUNTPOINT, is_cgroup2_unified_mode};
use oci_spec::runtime::LinuxResources;

use super::{
    CgroupDirs, OWN_PARENT, Version, delegation, device_program,
    devices::{self, Rule},
    realtime,
    resources::{self, Write},
    roots::{ALWAYS, BLOCKS, CPU_SET, CPU_TIME, MAYBE, Roots},
    write,
};
use crate::{
    error::{StartError, Step},
    sys,
};

/// How long moving a container's processes may take: each one waits for a grace period of the kernel.
const GATHERING_DEADLINE: Duration = Duration::from_secs(20);

/// A container's group is named by a path below the root of each hierarchy, such as `/roster/web-1`.
#[derive(Debug)]
pub struct Hierarchies {
    pub(super) layout: Layout,
}

#[derive(Debug)]
pub(super) enum Layout {
    V1(Box<Roots>),
    V2(PathBuf),
}

impl Hierarchies {
    pub fn open() -> Result<Self, StartError> {
        if is_cgroup2_unified_mode() {
            return Ok(Self { layout: Layout::V2(PathBuf::from(UNIFIED_MOUNTPOINT)) });
        }
        Ok(Self { layout: Layout::V1(Box::new(Roots::find()?)) })
    }

    pub fn is_v2(&self) -> bool {
        self.version() == Version::V2
    }

    pub(super) fn version(&self) -> Version {
        match self.layout {
            Layout::V1(_) => Version::V1,
            Layout::V2(_) => Version::V2,
        }
    }

    /// The group's directories: those that every container has, whether they are there or not, and those others that
    /// are there. A container that was ever frozen on v1 has one more than when it was made; who kills or removes it
    /// asks here again.
    pub fn dirs(&self, path: &Path) -> Result<CgroupDirs, StartError> {
        let path = below_root(path)?;
        let roots = match &self.layout {
            Layout::V2(root) => return Ok(CgroupDirs(vec![root.join(path)])),
            Layout::V1(roots) => roots,
        };
        let mut dirs = v1_dirs(roots, &ALWAYS, path)?;
        for dir in MAYBE.iter().filter_map(|controller| roots.group(controller, path)) {
            // Controllers may share a mount.
            if !dirs.contains(&dir) {
                dirs.push(dir);
            }
        }
        Ok(CgroupDirs(dirs))
    }

    /// Names of all groups under `parent`.
    pub fn list(&self, parent: &Path) -> Result<Vec<String>, StartError> {
        let parent = below_root(parent)?;
        let dirs = match &self.layout {
            Layout::V2(root) => vec![root.join(parent)],
            Layout::V1(roots) => v1_dirs(roots, &ALWAYS, parent)?,
        };
        let mut names = Vec::new();
        for dir in dirs {
            let step = || format!("list the cgroups under {}", dir.display());
            let entries = match fs::read_dir(&dir) {
                Ok(entries) => entries,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(error).step(step),
            };
            for entry in entries {
                let entry = entry.step(step)?;
                if entry.file_type().step(step)?.is_dir() {
                    names.extend(entry.file_name().into_string());
                }
            }
        }
        names.sort_unstable();
        names.dedup();
        Ok(names)
    }

    /// Makes the group with its limits. It may be there, but not with processes in it: they would be another's. `shown`:
    /// the container's programs see its groups.
    ///
    /// Leaves no group behind that it made when it fails.
    pub fn create(&self, path: &Path, resources: &LinuxResources, shown: bool) -> Result<CgroupDirs, StartError> {
        let path = below_root(path)?;
        let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
        let mut writes = resources::writes(resources, self.version())?;
        let mut made = Vec::new();
        let created = match &self.layout {
            Layout::V1(roots) => devices::v1_writes(&rules).and_then(|devices| {
                writes.extend(devices);
                create_v1(roots, path, &writes, &unlimited(roots, resources, shown), &mut made)
            }),
            Layout::V2(root) => create_v2(root, path, &writes, &rules, &mut made),
        };
        created.map_err(|error| {
            // A group that was there is another's, and so is what is reserved for it.
            let is_new = |roots: &Roots| roots.get("cpu").is_some_and(|root| made.contains(&root.join(path)));
            let released = match &self.layout {
                Layout::V1(roots) if is_new(roots) => self.release(path),
                _ => Ok(()),
            };
            let error = match released {
                Ok(()) => error,
                Err(left) => StartError::Step { step: error.to_string(), error: left.to_string() },
            };
            remove_made(made, error)
        })
    }

    /// What is reserved for a group in those above it, before it is removed.
    pub fn release(&self, path: &Path) -> Result<(), StartError> {
        match &self.layout {
            Layout::V1(roots) => {
                roots.get("cpu").map_or(Ok(()), |root| realtime::release(root, OWN_PARENT, below_root(path)?))
            }
            Layout::V2(_) => Ok(()),
        }
    }

    /// Changes limits of a group that [`Self::create`] made, also to ones by controllers it did not need until now.
    ///
    /// Device rules are not limits: those from the beginning stay. What bounds each other is to be said together,
    /// memory with swap and a quota with its period; what is not said stays.
    pub fn update(&self, path: &Path, resources: &LinuxResources) -> Result<(), StartError> {
        let home = self.home(path)?;
        let path = below_root(path)?;
        let writes = resources::writes(resources, self.version())?;
        let memory = resources.memory().as_ref();
        if let Some(memory) = memory.filter(|memory| memory.check_before_update() == Some(true)) {
            let file = match &self.layout {
                Layout::V1(roots) => roots.need("memory")?.join(path).join("memory.usage_in_bytes"),
                Layout::V2(_) => home.join("memory.current"),
            };
            resources::refuse_less_than_used(memory, read_number(&file)?)?;
        }
        match &self.layout {
            Layout::V1(roots) => update_v1(roots, path, &writes, &CgroupDirs(vec![home])),
            Layout::V2(root) => {
                delegation::enable(root, &home, &needed_v2(&writes))?;
                write::apply(&writes, |_| Ok(home.clone()))
            }
        }
    }

    /// The first of the group's directories, which says whether there is such a group, and which processes it has.
    pub(super) fn home(&self, path: &Path) -> Result<PathBuf, StartError> {
        let path = below_root(path)?;
        let home = match &self.layout {
            Layout::V1(roots) => roots.need(ALWAYS[0])?.join(path),
            Layout::V2(root) => root.join(path),
        };
        fs::metadata(&home).step(|| format!("find the cgroup {}", home.display()))?;
        Ok(home)
    }
}

/// Those that set no limit here. Docker reads the figures of whichever group a container is in, be it the host's; a
/// config that speaks of blocks, without a limit perhaps, is one whose maker reads them. Java, where it sees groups,
/// believes no limit at all unless that of its processors is among them.
fn unlimited(roots: &Roots, resources: &LinuxResources, shown: bool) -> Vec<&'static str> {
    let blocks = resources.block_io().as_ref().map(|_| BLOCKS);
    let all = [Some(CPU_TIME), shown.then_some(CPU_SET), blocks];
    all.into_iter().flatten().filter(|controller| roots.get(controller).is_some()).collect()
}

fn create_v1(
    roots: &Roots,
    path: &Path,
    writes: &[Write],
    unlimited: &[&'static str],
    made: &mut Vec<PathBuf>,
) -> Result<CgroupDirs, StartError> {
    let mut controllers = [&ALWAYS, unlimited].concat();
    controllers.extend(writes.iter().map(|write| write.controller.as_str()));
    let dirs = CgroupDirs(v1_dirs(roots, &controllers, path)?);
    make_all(&dirs, made)?;
    fill_cpuset(roots, path, &dirs)?;
    limit_v1(roots, path, writes)?;
    Ok(dirs)
}

fn create_v2(
    root: &Path,
    path: &Path,
    writes: &[Write],
    rules: &[Rule],
    made: &mut Vec<PathBuf>,
) -> Result<CgroupDirs, StartError> {
    let group = root.join(path);
    let dirs = CgroupDirs(vec![group.clone()]);
    make_all(&dirs, made)?;
    delegation::enable(root, &group, &needed_v2(writes))?;
    write::apply(writes, |_| Ok(group.clone()))?;
    if !rules.is_empty() {
        restrict_devices(&group, rules)?;
    }
    Ok(dirs)
}

pub(super) fn restrict_devices(group: &Path, rules: &[Rule]) -> Result<(), StartError> {
    let program = sys::load_device_program(&device_program::program(rules))
        .step(|| "give the kernel the program that restricts devices".to_owned())?;
    let step = || format!("restrict the devices of {}", group.display());
    sys::attach_device_program(program, File::open(group).step(step)?).step(step)
}

/// A group that is new to the container gets its processes once its limits are set.
fn update_v1(roots: &Roots, path: &Path, writes: &[Write], home: &CgroupDirs) -> Result<(), StartError> {
    let controllers: Vec<&str> = writes.iter().map(|write| write.controller.as_str()).collect();
    let dirs = CgroupDirs(v1_dirs(roots, &controllers, path)?);
    let new: Vec<&PathBuf> = dirs.0.iter().filter(|dir| !dir.exists()).collect();
    let mut made = Vec::new();
    for dir in &new {
        make(dir, &mut made)?;
    }
    let updated = fill_cpuset(roots, path, &dirs).and_then(|()| limit_v1(roots, path, writes));
    if let Err(error) = updated {
        return Err(remove_made(made, error));
    }
    for dir in new {
        home.gather_into(dir, Instant::now() + GATHERING_DEADLINE)
            .step(|| format!("move the container's processes to {}", dir.display()))?;
    }
    Ok(())
}

fn limit_v1(roots: &Roots, path: &Path, writes: &[Write]) -> Result<(), StartError> {
    let apply = || write::apply(writes, |controller| Ok(roots.need(controller)?.join(path)));
    let budgeted = |root: &&Path| writes.iter().any(realtime::is_about) && root.join(realtime::RUNTIME).exists();
    let Some(root) = roots.get("cpu").filter(budgeted) else { return apply() };
    let mut tries = 1;
    loop {
        let limited = realtime::make_room(root, OWN_PARENT, path, writes).and_then(|()| apply());
        if limited.is_ok() || tries == realtime::TRIES {
            return limited.and_then(|()| realtime::give_back(root, OWN_PARENT, path));
        }
        // Another may have taken the room.
        tries += 1;
    }
}

/// Controllers that must work in the group. Files that begin with `cgroup.` are every group's.
fn needed_v2(writes: &[Write]) -> Vec<&str> {
    let mut needed = ALWAYS.to_vec();
    for write in writes {
        if write.controller != "cgroup" && !needed.contains(&write.controller.as_str()) {
            needed.push(&write.controller);
        }
    }
    needed
}

fn make_all(dirs: &CgroupDirs, made: &mut Vec<PathBuf>) -> Result<(), StartError> {
    for dir in &dirs.0 {
        make(dir, made)?;
    }
    // What was not made was there.
    if made.len() < dirs.0.len() {
        let processes = dirs.processes().step(|| format!("look into the cgroup {}", dirs.0[0].display()))?;
        if !processes.is_empty() {
            let reason = format!("processes {processes:?} are in it: end them, or choose another cgroup");
            return Err(StartError::impossible(format!("using the cgroup {}", dirs.0[0].display()), reason));
        }
    }
    Ok(())
}

pub(super) fn make(dir: &Path, made: &mut Vec<PathBuf>) -> Result<(), StartError> {
    let step = || format!("make the cgroup {}", dir.display());
    let mut result = fs::create_dir(dir);
    if let (Err(error), Some(parent)) = (&result, dir.parent())
        && error.kind() == io::ErrorKind::NotFound
    {
        fs::create_dir_all(parent).step(step)?;
        result = fs::create_dir(dir);
    }
    match result {
        Ok(()) => made.push(dir.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
        Err(error) => return Err(error).step(step),
    }
    Ok(())
}

fn remove_made(made: Vec<PathBuf>, error: StartError) -> StartError {
    match CgroupDirs(made).remove() {
        Ok(()) => error,
        Err(left) => StartError::Step { step: format!("{error}; then remove the cgroup"), error: left.to_string() },
    }
}

/// A new v1 cpuset has no processors and no memory, and nothing can join it: it and those above get what is above them.
fn fill_cpuset(roots: &Roots, path: &Path, dirs: &CgroupDirs) -> Result<(), StartError> {
    let Some(root) = roots.get("cpuset") else { return Ok(()) };
    if !dirs.0.contains(&root.join(path)) {
        return Ok(());
    }
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let read = |path: &Path| fs::read_to_string(path).step(|| format!("read {}", path.display()));
        let mut above = read(&root.join(file))?;
        let mut dir = root.to_owned();
        for name in path {
            dir.push(name);
            let own = dir.join(file);
            let set = read(&own)?;
            if set.trim().is_empty() {
                fs::write(&own, &above).step(|| format!("write {:?} to {}", above.trim(), own.display()))?;
            } else {
                above = set;
            }
        }
    }
    Ok(())
}

/// Without repetition, as controllers may share a mount.
fn v1_dirs(roots: &Roots, controllers: &[&str], path: &Path) -> Result<Vec<PathBuf>, StartError> {
    let mut dirs = Vec::new();
    for controller in controllers {
        let dir = roots.need(controller)?.join(path);
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    Ok(dirs)
}

/// Without the leading slash; never the root itself, nor outside of it.
pub(super) fn below_root(path: &Path) -> Result<&Path, StartError> {
    let relative = path.strip_prefix("/").unwrap_or(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if !plain || relative.as_os_str().is_empty() {
        let reason = "it must name a group below the root, such as /roster/web-1, without `..`";
        return Err(StartError::impossible(format!("using the cgroup {:?}", path.display().to_string()), reason));
    }
    Ok(relative)
}

fn read_number(path: &Path) -> Result<u64, StartError> {
    let step = || format!("read {}", path.display());
    fs::read_to_string(path).step(step)?.trim().parse().map_err(io::Error::other).step(step)
}
