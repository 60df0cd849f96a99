//! An assignment and its image as an OCI bundle: what `config.json` says. Pure.
//!
//! The bundle is the boundary between the agent, which decides, and the shim, which makes the container
//! (<https://github.com/opencontainers/runtime-spec/blob/main/config.md>). Two liberties are taken with the format:
//!
//! * A mount with the destination `/` is the root file system itself, of type `overlay`, with one `lowerdir=` option
//!   for each layer, uppermost first. So the root is mounted in the container's own mount namespace and no mount of
//!   it is ever seen, or left behind, on the host.
//! * `process.user.username` holds the user as it was written (`www-data:adm`), and after commas the groups that are
//!   added (`www-data:,audio,44`); only the container's own passwd and group files, which the shim sees, tell the
//!   numbers.
//!
//! Deliberately absent: a devices cgroup where the spec names no devices (every mount is `nodev` and `/dev` has nothing
//! but the harmless ones), cgroup v1 mounts below `/sys/fs/cgroup` of containers that are not privileged, anonymous
//! volumes for an image's `VOLUME`.

mod limits;
mod profile;
mod rights;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    net::Ipv4Addr,
    path::{Path, PathBuf},
};

use oci_spec::{
    OciSpecError,
    image::{Config as ImageConfig, ImageConfiguration},
    runtime::{
        LinuxBuilder, LinuxCapabilitiesBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
        Mount as OciMount, MountBuilder, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
    },
};
use roster_proto::{
    assignment::Assignment,
    id::NodeId,
    spec::{IpcMode, Mount, PidMode, Propagation, Rights, TaskSpec},
};
use roster_runtime::{
    container::{ANNOTATION_CREATE, ANNOTATION_INIT},
    error::StartError,
};

pub use self::profile::Platform;
use super::devices::HostDevices;

/// OCI's own name for it.
pub const ANNOTATION_STOP_SIGNAL: &str = "org.opencontainers.image.stopSignal";

/// Docker's default, in bytes.
const SHM_SIZE: u64 = 64 << 20;

const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Everything that ends up in a bundle.
#[derive(Debug)]
pub struct Contents<'a> {
    pub assignment: &'a Assignment,
    pub node: &'a NodeId,
    pub image: &'a ImageConfiguration,
    /// Uppermost first.
    pub lower: Vec<PathBuf>,
    pub upper: PathBuf,
    pub work: PathBuf,
    /// Where the generated `hosts`, `hostname` and `resolv.conf` lie.
    pub files: &'a Path,
    pub network: Network<'a>,
    pub cgroup: PathBuf,
    /// The host has cgroup v2, of which the container may see its own part.
    pub cgroup2: bool,
    pub platform: Platform,
    /// What the spec's devices are on this node.
    pub devices: &'a HostDevices,
}

#[derive(Clone, Copy, Debug)]
pub enum Network<'a> {
    /// The host's own.
    Host,
    /// A new namespace with nothing but loopback.
    None,
    /// A namespace somebody made.
    Path { netns: &'a Path, address: Ipv4Addr },
}

impl Network<'_> {
    pub fn address(&self) -> Option<Ipv4Addr> {
        match self {
            Network::Path { address, .. } => Some(*address),
            Network::Host | Network::None => None,
        }
    }
}

pub fn spec(contents: &Contents<'_>) -> Result<Spec, StartError> {
    build(contents).map_err(|error| match error {
        BundleError::Impossible(error) => error,
        BundleError::Oci(error) => StartError::Step { step: "write the bundle".to_owned(), error: error.to_string() },
    })
}

enum BundleError {
    Impossible(StartError),
    Oci(OciSpecError),
}

impl From<OciSpecError> for BundleError {
    fn from(error: OciSpecError) -> Self {
        Self::Oci(error)
    }
}

fn build(contents: &Contents<'_>) -> Result<Spec, BundleError> {
    let task = &*contents.assignment.spec;
    let image = contents.image.config().as_ref();
    let args = command(contents).map_err(BundleError::Impossible)?;
    let mut oci_user = UserBuilder::default().uid(0u32).gid(0u32);
    if let Some(user) = user(task, image) {
        oci_user = oci_user.username(user);
    }
    let rights = &task.rights;
    let capabilities = rights::capabilities(rights);
    let seccomp = rights::seccomp(rights, &capabilities, &contents.platform).map_err(BundleError::Impossible)?;
    let mut process = ProcessBuilder::default()
        .terminal(task.tty)
        .user(oci_user.build()?)
        .args(args)
        .env(environment(contents))
        .cwd(working_dir(contents))
        .capabilities(
            LinuxCapabilitiesBuilder::default()
                .bounding(capabilities.clone())
                .effective(capabilities.clone())
                .permitted(capabilities)
                .inheritable(HashSet::new())
                .ambient(HashSet::new())
                .build()?,
        )
        .no_new_privileges(rights::no_new_privileges(rights))
        .rlimits(limits::rlimits(task)?)
        .oom_score_adj(task.kernel.oom_score_adj.unwrap_or(0))
        .build()?;
    process.set_apparmor_profile(rights.apparmor.clone());
    let mut resources = limits::resources(&task.resources, contents.devices)?;
    let device_rules = rights::device_rules(rights, contents.devices)?;
    resources.set_devices(Some(device_rules).filter(|rules| !rules.is_empty()));
    let covered = |paths: &[&str]| match rights.privileged || rights.unmasked {
        true => Vec::new(),
        false => paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    let mut linux = LinuxBuilder::default()
        .cgroups_path(contents.cgroup.clone())
        .resources(resources)
        .namespaces(namespaces(contents)?)
        .devices(rights::nodes(contents.devices)?)
        .sysctl(limits::sysctls(task))
        .masked_paths(covered(&rights::MASKED_PATHS))
        .readonly_paths(covered(&rights::READONLY_PATHS))
        .build()?;
    linux.set_seccomp(seccomp);
    let spec = SpecBuilder::default()
        .version("1.0.2")
        .root(RootBuilder::default().path("rootfs").readonly(task.read_only).build()?)
        .mounts(mounts(contents)?)
        .process(process)
        .hostname(hostname(contents.assignment))
        .annotations(annotations(contents))
        .linux(linux)
        .build()?;
    Ok(spec)
}

/// As the container's first process looks it up: `USER[:GROUP]`, with the groups that are added after it.
fn user(task: &TaskSpec, image: Option<&ImageConfig>) -> Option<String> {
    let user = task.user.clone().or_else(|| image?.user().clone()).filter(|user| !user.is_empty());
    let groups = &task.rights.group_add;
    if groups.is_empty() {
        return user;
    }
    let user = user.unwrap_or_else(|| "0".to_owned());
    let (name, group) = user.split_once(':').unwrap_or((&user, ""));
    Some(format!("{name}:{group},{}", groups.join(",")))
}

/// `web-2`: the replica's name as a host name may be written.
pub fn hostname(assignment: &Assignment) -> String {
    assignment.spec.hostname.clone().unwrap_or_else(|| {
        let mut name = assignment.name().replace(['.', '_'], "-");
        // HOST_NAME_MAX, gethostname(2).
        name.truncate(64);
        name
    })
}

/// Docker's rules: an entrypoint of the spec discards the image's command; a command of the spec replaces it.
fn command(contents: &Contents<'_>) -> Result<Vec<String>, StartError> {
    let task = &*contents.assignment.spec;
    let image = contents.image.config().as_ref();
    let image_entrypoint = || image.and_then(|config| config.entrypoint().clone()).unwrap_or_default();
    let image_command = || image.and_then(|config| config.cmd().clone()).unwrap_or_default();
    let (mut args, rest) = match (&task.entrypoint, &task.command) {
        (Some(entrypoint), command) => (entrypoint.clone(), command.clone().unwrap_or_default()),
        (None, Some(command)) => (image_entrypoint(), command.clone()),
        (None, None) => (image_entrypoint(), image_command()),
    };
    args.extend(rest);
    if args.first().is_none_or(String::is_empty) {
        let reason = "neither the spec nor the image says which program to run: set `command`";
        return Err(StartError::impossible(format!("running image {}", task.image), reason));
    }
    Ok(args)
}

/// From weakest to strongest: defaults, the image's, Roster's own names, the spec's.
fn environment(contents: &Contents<'_>) -> Vec<String> {
    let assignment = contents.assignment;
    let mut variables = BTreeMap::new();
    let mut set = |key: &str, value: String| variables.insert(key.to_owned(), value);
    set("PATH", DEFAULT_PATH.to_owned());
    set("HOSTNAME", hostname(assignment));
    if assignment.spec.tty {
        set("TERM", "xterm".to_owned());
    }
    for variable in contents.image.config().as_ref().and_then(|config| config.env().as_ref()).into_iter().flatten() {
        let (key, value) = variable.split_once('=').unwrap_or((variable, ""));
        set(key, value.to_owned());
    }
    set("ROSTER_TASK_NAME", assignment.name());
    set("ROSTER_TASK_ID", assignment.task.to_string());
    set("ROSTER_SERVICE", assignment.service.name.to_string());
    set("ROSTER_STACK", assignment.service.stack.to_string());
    set("ROSTER_SLOT", assignment.slot.to_string());
    set("ROSTER_NODE", contents.node.to_string());
    for (key, value) in &assignment.spec.environment {
        set(key, value.clone());
    }
    variables.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
}

fn working_dir(contents: &Contents<'_>) -> PathBuf {
    let of_image = || contents.image.config().as_ref().and_then(|config| config.working_dir().clone());
    let dir = contents.assignment.spec.working_dir.clone().or_else(of_image).unwrap_or_default();
    Path::new("/").join(dir)
}

fn namespaces(contents: &Contents<'_>) -> Result<Vec<LinuxNamespace>, OciSpecError> {
    let own = |typ| LinuxNamespaceBuilder::default().typ(typ).build();
    let rights = &contents.assignment.spec.rights;
    let mut namespaces =
        vec![own(LinuxNamespaceType::Mount)?, own(LinuxNamespaceType::Uts)?, own(LinuxNamespaceType::Cgroup)?];
    // That of another container is put in the place of a new one by the shim, which knows whose it is.
    if rights.pid != PidMode::Host {
        namespaces.push(own(LinuxNamespaceType::Pid)?);
    }
    if rights.ipc != IpcMode::Host {
        namespaces.push(own(LinuxNamespaceType::Ipc)?);
    }
    match &contents.network {
        Network::Host => {}
        Network::None => namespaces.push(own(LinuxNamespaceType::Network)?),
        Network::Path { netns, .. } => namespaces
            .push(LinuxNamespaceBuilder::default().typ(LinuxNamespaceType::Network).path(netns.to_path_buf()).build()?),
    }
    Ok(namespaces)
}

fn mounts(contents: &Contents<'_>) -> Result<Vec<OciMount>, OciSpecError> {
    let mut root = Vec::new();
    root.extend(contents.lower.iter().map(|layer| format!("lowerdir={}", layer.display())));
    root.push(format!("upperdir={}", contents.upper.display()));
    root.push(format!("workdir={}", contents.work.display()));
    root.push("nodev".to_owned());
    // What is changed is in the upper directory, whole and under its own name: `crate::layers` reads it there.
    root.extend(["redirect_dir=off", "metacopy=off"].map(str::to_owned));
    let rights = &contents.assignment.spec.rights;
    let mut mounts = vec![
        mount("/", "overlay", Some(Path::new("overlay")), root)?,
        standard("/proc", "proc", &["nosuid", "noexec", "nodev"])?,
        standard("/dev", "tmpfs", dev_options(rights))?,
        standard("/dev/pts", "devpts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"])?,
    ];
    mounts.extend(ipc_mounts(&contents.assignment.spec)?);
    let access = if rights.privileged { "rw" } else { "ro" };
    mounts.push(standard("/sys", "sysfs", &["nosuid", "noexec", "nodev", access])?);
    let cgroup = if contents.cgroup2 { "cgroup2" } else { "cgroup" };
    mounts.push(standard("/sys/fs/cgroup", cgroup, &["nosuid", "noexec", "nodev", access])?);
    for (name, target) in [("hosts", "/etc/hosts"), ("hostname", "/etc/hostname"), ("resolv.conf", "/etc/resolv.conf")]
    {
        let options = ["bind", "nosuid", "nodev", "rprivate"].map(str::to_owned).to_vec();
        mounts.push(mount(target, "bind", Some(&contents.files.join(name)), options)?);
    }
    // A mount on a directory must come before one on something inside it.
    let mut wanted: Vec<&Mount> = contents.assignment.spec.mounts.iter().collect();
    wanted.sort_by_key(|mount| target(mount).components().count());
    for mount in wanted {
        mounts.push(of_task(mount, rights)?);
    }
    Ok(mounts)
}

/// With `nodev` the devices are the host's nodes, bound; without it they are made, and a control group keeps others
/// away.
fn dev_options(rights: &Rights) -> &'static [&'static str] {
    match rights::controls_devices(rights) {
        true => &["nosuid", "noexec", "mode=755", "size=65536k"],
        false => &["nosuid", "nodev", "noexec", "mode=755", "size=65536k"],
    }
}

fn ipc_mounts(task: &TaskSpec) -> Result<Vec<OciMount>, OciSpecError> {
    let queues = || standard("/dev/mqueue", "mqueue", &["nosuid", "noexec", "nodev"]);
    match task.rights.ipc {
        // Where it is a service's the shim puts that one's in the place of this.
        IpcMode::Private | IpcMode::Service(_) => {
            let size = format!("size={}k", task.kernel.shm_size.unwrap_or(SHM_SIZE).div_ceil(1024));
            Ok(vec![standard("/dev/shm", "tmpfs", &["nosuid", "noexec", "nodev", "mode=1777", &size])?, queues()?])
        }
        IpcMode::None => Ok(vec![queues()?]),
        IpcMode::Host => {
            let options = ["rbind", "nosuid", "noexec", "nodev", "rprivate"].map(str::to_owned).to_vec();
            // A mount of queues shows those of the namespace that the process is in, which is the host's.
            Ok(vec![mount("/dev/shm", "bind", Some(Path::new("/dev/shm")), options)?, queues()?])
        }
    }
}

fn target(mount: &Mount) -> &Path {
    match mount {
        Mount::Bind { target, .. } | Mount::Tmpfs { target, .. } => target,
    }
}

fn of_task(wanted: &Mount, rights: &Rights) -> Result<OciMount, OciSpecError> {
    match wanted {
        Mount::Bind { source, target, read_only, create_source: _, propagation } => {
            let propagation = match propagation {
                Propagation::Rprivate => "rprivate",
                Propagation::Private => "private",
                Propagation::Rshared => "rshared",
                Propagation::Shared => "shared",
                Propagation::Rslave => "rslave",
                Propagation::Slave => "slave",
            };
            // What is mounted below it on the host too.
            let mut options = vec!["rbind".to_owned(), propagation.to_owned()];
            // Devices on it are out of reach, unless a control group says which of them are not.
            options.extend((!rights::controls_devices(rights)).then(|| "rnodev".to_owned()));
            options.extend(read_only.then(|| "rro".to_owned()));
            mount(&target.to_string_lossy(), "bind", Some(source), options)
        }
        Mount::Tmpfs { target, size, mode, read_only, options: more } => {
            let mut options = vec!["nodev".to_owned()];
            options.extend((!more.suid).then(|| "nosuid".to_owned()));
            options.extend((!more.exec).then(|| "noexec".to_owned()));
            options.extend(more.uid.map(|uid| format!("uid={uid}")));
            options.extend(more.gid.map(|gid| format!("gid={gid}")));
            options.extend(more.inodes.map(|count| format!("nr_inodes={count}")));
            options.push(format!("mode={:o}", mode.unwrap_or(0o1777)));
            options.extend(size.map(|bytes| format!("size={bytes}")));
            options.extend(read_only.then(|| "ro".to_owned()));
            mount(&target.to_string_lossy(), "tmpfs", Some(Path::new("tmpfs")), options)
        }
    }
}

fn standard(target: &str, typ: &str, options: &[&str]) -> Result<OciMount, OciSpecError> {
    mount(target, typ, Some(Path::new(typ)), options.iter().map(|option| (*option).to_owned()).collect())
}

fn mount(target: &str, typ: &str, source: Option<&Path>, options: Vec<String>) -> Result<OciMount, OciSpecError> {
    let builder = MountBuilder::default().destination(target).typ(typ).options(options);
    match source {
        Some(source) => builder.source(source).build(),
        None => builder.build(),
    }
}

fn annotations(contents: &Contents<'_>) -> HashMap<String, String> {
    let task = &*contents.assignment.spec;
    let mut annotations = HashMap::new();
    if task.init {
        annotations.insert(ANNOTATION_INIT.to_owned(), "true".to_owned());
    }
    let of_image = || contents.image.config().as_ref().and_then(|config| config.stop_signal().clone());
    if let Some(signal) = task.stop_signal.clone().or_else(of_image) {
        annotations.insert(ANNOTATION_STOP_SIGNAL.to_owned(), signal);
    }
    let create: Vec<_> = task
        .mounts
        .iter()
        .filter_map(|mount| match mount {
            Mount::Bind { source, create_source: true, .. } => Some(source.to_string_lossy().into_owned()),
            Mount::Bind { .. } | Mount::Tmpfs { .. } => None,
        })
        .collect();
    if !create.is_empty() {
        annotations.insert(ANNOTATION_CREATE.to_owned(), create.join("\n"));
    }
    annotations
}

/// `/etc/hosts` of a container with a network of its own.
pub fn hosts(hostname: &str, address: Option<Ipv4Addr>) -> String {
    let own = address.unwrap_or(Ipv4Addr::new(127, 0, 1, 1));
    format!(
        "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\nfe00::0\tip6-localnet\n\
         ff02::1\tip6-allnodes\nff02::2\tip6-allrouters\n{own}\t{hostname}\n"
    )
}

/// The host's resolv.conf without name servers on loopback, which is another one in the container.
pub fn resolv_conf(of_host: &str) -> String {
    let reachable = |line: &&str| {
        let mut words = line.split_whitespace();
        words.next() != Some("nameserver") || !words.next().is_some_and(|ip| ip.starts_with("127.") || ip == "::1")
    };
    of_host.lines().filter(reachable).map(|line| format!("{line}\n")).collect()
}

#[cfg(test)]
mod tests;
