//! What takes a process of its own to show: as many connections as one may have, and how much memory the slow cost.

use std::{
    io,
    pin::Pin,
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
};

use hyper_util::rt::TokioIo;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use roster_tls::SERVER_NAME;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpSocket, TcpStream},
};
use tonic::transport::Endpoint;

use super::{floods::is_hung_up_on, *};

/// Runs this test again in a process of its own; whether this is that one.
fn alone(test: &str) -> bool {
    const ALONE: &str = "ROSTER_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return true;
    }
    let mut again = Command::new(std::env::current_exe().expect("this program"));
    let ran = again.args(["--exact", test, "--nocapture"]).env(ALONE, "1").output().expect("it starts");
    let told = String::from_utf8_lossy(&ran.stdout);
    assert!(
        ran.status.success() && told.contains("1 passed"),
        "{test}, alone:\n{told}{}",
        String::from_utf8_lossy(&ran.stderr)
    );
    false
}

/// From an address of its own: tests beside this one listen anew on ports of 127.0.0.1, which so many would take.
async fn from_elsewhere(address: &str) -> io::Result<TcpStream> {
    let socket = TcpSocket::new_v4()?;
    socket.bind("127.66.0.1:0".parse().expect("an address"))?;
    socket.connect(address.parse().expect("an address")).await
}

/// Ten thousand, or as many as this process may have, the controller's own descriptors among them.
fn idle_connections() -> usize {
    const WANTED: u64 = 10_000;
    // Those that the controller keeps at its end, and all else.
    const OTHERS: u64 = 2_000;
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).expect("limits");
    let limit = hard.min(WANTED + OTHERS);
    setrlimit(Resource::RLIMIT_NOFILE, limit, hard).expect("up to the hard limit");
    usize::try_from(limit - OTHERS).expect("small")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_idle_connections_keep_nobody_out() {
    if !alone("secured::crowds::ten_thousand_idle_connections_keep_nobody_out") {
        return;
    }
    let count = idle_connections();
    println!("{count} idle connections");
    let cluster = Secured::start().await;
    let ann = cluster.person("ann", "admin").await;
    let channel = cluster.member(&ann).await;
    let before = resident();
    let mut idle = Vec::with_capacity(count);
    for number in 0..count {
        idle.push(from_elsewhere(&cluster.address).await.expect("connected"));
        if number % 1_000 == 0 {
            list(cluster.member(&ann).await).await.expect("a newcomer with a certificate gets in");
            list(channel.clone()).await.expect("and who was there stays");
        }
    }
    cluster.answers().await;
    assert!(resident() < before + 100, "from {before} MB to {} MB", resident());
    // No more than the bound of them are kept, and those not for long.
    let gone = async {
        for stream in idle {
            is_hung_up_on(stream).await;
        }
    };
    within("the end of the idle ones", gone).await;
    list(channel).await.expect("nothing happened to who was there");
    cluster.stop().await;
}

/// Megabytes.
fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the kernel tells");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("there is one");
    line.trim().trim_end_matches(" kB").trim().parse::<usize>().expect("a number") / 1024
}

/// A connection whose reader goes away, although all else of its program goes on.
struct Sleepy<S> {
    inner: S,
    asleep: Arc<AtomicBool>,
}

impl<S: AsyncRead + Unpin> AsyncRead for Sleepy<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if self.asleep.load(Ordering::Relaxed) {
            // Looks again whenever something is to be written.
            return Poll::Pending;
        }
        Pin::new(&mut self.inner).poll_read(context, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Sleepy<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(context, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

/// Lets the server send as much as it likes, and then does not read it.
async fn sleepy(cluster: &Secured, identity: &Identity, asleep: &Arc<AtomicBool>) -> Channel {
    const WIDE: u32 = 1 << 30;
    let (address, asleep) = (cluster.address.clone(), asleep.clone());
    let tls = tokio_rustls::TlsConnector::from(client_config(identity).expect("a client"));
    let connector = tower::service_fn(move |_| {
        let (address, asleep, tls) = (address.clone(), asleep.clone(), tls.clone());
        async move {
            let tcp = TcpStream::connect(&address).await?;
            let inner = tls.connect(SERVER_NAME.try_into().expect("a name"), tcp).await?;
            Ok::<_, io::Error>(TokioIo::new(Sleepy { inner, asleep }))
        }
    });
    let endpoint = Endpoint::from_static("https://controller.roster");
    let endpoint = endpoint.initial_stream_window_size(WIDE).initial_connection_window_size(WIDE);
    endpoint.connect_with_connector(connector).await.expect("connected")
}

/// How many of this process's connections to the address are still there, by the kernel's own table.
fn connections_from(address: &str) -> usize {
    let port: u16 = address.rsplit_once(':').expect("a port").1.parse().expect("a number");
    let table = std::fs::read_to_string("/proc/self/net/tcp").expect("the kernel tells");
    let suffix = format!(":{port:04X}");
    let here = |line: &&str| {
        let mut fields = line.split_whitespace().skip(1);
        let local = fields.next().is_some_and(|local| local.ends_with(&suffix));
        // Established: the server's half.
        local && fields.nth(1) == Some("01")
    };
    table.lines().filter(here).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_stops_reading_costs_little_and_is_dropped() {
    if !alone("secured::crowds::who_stops_reading_costs_little_and_is_dropped") {
        return;
    }
    let cluster = Secured::start().await;
    let quick = cluster.member(&cluster.person("quick", "admin").await).await;
    let asleep = Arc::new(AtomicBool::new(false));
    let slow = sleepy(&cluster, &cluster.person("slow", "viewer").await, &asleep).await;
    let apply = |round: u32| {
        let names: Vec<String> = (0..100).map(|number| format!("web-{number}")).collect();
        let services: Vec<(&str, u32)> = names.iter().map(|name| (name.as_str(), round % 2 + 1)).collect();
        let stack = crate::harness::stack("hello", &services);
        let request = wire::ApplyRequest { stack: Some(stack.into()), prune: false, base: None };
        let mut client = ControlClient::new(quick.clone());
        async move { within("an apply", client.apply(request)).await.expect("applied") }
    };
    apply(0).await;
    let mut watches = Vec::new();
    for _ in 0..200 {
        let request = wire::WatchRequest { filter: None, after: 0 };
        let mut watch = ControlClient::new(slow.clone()).watch(request).await.expect("watching").into_inner();
        within("the first message", watch.message()).await.expect("sent").expect("a message");
        watches.push(watch);
    }
    let open = connections_from(&cluster.address);
    let before = resident();
    asleep.store(true, Ordering::Relaxed);
    // Each of these is tens of kilobytes of news for each of those streams.
    for round in 1..60 {
        apply(round).await;
    }
    let cost = resident().saturating_sub(before);
    println!("{cost} MB for 200 watches that nobody reads");
    assert!(cost < 200, "{cost} MB");
    let dropped = async {
        while connections_from(&cluster.address) >= open {
            look_again().await;
        }
    };
    tokio::time::timeout(2 * DEADLINE, dropped).await.expect("whoever does not read is dropped");
    within("a read", list(quick)).await.expect("the others are served");
    cluster.stop().await;
}
