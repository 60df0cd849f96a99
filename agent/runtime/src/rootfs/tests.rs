//! Container roots made on the real kernel, each by a child of the test in its own mount namespace.

mod containers;
mod devices;
mod hostile;
mod mounting;

/// All that is understood of a config before anything is mounted.
pub(crate) fn understand(spec: &oci_spec::runtime::Spec) {
    use super::{dev::Devices, mounts, sources};
    for mount in sources::mounts(spec) {
        let mut options = sources::options(mount);
        let _ = (options.of_new_mount(), options.take_read_only(), sources::binds(mount, &options));
        let _ = (options.value("mode"), super::root::without_dots(mount.destination()));
    }
    let _ = (sources::root_mount(spec), sources::rootfs_propagation(spec).is_ok());
    let _ = (mounts::label(spec).is_ok(), Devices::of(spec, true).is_ok(), Devices::of(spec, false).is_ok());
}
