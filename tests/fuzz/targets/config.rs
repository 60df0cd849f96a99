//! A config.json, through all of the runtime that judges it without making anything.

#![no_main]

use libfuzzer_sys::fuzz_target;
use oci_spec::runtime::Spec;
use roster_runtime::{
    cgroup::{Version, device_program, devices, resources},
    config,
    error::StartError,
    namespaces::{Namespaces, id_map},
    process::{capabilities, rlimits, user::Ids},
    seccomp, sysctl,
};

fuzz_target!(|text: &[u8]| {
    let Ok(spec) = config::parse(text) else { return };
    for judged in [config::check(&spec), namespaces(&spec), process(&spec), linux(&spec)] {
        if let Err(error) = judged {
            assert!(!error.to_string().is_empty());
        }
    }
    // As it is kept beside the container, and read by every later command.
    let kept = serde_json::to_vec(&spec).expect("written");
    let again = config::parse(&kept).expect("read again");
    assert_eq!(serde_json::to_value(&again).expect("written"), serde_json::to_value(&spec).expect("written"));
});

fn namespaces(spec: &Spec) -> Result<(), StartError> {
    Namespaces::of(spec)?;
    let Some(linux) = spec.linux() else { return Ok(()) };
    id_map(linux.uid_mappings().iter().flatten());
    sysctl::settings(linux).map(drop)
}

fn process(spec: &Spec) -> Result<(), StartError> {
    let Some(process) = spec.process() else { return Ok(()) };
    let sets = capabilities::Sets::wanted(process.capabilities().as_ref());
    capabilities::left_out(process.capabilities().as_ref(), sets);
    rlimits::check(process.rlimits().as_deref().unwrap_or_default())?;
    Ids::of(process.user()).map(drop)
}

fn linux(spec: &Spec) -> Result<(), StartError> {
    let Some(linux) = spec.linux() else { return Ok(()) };
    if let Some(profile) = linux.seccomp() {
        seccomp::compile(profile)?;
    }
    let Some(resources) = linux.resources() else { return Ok(()) };
    for version in [Version::V1, Version::V2] {
        resources::writes(resources, version)?;
    }
    let rules = devices::rules(resources.devices().as_deref().unwrap_or_default())?;
    assert!(!device_program::program(&rules).is_empty());
    devices::v1_writes(&rules).map(drop)
}
