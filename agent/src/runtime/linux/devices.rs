//! The node's devices that a spec names by their paths: what they are, asked of the kernel once, before the bundle is
//! written.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{FileTypeExt, MetadataExt},
    path::{Path, PathBuf},
};

use nix::libc;
use roster_proto::spec::TaskSpec;
use roster_runtime::error::{StartError, Step};

/// Nodes of one container. A large host has some hundreds in all.
const MOST: usize = 4096;
/// Levels of a directory of devices; `/dev/bus/usb/001` is one of the deepest.
const DEEPEST: usize = 8;
/// Of the host's `/dev`, what each container has of its own, or must not have.
const NOT_HANDED_ON: [&str; 9] = ["pts", "ptmx", "shm", "fd", "mqueue", "console", ".lxc", ".lxd-mounts", ".udev"];
const ALL_ACCESS: &str = "rwm";

/// What a task needs of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostDevices {
    pub nodes: Vec<HostDevice>,
    /// Numbers of those that `blkio_config` names.
    pub block: BTreeMap<PathBuf, (i64, i64)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostDevice {
    /// In the container.
    pub target: PathBuf,
    pub is_block: bool,
    pub major: i64,
    pub minor: i64,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: String,
}

impl HostDevices {
    pub fn of(task: &TaskSpec) -> Result<Self, StartError> {
        let mut devices = Self::default();
        if task.rights.privileged {
            devices.add_below(Path::new("/dev"), Path::new("/dev"), ALL_ACCESS, DEEPEST)?;
        }
        for device in &task.rights.devices {
            devices.add(&device.source, &device.target, &device.access)?;
        }
        let block = &task.resources.controls.block;
        let rates = [&block.read_bps, &block.write_bps, &block.read_iops, &block.write_iops];
        for path in block.device_weights.keys().chain(rates.iter().flat_map(|map| map.keys())) {
            let what = || format!("limiting the device {}", path.display());
            let node = look_at(path).map_err(|error| StartError::impossible(what(), error.to_string()))?;
            let node = node.filter(|node| node.is_block);
            let node = node.ok_or_else(|| StartError::impossible(what(), "it is no block device of this node"))?;
            devices.block.insert(path.clone(), (node.major, node.minor));
        }
        Ok(devices)
    }

    /// A device, or a directory of them.
    fn add(&mut self, source: &Path, target: &Path, access: &str) -> Result<(), StartError> {
        let what = || format!("giving the container the device {}", source.display());
        let unfit = |reason: String| StartError::impossible(what(), reason);
        match look_at(source).map_err(|error| unfit(format!("this node has none there: {error}")))? {
            Some(node) => self.push(HostDevice { target: target.to_owned(), access: access.to_owned(), ..node }),
            None if source.is_dir() => {
                let before = self.nodes.len();
                self.add_below(source, target, access, DEEPEST)?;
                if self.nodes.len() == before {
                    return Err(unfit("the directory has no devices in it".to_owned()));
                }
                Ok(())
            }
            None => Err(unfit("it is no device".to_owned())),
        }
    }

    /// Links in it are left out: what they lead to is there too, or is not meant.
    fn add_below(&mut self, source: &Path, target: &Path, access: &str, levels: usize) -> Result<(), StartError> {
        let step = || format!("list the devices in {}", source.display());
        let mut entries = fs::read_dir(source).step(step)?.collect::<io::Result<Vec<_>>>().step(step)?;
        entries.sort_unstable_by_key(fs::DirEntry::file_name);
        for entry in entries {
            let name = entry.file_name();
            if NOT_HANDED_ON.iter().any(|not| name == *not) {
                continue;
            }
            let kind = entry.file_type().step(step)?;
            if kind.is_dir() && levels > 0 {
                self.add_below(&entry.path(), &target.join(&name), access, levels - 1)?;
            } else if kind.is_block_device() || kind.is_char_device() {
                // Gone meanwhile: devices come and go.
                if let Ok(Some(node)) = look_at(&entry.path()) {
                    self.push(HostDevice { target: target.join(&name), access: access.to_owned(), ..node })?;
                }
            }
        }
        Ok(())
    }

    fn push(&mut self, device: HostDevice) -> Result<(), StartError> {
        // A later one wins, as an explicit one does over those of a privileged container.
        self.nodes.retain(|other| other.target != device.target);
        if self.nodes.len() >= MOST {
            return Err(StartError::impossible("giving the container devices", format!("there are more than {MOST}")));
        }
        self.nodes.push(device);
        Ok(())
    }
}

/// What is at a path, links followed; `None`: no device.
fn look_at(path: &Path) -> io::Result<Option<HostDevice>> {
    let found = fs::metadata(path)?;
    let is_block = found.file_type().is_block_device();
    if !is_block && !found.file_type().is_char_device() {
        return Ok(None);
    }
    Ok(Some(HostDevice {
        target: PathBuf::new(),
        is_block,
        major: i64::from(libc::major(found.rdev())),
        minor: i64::from(libc::minor(found.rdev())),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        access: String::new(),
    }))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use nix::sys::stat::{Mode, SFlag, makedev, mknod};
    use roster_proto::spec::Device;

    use super::*;

    fn task(devices: &[(&Path, &str)]) -> TaskSpec {
        let mut task = TaskSpec::of_image("i");
        let device = |(source, target): &(&Path, &str)| Device {
            source: source.to_path_buf(),
            target: (*target).into(),
            access: "r".to_owned(),
        };
        task.rights.devices = devices.iter().map(device).collect();
        task
    }

    #[test]
    fn devices_links_to_them_and_directories_of_them_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        fs::create_dir(path("bus")).unwrap();
        let make = |name: &str, minor| {
            mknod(&path(name), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), makedev(1, minor)).unwrap();
        };
        make("bus/null", 3);
        make("bus/zero", 5);
        symlink("/", path("bus/out")).unwrap();
        symlink(path("bus/zero"), path("link")).unwrap();
        let devices = HostDevices::of(&task(&[(&path("bus"), "/dev/bus"), (&path("link"), "/dev/z")])).unwrap();
        let seen: Vec<_> =
            devices.nodes.iter().map(|node| (node.target.to_str().unwrap(), node.major, node.minor)).collect();
        assert_eq!(seen, [("/dev/bus/null", 1, 3), ("/dev/bus/zero", 1, 5), ("/dev/z", 1, 5)]);
        assert_eq!((devices.nodes[0].mode, devices.nodes[0].access.as_str()), (0o600, "r"));
    }

    #[test]
    fn what_is_no_device_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = |path: &Path| HostDevices::of(&task(&[(path, "/dev/x")])).unwrap_err().to_string();
        assert!(error(dir.path()).contains("has no devices in it"));
        assert!(error(&dir.path().join("none")).contains("this node has none there"));
        assert!(error(Path::new("/proc/self/status")).contains("it is no device"));
        let mut task = TaskSpec::of_image("i");
        task.resources.controls.block.read_bps.insert("/dev/null".into(), 1);
        assert!(HostDevices::of(&task).unwrap_err().to_string().contains("no block device"));
    }

    #[test]
    fn a_privileged_container_has_the_hosts_devices_but_not_its_terminals() {
        let mut task = TaskSpec::of_image("i");
        task.rights.privileged = true;
        let devices = HostDevices::of(&task).unwrap();
        assert!(devices.nodes.iter().any(|node| node.target == Path::new("/dev/null")));
        assert!(!devices.nodes.iter().any(|node| node.target.starts_with("/dev/pts")));
    }
}
