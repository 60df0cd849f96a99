//! Reading a config.json, and what this runtime refuses of it before anything is made.
//!
//! `Spec` and `Process` are filled here field by field, and not by their own reading: that judges one field of `process`
//! by a regular expression, whose tables of Unicode were a third of the program and most of what is relocated each time
//! it starts. The id maps that oci-spec has at the top are in no version of the standard: they are ignored as any unknown
//! field.

use std::{
    collections::{HashMap, HashSet},
    path::PathBuf,
};

use oci_spec::runtime::{
    Box as Size, Capability, ExecCPUAffinity, Hooks, Linux, LinuxCapabilities, LinuxIOPriority, Mount, PosixRlimit,
    Process, Root, Scheduler, Solaris, Spec, User, VM, Windows, ZOS,
};
use serde::{
    Deserialize, Deserializer,
    de::{Error as _, IntoDeserializer},
};

use crate::{error::StartError, process::scheduling::cpu_mask};

/// Versions of the specification that are understood.
pub const OLDEST: &str = "1.0.0";
pub const NEWEST: &str = "1.2.0";

pub fn parse(json: &[u8]) -> serde_json::Result<Spec> {
    parse_warning(json, |_| {})
}

/// `warn` is told what is left out, by the standard: capabilities that nobody knows.
pub fn parse_warning(json: &[u8], warn: impl FnMut(&str)) -> serde_json::Result<Spec> {
    serde_json::from_slice::<Config>(json).map(|config| config.into_spec(warn))
}

pub fn parse_process(json: &[u8], warn: impl FnMut(&str)) -> serde_json::Result<Process> {
    serde_json::from_slice::<ProcessFields>(json).map(|fields| fields.into_process(warn))
}

/// Errors name the type that is asked for, not this one.
#[derive(Deserialize)]
#[serde(expecting = "struct Spec", rename_all = "camelCase")]
struct Config {
    #[serde(default, rename = "ociVersion")]
    version: String,
    root: Option<Root>,
    mounts: Option<Vec<Mount>>,
    process: Option<ProcessFields>,
    hostname: Option<String>,
    domainname: Option<String>,
    hooks: Option<Hooks>,
    annotations: Option<HashMap<String, String>>,
    linux: Option<Linux>,
    solaris: Option<Solaris>,
    windows: Option<Windows>,
    vm: Option<VM>,
    zos: Option<ZOS>,
}

#[derive(Deserialize)]
#[serde(expecting = "struct Process", rename_all = "camelCase")]
struct ProcessFields {
    terminal: Option<bool>,
    console_size: Option<Size>,
    user: User,
    args: Option<Vec<String>>,
    command_line: Option<String>,
    env: Option<Vec<String>>,
    cwd: PathBuf,
    capabilities: Option<Capabilities>,
    rlimits: Option<Vec<PosixRlimit>>,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    oom_score_adj: Option<i32>,
    selinux_label: Option<String>,
    io_priority: Option<LinuxIOPriority>,
    #[serde(default, deserialize_with = "scheduler")]
    scheduler: Option<Scheduler>,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<Affinity>,
}

#[derive(Deserialize)]
#[serde(expecting = "struct ExecCPUAffinity")]
struct Affinity {
    initial: Option<String>,
    #[serde(rename = "final")]
    after: Option<String>,
}

#[derive(Deserialize)]
#[serde(expecting = "struct LinuxCapabilities")]
struct Capabilities {
    bounding: Option<Vec<String>>,
    effective: Option<Vec<String>>,
    inheritable: Option<Vec<String>>,
    permitted: Option<Vec<String>>,
    ambient: Option<Vec<String>>,
}

impl Capabilities {
    fn known(self, mut warn: impl FnMut(&str)) -> LinuxCapabilities {
        let mut known = |set: &str, names: Option<Vec<String>>| {
            let one = |name: String| {
                let known =
                    Capability::deserialize(IntoDeserializer::<serde_json::Error>::into_deserializer(name.as_str()));
                if known.is_err() {
                    warn(&format!("left out of the {set} capabilities: {name:?}: there is no such one"));
                }
                known.ok()
            };
            names.map(|names| names.into_iter().filter_map(one).collect::<HashSet<_>>())
        };
        let mut sets = LinuxCapabilities::default();
        sets.set_bounding(known("bounding", self.bounding))
            .set_effective(known("effective", self.effective))
            .set_inheritable(known("inheritable", self.inheritable))
            .set_permitted(known("permitted", self.permitted))
            .set_ambient(known("ambient", self.ambient));
        sets
    }
}

/// The crate that reads the rest has other names for two of the flags than the standard.
fn scheduler<'de, D: Deserializer<'de>>(json: D) -> Result<Option<Scheduler>, D::Error> {
    let Some(mut json) = Option::<serde_json::Value>::deserialize(json)? else { return Ok(None) };
    for flag in json.get_mut("flags").and_then(serde_json::Value::as_array_mut).into_iter().flatten() {
        match flag.as_str() {
            Some("SCHED_FLAG_RESET_ON_FORK") => *flag = "SCHED_RESET_ON_FORK".into(),
            Some("SCHED_FLAG_DL_OVERRUN") => *flag = "SCHED_FLAG_D_L_OVERRUN".into(),
            _ => {}
        }
    }
    Scheduler::deserialize(json).map(Some).map_err(D::Error::custom)
}

impl Config {
    fn into_spec(self, warn: impl FnMut(&str)) -> Spec {
        let mut spec = Spec::default();
        spec.set_version(self.version)
            .set_root(self.root)
            .set_mounts(self.mounts)
            .set_process(self.process.map(|fields| fields.into_process(warn)))
            .set_hostname(self.hostname)
            .set_domainname(self.domainname)
            .set_hooks(self.hooks)
            .set_annotations(self.annotations)
            .set_linux(self.linux)
            .set_solaris(self.solaris)
            .set_windows(self.windows)
            .set_vm(self.vm)
            .set_zos(self.zos);
        spec
    }
}

impl ProcessFields {
    fn into_process(self, warn: impl FnMut(&str)) -> Process {
        let mut process = Process::default();
        process
            .set_terminal(self.terminal)
            .set_console_size(self.console_size)
            .set_user(self.user)
            .set_args(self.args)
            .set_command_line(self.command_line)
            .set_env(self.env)
            .set_cwd(self.cwd)
            .set_capabilities(self.capabilities.map(|sets| sets.known(warn)))
            .set_rlimits(self.rlimits)
            .set_no_new_privileges(self.no_new_privileges)
            .set_apparmor_profile(self.apparmor_profile)
            .set_oom_score_adj(self.oom_score_adj)
            .set_selinux_label(self.selinux_label)
            .set_io_priority(self.io_priority)
            .set_scheduler(self.scheduler)
            .set_exec_cpu_affinity(self.exec_cpu_affinity.map(ExecCPUAffinity::from));
        process
    }
}

impl From<Affinity> for ExecCPUAffinity {
    fn from(affinity: Affinity) -> Self {
        let mut all = Self::default();
        // By the standard an empty list is as good as none.
        let some = |list: Option<String>| list.filter(|cpus| !cpus.is_empty());
        all.set_initial(some(affinity.initial)).set_cpu_affinity_final(some(affinity.after));
        all
    }
}

/// What is refused lest it be ignored without a word. Each part checks the rest of its own.
pub fn check(spec: &Spec) -> Result<(), StartError> {
    let refuse = |what: &str, reason: &str| Err(StartError::impossible(format!("config.json, {what}"), reason));
    let major = spec.version().split('.').next().unwrap_or_default();
    if major != "1" {
        let reason = format!("{:?} is not understood: 1.x is, in full from {OLDEST} to {NEWEST}", spec.version());
        return refuse("ociVersion", &reason);
    }
    let Some(linux) = spec.linux() else { return refuse("linux", "it is missing: no namespaces are named") };
    if linux.intel_rdt().is_some() {
        return refuse("linux.intelRdt", "not supported: leave it out");
    }
    if linux.memory_policy().is_some() {
        return refuse("linux.memoryPolicy", "not supported: leave it out");
    }
    if linux.net_devices().as_ref().is_some_and(|devices| !devices.is_empty()) {
        return refuse("linux.netDevices", "not supported: leave it out");
    }
    if spec.windows().is_some() || spec.solaris().is_some() || spec.vm().is_some() {
        return refuse("windows, solaris, vm", "this runtime makes Linux containers");
    }
    spec.process().as_ref().map_or(Ok(()), check_process)
}

pub fn check_process(process: &Process) -> Result<(), StartError> {
    let refuse = |field: &str, reason: String| Err(StartError::impossible(format!("process.{field}"), reason));
    let cwd = process.cwd();
    if !cwd.is_absolute() {
        return refuse("cwd", format!("{:?} is no absolute path: begin it with /", cwd.display().to_string()));
    }
    let has_name = |variable: &&String| variable.split_once('=').is_some_and(|(name, _)| !name.is_empty());
    if let Some(variable) = process.env().iter().flatten().find(|variable| !has_name(variable)) {
        return refuse("env", format!("{variable:?} is no variable: write NAME=VALUE"));
    }
    let Some(affinity) = process.exec_cpu_affinity() else { return Ok(()) };
    let lists = [affinity.initial(), affinity.cpu_affinity_final()];
    lists.into_iter().flatten().try_for_each(|cpus| cpu_mask(cpus).map(drop))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Every field of the two that are read here, and one more.
    fn whole() -> Value {
        json!({
            "ociVersion": "1.2.0",
            "root": { "path": "rootfs", "readonly": true },
            "mounts": [{ "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] }],
            "process": {
                "terminal": true,
                "consoleSize": { "height": 24, "width": 80 },
                "user": { "uid": 1, "gid": 2, "umask": 18, "additionalGids": [3] },
                "args": ["sh", "-c", "true"],
                "commandLine": "sh",
                "env": ["A=b"],
                "cwd": "/tmp",
                "capabilities": { "bounding": ["CAP_CHOWN"], "ambient": [] },
                "rlimits": [{ "type": "RLIMIT_NOFILE", "hard": 2, "soft": 1 }],
                "noNewPrivileges": true,
                "apparmorProfile": "one",
                "oomScoreAdj": -5,
                "selinuxLabel": "two",
                "ioPriority": { "class": "IOPRIO_CLASS_IDLE", "priority": 3 },
                "scheduler": { "policy": "SCHED_BATCH", "nice": 4 },
                "execCPUAffinity": { "initial": "0-1,3", "final": "2" }
            },
            "hostname": "h",
            "domainname": "d",
            "hooks": { "poststop": [{ "path": "/bin/true", "timeout": 6 }] },
            "annotations": { "key": "value" },
            "linux": { "namespaces": [{ "type": "pid", "path": "/x" }], "maskedPaths": ["/y"] },
            "solaris": { "milestone": "m" },
            "windows": { "layerFolders": ["f"] },
            "vm": { "kernel": { "path": "/k" } },
            "zos": { "namespaces": [] },
            "somethingNew": 1
        })
    }

    fn both(config: &Value) {
        let text = config.to_string();
        let (ours, theirs) = (parse(text.as_bytes()), serde_json::from_str::<Spec>(&text));
        match (ours, theirs) {
            (Ok(ours), Ok(theirs)) => assert_eq!(ours, theirs),
            (Err(ours), Err(theirs)) => assert_eq!(ours.to_string(), theirs.to_string()),
            (ours, theirs) => panic!("{text}: {ours:?}, but by their own reading {theirs:?}"),
        }
    }

    #[test]
    fn is_read_as_its_types_read_themselves() {
        let whole = whole();
        both(&whole);
        both(&json!({}));
        for field in whole.as_object().expect("an object").keys() {
            for other in [None, Some(Value::Null), Some(json!("text")), Some(json!({}))] {
                let mut changed = whole.clone();
                match other {
                    Some(other) => changed[field] = other,
                    None => drop(changed.as_object_mut().expect("an object").remove(field)),
                }
                both(&changed);
            }
        }
        for field in whole["process"].as_object().expect("an object").keys() {
            for other in [None, Some(Value::Null), Some(json!(7)), Some(json!({}))] {
                let mut changed = whole.clone();
                match other {
                    Some(other) => changed["process"][field] = other,
                    None => drop(changed["process"].as_object_mut().expect("an object").remove(field)),
                }
                both(&changed);
            }
        }
    }

    #[test]
    fn a_list_of_cpus_is_refused_before_anything_is_made() {
        let mut config = whole();
        config["process"]["execCPUAffinity"]["final"] = json!("first");
        for foreign in ["solaris", "windows", "vm"] {
            config.as_object_mut().expect("an object").remove(foreign);
        }
        let spec = parse(config.to_string().as_bytes()).expect("read");
        let refused = check(&spec).expect_err("refused").to_string();
        assert!(refused.contains("first"), "{refused}");
    }
}
