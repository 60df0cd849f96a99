//! A root file system of layers: the first mount of the spec, of type `overlay` and on `/`.
//!
//! It is mounted in the container's own mount namespace, so no mount of it is ever seen, or left behind, on the host.
//! Layers are passed to overlayfs as `/proc/self/fd/N`, which keeps a hundred of them within mount(2)'s one page of
//! options and needs no escaping. There is one `lowerdir=` option for each layer, uppermost first.

use std::{
    fs::File,
    io,
    os::fd::{AsRawFd, OwnedFd},
    path::Path,
};

use nix::mount::MsFlags;
use oci_spec::runtime::Mount;

use super::{
    options::MountOptions,
    sources::{self, options, root_directory},
};
use crate::error::{StartError, Step};

/// Mounts the layers on `target`, a directory of the host.
pub(super) fn mount(mount: &Mount, target: &Path, label: Option<&str>) -> Result<OwnedFd, StartError> {
    if mount.typ().as_deref() != Some("overlay") {
        return Err(StartError::impossible("the mount on /", "only an overlay can be the container's root"));
    }
    let options = options(mount);
    root_directory(target)?;
    let overlay = Overlay::open(&options).step(|| "open the image's layers".to_owned())?;
    let data = overlay.data(&options, label);
    nix::mount::mount(Some("overlay"), target, Some("overlay"), MsFlags::MS_NODEV, Some(data.as_str()))
        .step(|| "mount the image's layers".to_owned())?;
    let root = root_directory(target)?;
    sources::set_attributes(&root, &options).step(|| "set the options of the mount on /".to_owned())?;
    Ok(root)
}

/// The open layers of an overlay.
struct Overlay {
    lower: Vec<File>,
    upper: File,
    work: File,
}

const LAYERS: [&str; 3] = ["lowerdir=", "upperdir=", "workdir="];

impl Overlay {
    fn open(options: &MountOptions<'_>) -> io::Result<Self> {
        let all = |key: &str| {
            options
                .words
                .iter()
                .filter_map(|option| option.strip_prefix(key))
                .map(|path| File::open(path).map_err(|error| io::Error::other(format!("{path}: {error}"))))
                .collect::<io::Result<Vec<_>>>()
        };
        let one = |key: &str| all(key)?.pop().ok_or_else(|| io::Error::other(format!("the overlay has no {key}")));
        let [lower, upper, work] = LAYERS;
        Ok(Self { lower: all(lower)?, upper: one(upper)?, work: one(work)? })
    }

    /// `volatile`: nothing of a container is meant to survive the host, so unmounting need not flush the disk.
    fn data(&self, options: &MountOptions<'_>, label: Option<&str>) -> String {
        let path = |file: &File| format!("/proc/self/fd/{}", file.as_raw_fd());
        let lower: Vec<_> = self.lower.iter().map(path).collect();
        let mut data = format!(
            "volatile,lowerdir={},upperdir={},workdir={}",
            lower.join(":"),
            path(&self.upper),
            path(&self.work)
        );
        for word in options.words.iter().filter(|word| LAYERS.iter().all(|layer| !word.starts_with(layer))) {
            data.push(',');
            data.push_str(word);
        }
        if let Some(label) = label {
            // Quoted for its commas.
            data.push_str(&format!(",context=\"{label}\""));
        }
        data
    }
}
