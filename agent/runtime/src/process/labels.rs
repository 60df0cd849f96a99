//! AppArmor profile and SELinux label: what the next exec puts the process under.
//!
//! To be called by the process that will execute the program, or by the one that forks it, while its root is still the
//! host's: the image could offer anything as `/proc` ([`procfs`]). The kernel keeps the wish over fork, and takes it
//! back at the first exec; a hook that is run in between would use its copy of it for itself. The wish needs no
//! privilege but what the module's policy asks, so that it may come this early.

use std::{fs, io, path::Path};

use oci_spec::runtime::Process;

use super::procfs;
use crate::error::{StartError, Step};

const APPARMOR_ENABLED: &str = "/sys/module/apparmor/parameters/enabled";
/// The kernel makes this directory only where SELinux is enabled.
const SELINUX: &str = "/sys/fs/selinux";

/// What is asked for where the host has no such module is refused: the process would run without its confinement.
pub fn take_on_exec(process: &Process) -> Result<(), StartError> {
    if let Some(label) = asked(process.selinux_label()) {
        if !Path::new(SELINUX).exists() {
            return Err(absent("SELinux label", label, SELINUX));
        }
        procfs::write_own("attr/exec", label).step(|| format!("take on the SELinux label {label}"))?;
    }
    if let Some(profile) = asked(process.apparmor_profile()) {
        match fs::read_to_string(APPARMOR_ENABLED) {
            Ok(enabled) if enabled.starts_with('Y') => take_on_profile(profile)?,
            _ if profile == "unconfined" => {}
            _ => return Err(absent("AppArmor profile", profile, APPARMOR_ENABLED)),
        }
    }
    Ok(())
}

fn asked(label: &Option<String>) -> Option<&str> {
    label.as_deref().filter(|label| !label.is_empty())
}

fn absent(what: &str, label: &str, place: &str) -> StartError {
    let module = what.split(' ').next().unwrap_or(what);
    let reason = format!("{module} is not enabled on this host ({place}): take it out of the configuration");
    StartError::impossible(format!("running under the {what} {label}"), reason)
}

/// AppArmor has a file of its own since Linux 5.8; before, the one that all modules share.
fn take_on_profile(profile: &str) -> Result<(), StartError> {
    let wish = format!("exec {profile}");
    let what = || format!("take on the AppArmor profile {profile}");
    match procfs::write_own("attr/apparmor/exec", &wish) {
        // Also what a profile gives that is not loaded: then the second file says so again.
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        result => return result.step(what),
    }
    match procfs::write_own("attr/exec", &wish) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err(StartError::impossible(what(), "it is not loaded on this host: see apparmor_parser(8)"))
        }
        result => result.step(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::process::in_child::{failure, in_child};

    fn process(field: &str, label: &str) -> Process {
        let mut process = serde_json::json!({"user": {}, "cwd": "/"});
        process[field] = label.into();
        serde_json::from_value(process).unwrap()
    }

    #[test]
    fn nothing_is_asked_for_by_an_empty_label() {
        for field in ["apparmorProfile", "selinuxLabel"] {
            assert_eq!(in_child(|| failure(take_on_exec(&process(field, "")))), "");
        }
        assert_eq!(in_child(|| failure(take_on_exec(&process("apparmorProfile", "unconfined")))), "");
    }

    #[test]
    fn a_label_that_the_host_cannot_give_is_refused() {
        let apparmor = in_child(|| failure(take_on_exec(&process("apparmorProfile", "no such profile"))));
        assert!(apparmor.contains("AppArmor is not enabled") || apparmor.contains("it is not loaded"), "{apparmor}");
        let selinux = in_child(|| failure(take_on_exec(&process("selinuxLabel", "no such label"))));
        assert!(selinux.contains("SELinux is not enabled") || selinux.contains("take on the SELinux"), "{selinux}");
    }
}
