//! Clients that speak gRPC themselves: starting a program for each call would be most of what is measured.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use hyper_util::rt::TokioIo;
use tokio::{net::UnixStream, task::JoinSet};
use tonic::transport::{Channel, Endpoint};

use crate::netns::Netns;

const CONNECT: Duration = Duration::from_secs(10);

/// To a controller's socket.
pub async fn unix(socket: &Path) -> Result<Channel, String> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    // The name is never looked up.
    let endpoint = Endpoint::from_static("http://controller").connect_timeout(CONNECT);
    let connected = endpoint.connect_with_connector(connector).await;
    connected.map_err(|error| format!("cannot connect to {}: {error}", socket.display()))
}

/// From the network namespace of the calling thread.
pub async fn tcp(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}")).map_err(|error| error.to_string())?;
    let endpoint = endpoint.connect_timeout(CONNECT).tcp_nodelay(true);
    endpoint.connect().await.map_err(|error| format!("cannot connect to {address}: {error}"))
}

/// Runs a client on a thread of its own in a network namespace.
pub fn inside<T: Send>(netns: &Netns, client: impl AsyncFnOnce() -> Result<T, String> + Send) -> Result<T, String> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            netns.enter().map_err(|error| format!("cannot enter the lab's network: {error}"))?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.map_err(|error| format!("a runtime: {error}"))?.block_on(client())
        });
        thread.join().map_err(|_| "the client panicked".to_owned())?
    })
}

/// What clients that call without a pause got done.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    pub per_second: f64,
    /// Milliseconds.
    pub p99: f64,
}

/// Each client makes its calls one after the other until the time is over.
pub async fn load<C, F>(clients: Vec<C>, length: Duration, call: F) -> Result<Load, String>
where
    C: Send + 'static,
    F: AsyncFn(&mut C, u64) -> Result<(), String> + Clone + 'static,
{
    let local = tokio::task::LocalSet::new();
    let began = Instant::now();
    let mut running = JoinSet::new();
    for mut client in clients {
        let call = call.clone();
        running.spawn_local_on(
            async move {
                let mut took = Vec::new();
                for number in 0.. {
                    let sent = Instant::now();
                    if sent.duration_since(began) > length {
                        break;
                    }
                    call(&mut client, number).await?;
                    took.push(sent.elapsed());
                }
                Ok::<_, String>(took)
            },
            &local,
        );
    }
    let joined = local
        .run_until(async {
            let mut all = Vec::new();
            while let Some(ended) = running.join_next().await {
                all.extend(ended.map_err(|error| error.to_string())??);
            }
            Ok::<_, String>(all)
        })
        .await;
    let elapsed = began.elapsed().as_secs_f64();
    let mut took = joined?;
    took.sort_unstable();
    let p99 = took.get(took.len() * 99 / 100).ok_or("no call was made")?;
    Ok(Load { per_second: took.len() as f64 / elapsed, p99: p99.as_secs_f64() * 1000.0 })
}
