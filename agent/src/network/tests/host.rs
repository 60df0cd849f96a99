//! A host to try things on: a thread with network and mount namespaces of its own, gone with all its contents when the
//! test ends, however it ends.

use std::{
    future::Future,
    io::{self, Read, Write},
    net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket},
    path::{Path, PathBuf},
    process::Command,
    thread,
    time::Duration,
};

use nix::{
    mount::{MsFlags, mount},
    sched::{CloneFlags, setns, unshare},
};

use super::super::*;

/// An address of the throw-away host besides its loopback, on a bridge without ports.
pub(super) const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub(super) const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

const PATIENCE: Duration = Duration::from_secs(2);

/// Runs the test on a throw-away host.
pub(super) fn on_a_host<F: Future<Output = ()>>(test: impl FnOnce(PathBuf) -> F + Send + 'static) {
    let host = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_PRIVATE | MsFlags::MS_REC, None::<&str>).unwrap();
        let directory = tempfile::tempdir().unwrap();
        // The namespaces' names vanish with this thread's mounts.
        mount(Some("tmpfs"), directory.path(), Some("tmpfs"), MsFlags::empty(), None::<&str>).unwrap();
        run("ip link set lo up");
        run("ip link add uplink0 type bridge");
        run("ip address add 192.0.2.1/24 dev uplink0");
        run("ip link set uplink0 up");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            runtime.block_on(test(directory.path().to_owned()));
        }));
        drop(runtime);
        nix::mount::umount2(directory.path(), nix::mount::MntFlags::MNT_DETACH).unwrap();
        if let Err(panic) = outcome {
            std::panic::resume_unwind(panic);
        }
    });
    if let Err(panic) = host.join() {
        std::panic::resume_unwind(panic);
    }
}

pub(super) fn config(run_dir: &Path) -> NetworkConfig {
    NetworkConfig {
        bridge: "roster0".into(),
        subnet: "10.42.0.0/24".parse().unwrap(),
        run_dir: run_dir.join("run"),
        table: "roster".into(),
    }
}

/// Runs a command of the host's and returns what it prints.
pub(super) fn run(command: &str) -> String {
    let mut words = command.split(' ');
    let output = Command::new(words.next().unwrap()).args(words).output().unwrap();
    assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Runs something in a task's network namespace.
pub(super) fn within<T: Send + 'static>(netns: &Path, work: impl FnOnce() -> T + Send + 'static) -> T {
    let file = fs::File::open(netns).unwrap();
    let inside = thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Serves TCP and UDP in a task's namespace on a port, answering with a name and the peer's address. Lives until the
/// test process ends; a namespace whose last socket this is goes then.
pub(super) fn serve(netns: &Path, port: u16, name: &'static str) {
    let (tcp, udp) = within(netns, move || {
        (TcpListener::bind(("0.0.0.0", port)).unwrap(), UdpSocket::bind(("0.0.0.0", port)).unwrap())
    });
    thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let peer = stream.peer_addr().unwrap().ip();
            // A client that has gone is no concern of the server's.
            let _ = write!(stream, "{name} {peer}");
        }
    });
    thread::spawn(move || {
        let mut buffer = [0; 64];
        loop {
            let (_, peer) = udp.recv_from(&mut buffer).unwrap();
            let _ = udp.send_to(name.as_bytes(), peer);
        }
    });
}

/// Connects and reads all: the server's name and the address it saw.
pub(super) fn ask(address: Ipv4Addr, port: u16) -> io::Result<(String, String)> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::from((address, port)), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let (name, peer) = text.split_once(' ').ok_or_else(|| io::Error::other("no answer"))?;
    Ok((name.to_owned(), peer.to_owned()))
}

pub(super) fn ask_udp(socket: &UdpSocket, address: Ipv4Addr, port: u16) -> io::Result<String> {
    socket.connect((address, port))?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.send(b"?")?;
    let mut buffer = [0; 64];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
}

pub(super) fn task(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}
