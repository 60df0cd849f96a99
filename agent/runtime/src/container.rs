//! From a forked copy of the maker to the container's program: the order of steps, each named in what it reports.
//!
//! The order matters. The maker's death is watched for first. Everything that needs the host's files is opened before
//! the root changes; every descriptor is closed before the working directory, which the user names, is entered:
//! `/proc/self/fd/N` must not lead out. Identity and privileges come last, and the seccomp filter after them.
//!
//! ```text
//! maker ─ clone3: pid and user namespace, cgroup v2
//!   └ joins namespaces, joins the cgroup v1, makes namespaces
//!       ├ prestart, createRuntime hooks (the maker runs them); the seccomp filter (the maker may compile it meanwhile)
//!       ├ mounts; createContainer hooks; terminal; pivot_root
//!       ├ waits to be started, when it is only created
//!       └ startContainer hooks; identity, privileges, seccomp; exec
//! ```

use std::{
    borrow::Cow,
    convert::Infallible,
    fs, io,
    os::fd::{AsFd, OwnedFd},
    path::{Path, PathBuf},
};

use nix::{
    libc,
    sys::stat::{Mode, umask},
};
use oci_spec::runtime::{ContainerState, Hook, LinuxNamespaceType, Mount, Process, Spec, State};

use crate::{
    cgroup::{CgroupDirs, Door},
    channel::{Channel, Listener, Word, die_with},
    error::{StartError, Step},
    hooks, init,
    namespaces::Namespaces,
    process::{labels, scheduling},
    program::{Confinement, Program, first_foreign},
    rootfs::{self, Root, Sources, Way, toolbox::Toolbox},
    seccomp, signal, sys, sysctl, terminal,
};

/// Run a small init as process 1.
pub const ANNOTATION_INIT: &str = "org.roster.init";
/// Make an empty directory at this bind mount's source where there is nothing; one source a line.
pub const ANNOTATION_CREATE: &str = "org.roster.create";

/// The usual one, whatever the maker was started with.
const UMASK: Mode = Mode::from_bits_truncate(0o022);

/// The program's standard streams, unless it has a terminal.
#[derive(Debug)]
pub enum Stdio {
    /// The maker's own.
    Inherited,
    Given {
        input: OwnedFd,
        out: OwnedFd,
        err: OwnedFd,
    },
}

impl Stdio {
    pub(crate) fn place(self) -> io::Result<()> {
        match self {
            Stdio::Inherited => Ok(()),
            Stdio::Given { input, out, err } => {
                sys::place_at(input, libc::STDIN_FILENO)?;
                sys::place_at(out, libc::STDOUT_FILENO)?;
                sys::place_at(err, libc::STDERR_FILENO)
            }
        }
    }
}

/// All that a container's first process is given but the bundle.
#[derive(Debug)]
pub struct Birth<'a> {
    pub id: &'a str,
    pub bundle: &'a Path,
    /// See [`Sources::mapped`]. Without, the process opens them itself, which it cannot in a user namespace.
    pub mapped: Option<Vec<Option<OwnedFd>>>,
    /// Of its cgroup.
    pub door: Door,
    pub cgroup: &'a CgroupDirs,
    pub stdio: Stdio,
    /// To its maker.
    pub channel: Channel,
    pub dies_with_maker: bool,
    /// When it is to be only created: where whoever starts it will knock.
    pub start: Option<Listener>,
    /// Where an init tells how the program ended.
    pub ended: Option<OwnedFd>,
    /// Descriptors beyond the standard ones that the program gets.
    pub preserved: u32,
    pub no_pivot: bool,
    pub keep_keyring: bool,
    /// The maker compiles the seccomp profile meanwhile and sends the filter. One that has not read the spec cannot.
    pub hears_filter: bool,
    /// It is to have the host's programs beside its own root.
    pub toolbox: Option<Toolbox>,
}

/// Makes the container around the calling process and executes its program. Reports failure to the maker and exits.
///
/// The caller was forked for it with [`Namespaces::clone_flags`], and has one thread. What `spec` reads is read here so
/// that a maker that stays need not have it in its memory.
pub fn become_container<'a>(mut birth: Birth<'_>, spec: impl FnOnce() -> Result<Cow<'a, Spec>, StartError>) -> ! {
    // Reached by whatever channel there is when it fails: the starter's is another than the maker's.
    let Err(error) = spec().and_then(|spec| live(&mut birth, &spec));
    birth.channel.fail(error)
}

fn live(birth: &mut Birth<'_>, spec: &Spec) -> Result<Infallible, StartError> {
    if birth.dies_with_maker {
        die_with(&birth.channel)?;
    }
    // Nobody in the container may look into a process that still has the host's.
    sys::prctl(libc::PR_SET_DUMPABLE, 0).step(|| "hide the process".to_owned())?;
    signal::reset().step(|| "reset signals".to_owned())?;
    umask(UMASK);
    let process = spec.process().as_ref();
    let has_init = annotation(spec, ANNOTATION_INIT).is_some();
    if has_init {
        init::disguise()?;
    }
    create_sources(spec)?;
    let confinement = enter_namespaces(birth, spec)?;
    let terminal = make_root(birth, spec)?;
    if let Some(toolbox) = birth.toolbox.take() {
        toolbox.enter()?;
    }
    let first = first_foreign(birth.preserved)?;
    // A container may be created without a process, but not started.
    let program = process.map(|process| Program::of(process, confinement)).transpose()?;
    if let Some(program) = &program {
        program.locate()?;
    }
    let mut ended = birth.ended.take().filter(|_| has_init);
    if let Some(listener) = birth.start.take() {
        birth.channel.say(&Word::Waiting).step(|| "tell the container's maker".to_owned())?;
        // What is said from now on is said to whoever starts it.
        birth.channel = listener.accept().step(|| "wait to be started".to_owned())?;
    }
    let program = program.ok_or_else(|| missing("process"))?;
    run_hooks(spec, "startContainer", birth, ContainerState::Created)?;
    drop(terminal);
    birth.channel.keep_alone(first, ended.as_mut())?;
    match has_init {
        true => init::run(&program, &birth.channel, ended.as_ref()),
        false => program.exec(&birth.channel),
    }
}

/// Everything up to the point from which on the host's root is no longer needed for anything but mounting.
fn enter_namespaces(birth: &mut Birth<'_>, spec: &Spec) -> Result<Confinement, StartError> {
    let namespaces = Namespaces::of(spec)?;
    // Judged by which namespaces are the maker's own.
    let settings = spec.linux().as_ref().map(sysctl::settings).transpose()?.unwrap_or_default();
    if namespaces.is_new(LinuxNamespaceType::User) {
        // The maker maps the ids meanwhile.
        birth.channel.ask(&Word::Namespaces)?;
    }
    let door = std::mem::replace(&mut birth.door, Door::Tasks(Vec::new()));
    namespaces.enter(door)?;
    namespaces.set_clocks(spec)?;
    if asks_maker(spec) {
        birth.channel.ask(&Word::Namespaces)?;
    }
    if let Some(name) = spec.hostname() {
        nix::unistd::sethostname(name).step(|| format!("set the host name {name}"))?;
    }
    if let Some(name) = spec.domainname() {
        sys::set_domain_name(name).step(|| format!("set the domain name {name}"))?;
    }
    let linux = spec.linux().as_ref();
    sysctl::apply(&settings)?;
    let process = spec.process().as_ref();
    if let Some(score) = process.and_then(Process::oom_score_adj) {
        scheduling::set_oom_score_adj(score)?;
    }
    let filter = |profile| match birth.hears_filter {
        true => birth.channel.hear_filter(),
        false => seccomp::compile(profile),
    };
    Ok(Confinement {
        seccomp: linux.and_then(|linux| linux.seccomp().as_ref()).map(filter).transpose()?,
        personality: linux.and_then(|linux| linux.personality().clone()),
        dies_with_parent: birth.dies_with_maker,
    })
}

/// Whether the maker has hooks to run while the process waits in its namespaces.
pub fn asks_maker(spec: &Spec) -> bool {
    ["prestart", "createRuntime"].iter().any(|stage| !stage_of(spec, stage).is_empty())
}

/// Mounts everything, enters it, and returns the terminal that there may be.
fn make_root(birth: &mut Birth<'_>, spec: &Spec) -> Result<Option<OwnedFd>, StartError> {
    let mapped = birth.mapped.take().map_or_else(|| Sources::mapped(spec, birth.bundle), Ok)?;
    let sources = Sources::open(spec, birth.bundle, mapped)?;
    let namespaces = Namespaces::of(spec)?;
    let options = rootfs::Options {
        rootless_devices: namespaces.has(LinuxNamespaceType::User),
        cgroups: if shows_cgroups(spec) { birth.cgroup.hierarchies() } else { Vec::new() },
        has_cgroup_namespace: namespaces.has(LinuxNamespaceType::Cgroup),
        on_host: !namespaces.has(LinuxNamespaceType::Mount),
    };
    let way = match (options.on_host, birth.no_pivot) {
        (true, _) => Way::Chroot,
        (false, true) => Way::MoveOver,
        (false, false) => Way::Pivot,
    };
    let root = Root::make(birth.bundle, spec, sources, &options)?;
    run_hooks(spec, "createContainer", birth, ContainerState::Creating)?;
    let terminal = match spec.process() {
        Some(process) if process.terminal() == Some(true) => {
            let terminal = terminal::make(terminal::ptmx_of(&root)?, process, &birth.channel)?;
            terminal::bind_console(&root, &terminal)?;
            Some(terminal)
        }
        _ => None,
    };
    match &terminal {
        Some(terminal) => terminal::take(terminal).step(|| "take the terminal".to_owned())?,
        None => {
            // Or it would be in its maker's process group, which whoever is in it can signal across pid namespaces.
            nix::unistd::setsid().step(|| "begin a session".to_owned())?;
            let stdio = std::mem::replace(&mut birth.stdio, Stdio::Inherited);
            stdio.place().step(|| "connect standard input and output".to_owned())?;
        }
    }
    if let Some(process) = spec.process() {
        labels::take_on_exec(process)?;
    }
    root.enter(spec, way)?;
    if !birth.keep_keyring {
        sys::new_session_keyring().step(|| "make a session keyring".to_owned())?;
    }
    Ok(terminal)
}

/// Looking for the hierarchies takes time.
pub fn shows_cgroups(spec: &Spec) -> bool {
    let is_cgroup = |mount: &Mount| mount.typ().as_deref().is_some_and(|typ| typ.starts_with("cgroup"));
    spec.mounts().iter().flatten().any(is_cgroup)
}

fn run_hooks(spec: &Spec, stage: &str, birth: &Birth<'_>, status: ContainerState) -> Result<(), StartError> {
    let all = stage_of(spec, stage);
    if all.is_empty() {
        return Ok(());
    }
    // In the container's own pid namespace, which is what it knows of itself.
    let state = state(spec, birth.id, birth.bundle, status, std::process::id());
    hooks::run(all, stage, &state)
}

pub fn stage_of<'a>(spec: &'a Spec, stage: &str) -> &'a [Hook] {
    let Some(hooks) = spec.hooks() else { return &[] };
    let all = match stage {
        "prestart" => hooks.prestart(),
        "createRuntime" => hooks.create_runtime(),
        "createContainer" => hooks.create_container(),
        "startContainer" => hooks.start_container(),
        "poststart" => hooks.poststart(),
        "poststop" => hooks.poststop(),
        _ => &None,
    };
    all.as_deref().unwrap_or_default()
}

/// As the standard has it for `state` and for hooks.
pub fn state(spec: &Spec, id: &str, bundle: &Path, status: ContainerState, pid: u32) -> State {
    let mut state = State::default();
    state
        .set_version(spec.version().clone())
        .set_id(id.to_owned())
        .set_status(status)
        .set_pid(i32::try_from(pid).ok())
        .set_bundle(PathBuf::from(bundle))
        .set_annotations(spec.annotations().clone());
    state
}

fn missing(field: &str) -> StartError {
    StartError::impossible(format!("config.json, {field}"), "it is missing")
}

fn annotation<'a>(spec: &'a Spec, name: &str) -> Option<&'a String> {
    spec.annotations().as_ref().and_then(|annotations| annotations.get(name))
}

/// Does what [`ANNOTATION_CREATE`] says.
pub fn create_sources(spec: &Spec) -> Result<(), StartError> {
    let Some(sources) = annotation(spec, ANNOTATION_CREATE) else { return Ok(()) };
    for source in sources.lines().filter(|source| !Path::new(source).exists()) {
        fs::create_dir_all(source).step(|| format!("make the bind mount's source {source}"))?;
    }
    Ok(())
}

/// A new container's first process, forked with the namespaces it is cloned into.
///
/// # Safety
/// The calling process must have one thread only.
pub unsafe fn fork(flags: libc::c_int, door: &Door) -> Result<sys::Forked, StartError> {
    let directory = match door {
        Door::Directory(fd) => Some(fd.as_fd()),
        Door::Tasks(_) => None,
    };
    // SAFETY: promised by the caller.
    unsafe { sys::fork_into(flags, directory) }.step(|| "clone the container's first process".to_owned())
}
