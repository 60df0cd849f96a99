//! Containers made by another OCI runtime's program, for services that ask for one: gVisor, crun, runc.
//!
//! The program gets a bundle that holds to the standard (see [`standard`]) and a place of its own for its state, below
//! the task's bundle. Whatever it can do beyond the standard's five verbs and `exec` is not used.

use std::{
    fmt,
    io::{self, Read},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    str::FromStr,
    time::Duration,
};

use oci_spec::runtime::{LinuxDeviceCgroupBuilder, Mount, RootBuilder, Spec};
use roster_runtime::{
    container::{ANNOTATION_CREATE, ANNOTATION_INIT},
    error::{StartError, Step},
    process::user::Ids,
    sys,
};
use serde::{Deserialize, Serialize};

use super::record::BundleDir;

/// What a program says of a failure: its beginning is enough.
const MOST_SAID: usize = 4096;
pub(super) const PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// How one is called.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ForeignRuntime {
    pub program: PathBuf,
    /// Before the verb.
    pub args: Vec<String>,
}

impl FromStr for ForeignRuntime {
    type Err = String;

    /// `PROGRAM [ARGUMENT]...`
    fn from_str(text: &str) -> Result<Self, String> {
        let mut words = text.split_whitespace().map(str::to_owned);
        let program = words.next().filter(|program| program.starts_with('/'));
        let program = program.ok_or("write NAME=PROGRAM with the program's absolute path")?.into();
        Ok(Self { program, args: words.collect() })
    }
}

impl fmt::Display for ForeignRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.program.display())
    }
}

/// The places of one container that such a program makes.
#[derive(Clone, Debug)]
pub(super) struct Places {
    /// Its bundle, as the standard has it.
    pub(super) bundle: PathBuf,
    state: PathBuf,
    log: PathBuf,
    pub(super) pid_file: PathBuf,
    pub(super) console: PathBuf,
    id: String,
}

impl Places {
    pub(super) fn of(bundle: &BundleDir) -> Self {
        let dir = bundle.file("oci");
        Self {
            state: dir.join("state"),
            log: dir.join("log.json"),
            pid_file: dir.join("pid"),
            console: dir.join("console"),
            bundle: dir,
            id: bundle.id().to_owned(),
        }
    }

    /// Whether the program still has something of the container's.
    pub(super) fn has_state(&self) -> bool {
        self.state.join(&self.id).exists()
    }
}

impl ForeignRuntime {
    /// `VERB [OPTION]... ID [REST]...`, with nothing as standard streams.
    pub(super) fn command(&self, places: &Places, verb: &str, options: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(&self.args).arg("--root").arg(&places.state).arg("--log").arg(&places.log);
        command.args(["--log-format", "json", verb]).args(options).arg(&places.id);
        command.env_clear().env("PATH", PATH).current_dir("/");
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// Runs a verb to its end.
    pub(super) fn call(&self, places: &Places, verb: &str, options: &[&str], rest: &[&str]) -> Result<(), StartError> {
        let mut command = self.command(places, verb, options);
        self.finish(places, verb, command.args(rest), None)
    }

    /// Runs a command of [`Self::command`] to its end; what it logged is its error, or what it wrote to `stderr`, whose
    /// other end this is: one that does not understand its arguments knows of no log.
    pub(super) fn finish(
        &self,
        places: &Places,
        verb: &str,
        command: &mut Command,
        stderr: Option<&OwnedFd>,
    ) -> Result<(), StartError> {
        let step = || format!("{verb} the container by {self}");
        // Only what this call says counts.
        match std::fs::remove_file(&places.log) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).step(step),
            _ => {}
        }
        let mut child = command.spawn().step(step)?;
        let status = child.wait().step(step)?;
        if status.success() {
            return Ok(());
        }
        let words = said(&places.log).or_else(|| stderr.and_then(written));
        Err(StartError::Step { step: step(), error: words.unwrap_or_else(|| status.to_string()) })
    }
}

/// What is in the pipe now: something that the program left may hold it open.
fn written(pipe: &OwnedFd) -> Option<String> {
    let mut text = vec![0; MOST_SAID];
    let length = match sys::wait_readable(pipe, Duration::ZERO) {
        Ok(true) => nix::unistd::read(pipe, &mut text).ok()?,
        _ => return None,
    };
    let text = String::from_utf8_lossy(&text[..length]).trim().to_owned();
    (!text.is_empty()).then_some(text)
}

/// The last message in a log of the form that runc began.
fn said(log: &Path) -> Option<String> {
    let mut text = Vec::new();
    std::fs::File::open(log).ok()?.take(MOST_SAID as u64).read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text).into_owned();
    let message = |line: &str| Some(serde_json::from_str::<serde_json::Value>(line).ok()?["msg"].as_str()?.to_owned());
    let last = text.lines().rev().find(|line| !line.trim().is_empty())?;
    Some(message(last).unwrap_or_else(|| last.to_owned()))
}

/// The bundle without the liberties that Roster's own takes: its root is mounted already at `rootfs`, and its user are
/// numbers.
pub(super) fn standard(mut spec: Spec, rootfs: &Path, ids: &Ids, home: &str) -> Result<Spec, StartError> {
    let unfit = |error: oci_spec::OciSpecError| StartError::Step {
        step: "write the bundle".to_owned(),
        error: error.to_string(),
    };
    if spec.annotations().as_ref().is_some_and(|annotations| annotations.contains_key(ANNOTATION_INIT)) {
        let reason = "the small init is Roster's own runtime's: remove `init`, or `runtime`";
        return Err(StartError::impossible("running an init under another runtime", reason));
    }
    if let Some(annotations) = spec.annotations_mut() {
        annotations.remove(ANNOTATION_CREATE);
    }
    let readonly = spec.root().as_ref().and_then(|root| root.readonly()).unwrap_or(false);
    spec.set_root(Some(RootBuilder::default().path(rootfs).readonly(readonly).build().map_err(unfit)?));
    let mounts = spec.mounts().iter().flatten().filter(|mount| mount.destination() != Path::new("/"));
    let mounts = mounts.cloned().map(plain).collect();
    spec.set_mounts(Some(mounts));
    deny_devices(&mut spec).map_err(unfit)?;
    if let Some(process) = spec.process_mut() {
        let mut user = process.user().clone();
        user.set_username(None);
        user.set_uid(ids.uid);
        user.set_gid(ids.gid);
        user.set_additional_gids(Some(ids.groups.clone()).filter(|groups| !groups.is_empty()));
        process.set_user(user);
        let mut env = process.env().clone().unwrap_or_default();
        if !env.iter().any(|variable| variable.starts_with("HOME=")) {
            env.push(format!("HOME={home}"));
        }
        process.set_env(Some(env));
    }
    Ok(spec)
}

/// Words for whole trees are young, and not every runtime has them.
fn plain(mut mount: Mount) -> Mount {
    let older = |word: String| match word.as_str() {
        "rnodev" => "nodev".to_owned(),
        "rro" => "ro".to_owned(),
        _ => word,
    };
    let is_dev = mount.destination() == Path::new("/dev");
    let options = mount.options().clone().unwrap_or_default().into_iter();
    mount.set_options(Some(options.map(older).filter(|word| !(is_dev && word == "nodev")).collect()));
    mount
}

/// Others make the nodes of `/dev`, which must not be `nodev` then: a control group keeps away what is not listed.
fn deny_devices(spec: &mut Spec) -> Result<(), oci_spec::OciSpecError> {
    let Some(linux) = spec.linux_mut() else { return Ok(()) };
    let mut resources = linux.resources().clone().unwrap_or_default();
    if resources.devices().as_ref().is_none_or(Vec::is_empty) {
        let all = LinuxDeviceCgroupBuilder::default().allow(false).access("rwm").build()?;
        resources.set_devices(Some(vec![all]));
    }
    linux.set_resources(Some(resources));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_comes_with_its_arguments() {
        let runtime: ForeignRuntime = "/usr/bin/crun --cgroup-manager disabled".parse().unwrap();
        assert_eq!(runtime.args, ["--cgroup-manager", "disabled"]);
        assert!("crun".parse::<ForeignRuntime>().is_err() && "".parse::<ForeignRuntime>().is_err());
    }

    #[test]
    fn the_standards_bundle_has_no_liberties() {
        let spec: Spec = serde_json::from_value(serde_json::json!({
            "ociVersion": "1.0.2",
            "root": {"path": "rootfs", "readonly": true},
            "process": {"user": {"uid": 0, "gid": 0, "username": "root:,5"}, "cwd": "/", "args": ["x"]},
            "mounts": [
                {"destination": "/", "type": "overlay", "options": ["lowerdir=/l"]},
                {"destination": "/dev", "type": "tmpfs", "options": ["nosuid", "nodev"]},
                {"destination": "/data", "type": "bind", "source": "/d", "options": ["rbind", "rnodev", "rro"]},
            ],
            "linux": {},
            "annotations": {ANNOTATION_CREATE: "/d"},
        }))
        .unwrap();
        let user = serde_json::from_value(serde_json::json!({"uid": 0, "gid": 7, "additionalGids": [5]})).unwrap();
        let ids = Ids::of(&user).unwrap();
        let plain = serde_json::to_value(standard(spec, Path::new("/r"), &ids, "/home/x").unwrap()).unwrap();
        assert_eq!(plain["root"], serde_json::json!({"path": "/r", "readonly": true}));
        assert_eq!(plain["mounts"].as_array().unwrap().len(), 2);
        assert_eq!(plain["mounts"][0]["options"], serde_json::json!(["nosuid"]));
        assert_eq!(plain["mounts"][1]["options"], serde_json::json!(["rbind", "nodev", "ro"]));
        assert_eq!(plain["linux"]["resources"]["devices"][0]["allow"], false);
        assert_eq!(plain["process"]["user"], serde_json::json!({"uid": 0, "gid": 7, "additionalGids": [5]}));
        assert_eq!(plain["process"]["env"], serde_json::json!(["HOME=/home/x"]));
        assert_eq!(plain["annotations"], serde_json::json!({}));
    }
}
