//! Controllers that are far behind.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Instant,
};

use roster_proto::{
    spec::StackSpec,
    wire::{self, control_client::ControlClient},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    task::JoinSet,
};
use tonic::{Code, Status, transport::Channel};

use super::{Member, of, rescue::backup, three, voters};
use crate::harness::{DEADLINE, stack};

/// Passes bytes on to a controller, until so many have gone there; then it breaks every connection, once.
struct Wire {
    address: SocketAddr,
    passed: Arc<AtomicU64>,
    broken: Arc<AtomicBool>,
}

impl Wire {
    async fn new(to: SocketAddr, break_after: u64) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("its address");
        let (passed, broken) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicBool::new(false)));
        let (count, breaks) = (passed.clone(), broken.clone());
        tokio::spawn(async move {
            let mut open = JoinSet::new();
            loop {
                tokio::select! {
                    accepted = listener.accept() => {
                        let (client, _) = accepted.expect("a connection");
                        open.spawn(pass(client, to, count.clone(), breaks.clone(), break_after));
                    }
                    Some(ended) = open.join_next() => if matches!(ended, Ok(true)) { open.abort_all() },
                }
            }
        });
        Self { address, passed, broken }
    }
}

/// Whether it is to be broken.
async fn pass(client: TcpStream, to: SocketAddr, count: Arc<AtomicU64>, broken: Arc<AtomicBool>, limit: u64) -> bool {
    let Ok(server) = TcpStream::connect(to).await else { return false };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let there = async {
        let mut buffer = vec![0; 16 << 10];
        loop {
            let Ok(read @ 1..) = from_client.read(&mut buffer).await else { return false };
            if to_server.write_all(&buffer[..read]).await.is_err() {
                return false;
            }
            let total = count.fetch_add(read as u64, Ordering::SeqCst) + read as u64;
            if total >= limit && !broken.swap(true, Ordering::SeqCst) {
                return true;
            }
        }
    };
    tokio::select! {
        broken = there => broken,
        _ = tokio::io::copy(&mut from_server, &mut to_client) => false,
    }
}

/// A stack that takes up about so many bytes.
fn large(name: &str, bytes: usize) -> StackSpec {
    let mut stack = stack(name, &[("web", 0)]);
    let service = stack.services.values_mut().next().expect("a service");
    for number in 0..bytes / 30_000 {
        service.task.environment.insert(format!("V{number}"), "x".repeat(30_000));
    }
    stack
}

/// A machine that is busy with something else may leave a leader no time to be heard.
async fn again_while_nobody_leads<T, F: Future<Output = Result<T, Status>>>(mut call: impl FnMut() -> F) -> T {
    let begun = Instant::now();
    loop {
        match call().await {
            Ok(answer) => return answer,
            Err(status) if status.code() == Code::Unavailable && begun.elapsed() < DEADLINE => {}
            Err(status) => panic!("{status}"),
        }
    }
}

async fn apply(mut control: ControlClient<Channel>, request: wire::ApplyRequest) -> Result<(), Status> {
    control.apply(request).await.map(drop)
}

async fn scale(mut control: ControlClient<Channel>, request: wire::ScaleRequest) -> Result<(), Status> {
    control.scale(request).await.map(drop)
}

async fn apply_large(member: &Member, name: &str, bytes: usize) {
    let request = wire::ApplyRequest { stack: Some(large(name, bytes).into()), prune: false, base: None };
    again_while_nobody_leads(|| apply(member.control(), request.clone())).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_snapshot_that_is_cut_off_goes_on_where_it_was() {
    let c1 = Member::start("c1").await;
    let founded = c1.init().await.expect("founded");
    let c1 = c1.until_leading().await;
    const STACK: usize = 1 << 20;
    for number in 0..8 {
        apply_large(&c1, &format!("s{number}"), STACK).await;
    }
    let all = backup(&c1).await.expect("backed up").len() as u64;
    let c2 = Member::start("c2").await;
    // The cluster knows it by a way that breaks after half of the state has come.
    let wire = Wire::new(c2.address, all / 2).await;
    let request = wire::JoinRequest {
        token: founded.controller_token,
        name: "c2".to_owned(),
        address: wire.address.to_string(),
        spare: false,
    };
    c2.local().join(request).await.expect("joined");
    c1.until("two voters", |status| voters(status) == 2).await;
    assert!(wire.broken.load(Ordering::SeqCst), "it was cut off");
    let passed = wire.passed.load(Ordering::SeqCst);
    assert!((all * 9 / 10..all * 14 / 10).contains(&passed), "{passed} bytes for a state of {all}");
    let theirs = backup(&c2).await.expect("backed up").len() as u64;
    assert!(theirs >= all, "{theirs} of {all} bytes");
    c1.stop().await;
    c2.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_is_far_behind_catches_up_while_writes_go_on() {
    let ([c1, c2, c3], _) = three().await;
    let behind = c3.stop().await;
    // More than is kept for those that lag: it has to be sent a snapshot.
    for number in 0..24 {
        apply_large(&c1, "large", (1 << 20) + number * 60_000).await;
    }
    let control = c1.control();
    let stop = Arc::new(AtomicBool::new(false));
    let (done, begun) = (stop.clone(), Instant::now());
    let writer = tokio::spawn(async move {
        let mut writes = 0_u32;
        while !done.load(Ordering::SeqCst) {
            let replicas = [("large/web".to_owned(), writes % 2)].into();
            let request = wire::ScaleRequest { replicas };
            again_while_nobody_leads(|| scale(control.clone(), request.clone())).await;
            writes += 1;
        }
        writes
    });
    let c3 = behind.start().await;
    let level = c1.status().await.expect("status").commit;
    c1.until("c3 to catch up", |status| of(status, "c3").is_some_and(|one| one.matched >= level)).await;
    stop.store(true, Ordering::SeqCst);
    let writes = writer.await.expect("it does not panic");
    println!("caught up after {:?}, during {writes} writes", begun.elapsed());
    assert!(writes > 0);
    assert!(backup(&c3).await.expect("backed up").len() > 1 << 20, "it holds what is large");
    for member in [c1, c2, c3] {
        member.stop().await;
    }
}
