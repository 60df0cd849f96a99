//! A seccomp profile in Docker's format as runtime-spec's, for one container on one node. Pure.

use std::collections::HashSet;

use oci_spec::runtime::{Capability, LinuxSeccomp};
use roster_proto::{
    seccomp::{Condition, Profile, Syscalls},
    spec::rules,
};
use roster_runtime::error::StartError;
use serde_json::{Value, json};

/// What an entry of a profile may depend on.
#[derive(Clone, Copy, Debug)]
pub struct Platform {
    /// Of the kernel: 6.1.
    pub kernel: (u32, u32),
}

impl Platform {
    pub fn of_host() -> Self {
        let release = nix::sys::utsname::uname().map(|names| names.release().to_string_lossy().into_owned());
        Self { kernel: release.ok().as_deref().and_then(kernel_version).unwrap_or((0, 0)) }
    }
}

/// As Go has it, which Docker's profiles are written for.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

/// `6.1.0-13-amd64`.
fn kernel_version(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

pub(super) fn seccomp(
    text: &str,
    capabilities: &HashSet<Capability>,
    platform: &Platform,
) -> Result<LinuxSeccomp, StartError> {
    let refused = |why: String| StartError::impossible("using the seccomp profile", why);
    let profile = Profile::parse(text).map_err(refused)?;
    let mut calls = Vec::new();
    for entry in &profile.syscalls {
        if applies(entry, capabilities, platform).map_err(refused)? {
            calls.push(call(entry));
        }
    }
    // Only the native convention can be used under a filter, whatever others a profile lists.
    let mut document = json!({ "defaultAction": profile.default_action, "syscalls": calls });
    if let Some(errno) = profile.default_errno_ret {
        document["defaultErrnoRet"] = json!(errno);
    }
    if !profile.flags.is_empty() {
        document["flags"] = json!(profile.flags);
    }
    serde_json::from_value(document).map_err(|error| refused(error.to_string()))
}

fn call(entry: &Syscalls) -> Value {
    let mut names = entry.names.clone();
    names.extend(Some(entry.name.clone()).filter(|name| !name.is_empty()));
    let args: Vec<Value> = entry
        .args
        .iter()
        .map(|arg| json!({"index": arg.index, "value": arg.value, "valueTwo": arg.value_two, "op": arg.op}))
        .collect();
    let mut call = json!({ "names": names, "action": entry.action });
    if !args.is_empty() {
        call["args"] = json!(args);
    }
    if let Some(errno) = entry.errno_ret {
        call["errnoRet"] = json!(errno);
    }
    call
}

/// All that it must have, and nothing of what it must not.
fn applies(entry: &Syscalls, has: &HashSet<Capability>, platform: &Platform) -> Result<bool, String> {
    let capability = |name: &String| match rules::capability(name).ok().and_then(|name| name.parse::<Capability>().ok())
    {
        Some(capability) => Ok(has.contains(&capability)),
        None => Err(format!("it depends on a capability {name:?}, which there is not")),
    };
    let all = |names: &[String]| names.iter().try_fold(true, |all, name| Ok::<_, String>(all && capability(name)?));
    let any = |names: &[String]| names.iter().try_fold(false, |any, name| Ok::<_, String>(any || capability(name)?));
    let here = |condition: &Condition| condition.arches.iter().any(|arch| arch == architecture());
    let (with, without) = (&entry.includes, &entry.excludes);
    Ok((with.arches.is_empty() || here(with))
        && !here(without)
        && all(&with.caps)?
        && !any(&without.caps)?
        && new_enough(with, platform)?.unwrap_or(true)
        && !new_enough(without, platform)?.unwrap_or(false))
}

fn new_enough(condition: &Condition, platform: &Platform) -> Result<Option<bool>, String> {
    let Some(least) = condition.min_kernel.as_deref().filter(|least| !least.is_empty()) else { return Ok(None) };
    let least = kernel_version(least).ok_or_else(|| format!("{least:?} is not a version of the kernel"))?;
    Ok(Some(platform.kernel >= least))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(profile: &str, capabilities: &[Capability], kernel: (u32, u32)) -> Result<String, String> {
        let set = capabilities.iter().copied().collect();
        let profile = seccomp(profile, &set, &Platform { kernel }).map_err(|error| error.to_string())?;
        let calls = profile.syscalls().iter().flatten().flat_map(|call| call.names().clone());
        Ok(calls.collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn entries_apply_by_capability_architecture_and_kernel() {
        let entry = |name: &str, condition: &str| {
            format!(r#"{{"names": ["{name}"], "action": "SCMP_ACT_ALLOW", {condition}}}"#)
        };
        let here = architecture();
        let profile = format!(
            r#"{{"defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 1, "syscalls": [{}]}}"#,
            [
                entry("read", r#""args": null, "includes": {}, "excludes": {}"#),
                entry("mount", r#""includes": {"caps": ["CAP_SYS_ADMIN"]}"#),
                entry("clone", r#""excludes": {"caps": ["CAP_SYS_ADMIN"]}"#),
                entry("ptrace", r#""includes": {"minKernel": "4.8"}"#),
                entry("arch_prctl", &format!(r#""includes": {{"arches": ["{here}", "x32"]}}"#)),
                entry("s390_runtime_instr", r#""includes": {"arches": ["s390"]}"#),
            ]
            .join(",")
        );
        assert_eq!(names(&profile, &[], (6, 1)).as_deref(), Ok("read clone ptrace arch_prctl"));
        let admin = [Capability::SysAdmin];
        assert_eq!(names(&profile, &admin, (4, 7)).as_deref(), Ok("read mount arch_prctl"));
        let bad = profile.replace("CAP_SYS_ADMIN", "CAP_NONE");
        assert!(names(&bad, &[], (6, 1)).unwrap_err().contains("CAP_NONE"));
        let bad = profile.replace("SCMP_ACT_ALLOW", "ALLOW");
        assert!(names(&bad, &[], (6, 1)).is_err());
    }

    #[test]
    fn the_old_format_has_one_name_an_entry() {
        let profile = r#"{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"name": "chmod", "action": "SCMP_ACT_ERRNO",
            "args": [{"index": 0, "value": 1, "valueTwo": 2, "op": "SCMP_CMP_EQ"}]}]}"#;
        assert_eq!(names(profile, &[], (6, 1)).as_deref(), Ok("chmod"));
        assert_eq!(kernel_version("6.1.0-13-amd64"), Some((6, 1)));
    }
}
