//! The controller's doors: the unix socket, the optional TCP port, the metrics port.
//!
//! Guarantees: the socket never exists with a mode wider than 0600; a live controller's socket is never taken over; a
//! connection whose peer is neither root nor the controller's own user is closed before a byte of it is read. Absent:
//! who may come in by TCP, which is [`crate::doors`]'s.

use std::{
    fs, io,
    net::SocketAddr,
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use futures::{Stream, stream};
use tokio::net::{TcpListener, UnixListener, UnixStream};

use crate::config::{Config, MetricsListen};

/// Before the next accept when one failed: running out of file descriptors must not become a busy loop.
pub(crate) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

#[derive(Debug, thiserror::Error)]
pub enum ListenError {
    #[error("another controller answers at {0}: stop it first, or choose another --socket and --data-dir")]
    InUse(PathBuf),
    #[error("{0} exists and is not a socket: remove it, or choose another --socket")]
    NotASocket(PathBuf),
    #[error("--socket {0:?} must be an absolute path to a file in a directory")]
    Path(PathBuf),
    #[error("cannot {verb} {path}: is the directory writable for this user?")]
    Socket { verb: &'static str, path: PathBuf, source: io::Error },
    #[error("cannot listen on {addr}: choose another {flag}")]
    Tcp { flag: &'static str, addr: SocketAddr, source: io::Error },
}

/// Everything the controller listens on, bound and ready. Clones share it: it outlives each life of the controller.
#[derive(Clone, Debug)]
pub struct Listeners {
    pub(crate) unix: Arc<UnixSocket>,
    pub(crate) tcp: Option<Arc<TcpListener>>,
    pub(crate) metrics: Option<Arc<TcpListener>>,
}

impl Listeners {
    /// Needs a tokio runtime. Ports given as 0 are chosen by the kernel; the accessors tell which.
    pub async fn bind(config: &Config) -> Result<Self, ListenError> {
        let unix = Arc::new(UnixSocket::bind(&config.socket)?);
        let tcp = match config.listen {
            Some(addr) => Some(bind_tcp("--listen", addr).await?),
            None => None,
        };
        let metrics = match config.metrics {
            MetricsListen::At(addr) => Some(bind_tcp("--metrics", addr.addr()).await?),
            MetricsListen::Off => None,
        };
        Ok(Self { unix, tcp, metrics })
    }

    pub fn tcp_addr(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|listener| listener.local_addr().ok())
    }

    pub fn metrics_addr(&self) -> Option<SocketAddr> {
        self.metrics.as_ref().and_then(|listener| listener.local_addr().ok())
    }
}

async fn bind_tcp(flag: &'static str, addr: SocketAddr) -> Result<Arc<TcpListener>, ListenError> {
    TcpListener::bind(addr).await.map(Arc::new).map_err(|source| ListenError::Tcp { flag, addr, source })
}

/// A bound socket file; removed on drop, unless another controller has replaced it by then.
#[derive(Debug)]
pub(crate) struct UnixSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
}

impl UnixSocket {
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), path.is_absolute()) else {
            return Err(ListenError::Path(path.to_owned()));
        };
        let failed = |verb| move |source| ListenError::Socket { verb, path: path.to_owned(), source };
        fs::DirBuilder::new().recursive(true).mode(0o700).create(parent).map_err(failed("make the directory of"))?;
        refuse_live(path)?;

        // Bound under another name and renamed: the socket appears with its final mode, and replaces a stale one in
        // the same instant.
        let mut fresh = name.to_owned();
        fresh.push(format!(".{}", std::process::id()));
        let fresh = parent.join(fresh);
        match fs::remove_file(&fresh) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed("replace")(e)),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh).map_err(failed("bind"))?;
        fs::set_permissions(&fresh, fs::Permissions::from_mode(0o600)).map_err(failed("restrict"))?;
        let inode = fs::symlink_metadata(&fresh).map_err(failed("look at"))?.ino();
        fs::rename(&fresh, path).map_err(failed("put in place"))?;
        Ok(Self { listener, path: path.to_owned(), inode })
    }

    /// Connections of those who may connect. Never ends.
    pub(crate) fn connections(&self) -> impl Stream<Item = io::Result<UnixStream>> + use<'_> {
        let own = nix::unistd::geteuid().as_raw();
        stream::unfold(&self.listener, move |listener| async move {
            loop {
                match listener.accept().await {
                    Ok((stream, _)) => match stream.peer_cred() {
                        Ok(peer) if peer_may_connect(peer.uid(), own) => return Some((Ok(stream), listener)),
                        Ok(peer) => tracing::warn!(uid = peer.uid(), "refused a connection: neither root nor my user"),
                        Err(error) => tracing::warn!(%error, "refused a connection: its peer is unknown"),
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cannot accept a connection");
                        tokio::time::sleep(ACCEPT_PAUSE).await;
                    }
                }
            }
        })
    }
}

impl Drop for UnixSocket {
    fn drop(&mut self) {
        if fs::symlink_metadata(&self.path).is_ok_and(|found| found.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the socket");
        }
    }
}

/// By SO_PEERCRED, unix(7): root, or the user the controller itself runs as.
fn peer_may_connect(peer: u32, own: u32) -> bool {
    peer == 0 || peer == own
}

fn refuse_live(path: &Path) -> Result<(), ListenError> {
    match fs::symlink_metadata(path) {
        Ok(found) if !found.file_type().is_socket() => Err(ListenError::NotASocket(path.to_owned())),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Err(e) if matches!(e.kind(), io::ErrorKind::ConnectionRefused | io::ErrorKind::NotFound) => Ok(()),
            // A full backlog or a refused permission is somebody alive, too.
            _ => Err(ListenError::InUse(path.to_owned())),
        },
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ListenError::Socket { verb: "look at", path: path.to_owned(), source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_root_and_the_own_user_may_connect() {
        assert!(peer_may_connect(0, 0));
        assert!(peer_may_connect(0, 1000));
        assert!(peer_may_connect(1000, 1000));
        assert!(!peer_may_connect(1000, 0));
        assert!(!peer_may_connect(1001, 1000));
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_owner() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("run/c.sock");
        let socket = UnixSocket::bind(&path).expect("bind");
        assert_eq!(fs::metadata(&path).expect("it exists").mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().expect("it has one")).expect("it exists").mode() & 0o777, 0o700);
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_live_socket_is_refused_and_a_stale_one_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.sock");
        let live = UnixSocket::bind(&path).expect("bind");
        let error = UnixSocket::bind(&path).expect_err("the first still listens").to_string();
        assert!(error.starts_with("another controller answers at "), "{error}");
        drop(live);

        // What a killed controller leaves behind: a file nobody listens on.
        drop(std::os::unix::net::UnixListener::bind(&path).expect("bind"));
        UnixSocket::bind(&path).expect("a stale socket is replaced");
    }

    #[tokio::test]
    async fn a_file_that_is_no_socket_is_kept() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.sock");
        fs::write(&path, "precious").expect("write");
        let error = UnixSocket::bind(&path).expect_err("not a socket").to_string();
        assert!(error.contains("is not a socket"), "{error}");
        assert_eq!(fs::read_to_string(&path).expect("still there"), "precious");
    }
}
