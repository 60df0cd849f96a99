//! The few files that every container gets: `/etc/hosts`, `/etc/hostname`, `/etc/resolv.conf`, and the layer below
//! all images that has a place to mount each of them.

use std::{
    fs::{self, Permissions},
    io::{self, Write},
    os::unix::fs::PermissionsExt,
    path::Path,
};

use super::bundle::{self, Network};

/// Where systemd-resolved keeps the real name servers behind its loopback one.
const RESOLVED_UPSTREAM: &str = "/run/systemd/resolve/resolv.conf";

/// Set whatever the agent's umask is: the container's users are not the agent's.
const READABLE: u32 = 0o644;
pub(super) const ENTERABLE: u32 = 0o755;

/// Makes the base layer; it is empty but for mount points, so an image's own files always show.
pub(super) fn make_base_layer(dir: &Path) -> io::Result<()> {
    for name in ["dev", "etc", "proc", "sys"] {
        fs::create_dir_all(dir.join(name))?;
        fs::set_permissions(dir.join(name), Permissions::from_mode(ENTERABLE))?;
    }
    for name in ["etc/hosts", "etc/hostname", "etc/resolv.conf"] {
        let file = fs::OpenOptions::new().create(true).append(true).open(dir.join(name))?;
        file.set_permissions(Permissions::from_mode(READABLE))?;
    }
    Ok(())
}

#[derive(Debug)]
pub(super) struct Files {
    hosts: String,
    hostname: String,
    resolv_conf: String,
}

impl Files {
    pub(super) fn of_host(hostname: &str, network: &Network<'_>) -> io::Result<Self> {
        let of_host = or_empty("/etc/resolv.conf")?;
        let (hosts, resolv_conf) = match network {
            Network::Host => (or_empty("/etc/hosts")?, of_host),
            Network::None | Network::Path { .. } => {
                let mut resolv_conf = bundle::resolv_conf(&of_host);
                if !resolv_conf.contains("nameserver") {
                    let upstream = bundle::resolv_conf(&or_empty(RESOLVED_UPSTREAM)?);
                    resolv_conf = if upstream.is_empty() { resolv_conf } else { upstream };
                }
                (bundle::hosts(hostname, network.address()), resolv_conf)
            }
        };
        Ok(Self { hosts, hostname: format!("{hostname}\n"), resolv_conf })
    }

    /// Into `dir`, which must be on a file system that a container may fill: its root may write to these.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let files = [("hosts", &self.hosts), ("hostname", &self.hostname), ("resolv.conf", &self.resolv_conf)];
        for (name, text) in files {
            let mut file = fs::File::create(dir.join(name))?;
            file.write_all(text.as_bytes())?;
            file.set_permissions(Permissions::from_mode(READABLE))?;
        }
        Ok(())
    }
}

fn or_empty(path: &str) -> io::Result<String> {
    match fs::read(path) {
        Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(String::new()),
        Err(error) => Err(error),
    }
}
