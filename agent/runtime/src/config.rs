//! What this runtime refuses of a config.json before anything is made.

use oci_spec::runtime::Spec;

use crate::error::StartError;

/// Versions of the specification that are understood.
pub const OLDEST: &str = "1.0.0";
pub const NEWEST: &str = "1.2.0";

/// What is refused lest it be ignored without a word. Each part checks the rest of its own.
pub fn check(spec: &Spec) -> Result<(), StartError> {
    let refuse = |what: &str, reason: &str| Err(StartError::impossible(format!("config.json, {what}"), reason));
    let major = spec.version().split('.').next().unwrap_or_default();
    if major != "1" {
        let reason = format!("{:?} is not understood: versions {OLDEST} to {NEWEST} are", spec.version());
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
    Ok(())
}
