//! How long a proposal takes and how many fit into a second, on the disk of a directory:
//!
//! ```text
//! cargo run --release -p roster-controller --example propose_bench -- DIRECTORY
//! ```
//!
//! The machine only counts: what is measured is the log. Opens a new store in DIRECTORY and leaves it there.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use roster_controller::raft::{Alone, Machine, ProposeError, Store, StoreConfig, Undecodable};
use roster_proto::id::Version;
use tokio_util::sync::CancellationToken;

/// About what a batch of status reports takes.
const COMMAND_BYTES: usize = 300;
const MEASURED: Duration = Duration::from_secs(3);
const IDLE: Duration = Duration::from_secs(3);

#[derive(Clone, Default)]
struct Count(u64);

impl Machine for Count {
    type Command = Vec<u8>;
    type Output = u64;

    fn encode_command(command: &Vec<u8>) -> Vec<u8> {
        command.clone()
    }

    fn apply(&mut self, _: Version, _: &[u8]) -> Result<u64, Undecodable> {
        self.0 += 1;
        Ok(self.0)
    }

    fn encode(&self) -> Vec<u8> {
        self.0.to_be_bytes().to_vec()
    }

    fn decode(snapshot: &[u8]) -> Result<Self, Undecodable> {
        snapshot.try_into().map(|count| Self(u64::from_be_bytes(count))).map_err(Undecodable::new)
    }
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let dir = std::env::args_os().nth(1).ok_or("usage: propose_bench DIRECTORY")?;
    let config = StoreConfig::new(dir);
    for proposers in [1, 16, 128] {
        let shutdown = CancellationToken::new();
        let began = Instant::now();
        let (store, task) = Store::<Count>::open(config.clone(), Alone, shutdown.clone()).await?;
        let opened = began.elapsed();
        let tasks: Vec<_> = (0..proposers).map(|_| tokio::spawn(propose(store.clone()))).collect();
        let mut latencies = Vec::new();
        for task in tasks {
            latencies.extend(task.await??);
        }
        latencies.sort();
        let at = |percent: usize| latencies[(latencies.len() - 1) * percent / 100].as_micros();
        println!(
            "{proposers:>4} proposers: {:>7.0}/s, latency {} us median, {} us 99th percentile; opened in {} ms; {} KiB RSS, log {} KiB",
            latencies.len() as f64 / MEASURED.as_secs_f64(),
            at(50),
            at(99),
            opened.as_millis(),
            rss()?,
            std::fs::metadata(config.dir.join("log/db"))?.len() >> 10,
        );
        let before = cpu_ticks()?;
        tokio::time::sleep(IDLE).await;
        println!("     idle: {} ticks of processor time in {} s", cpu_ticks()? - before, IDLE.as_secs());
        shutdown.cancel();
        task.ended().await?;
    }
    Ok(())
}

async fn propose(store: Store<Count>) -> Result<Vec<Duration>, ProposeError> {
    let (began, mut latencies) = (Instant::now(), Vec::new());
    while began.elapsed() < MEASURED {
        let one = Instant::now();
        store.propose(vec![7; COMMAND_BYTES]).await?;
        latencies.push(one.elapsed());
    }
    Ok(latencies)
}

/// Of this process, in the kernel and out of it: fields 14 and 15 of proc_pid_stat(5), of 10 ms each.
fn cpu_ticks() -> Result<u64, Box<dyn Error>> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let after_name = stat.rsplit(')').next().ok_or("no name in /proc/self/stat")?;
    let fields: Vec<_> = after_name.split_whitespace().skip(11).take(2).collect();
    Ok(fields.iter().map(|field| field.parse::<u64>()).sum::<Result<_, _>>()?)
}

/// In KiB, of this process.
fn rss() -> Result<String, Box<dyn Error>> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).ok_or("no VmRSS in /proc/self/status")?;
    Ok(line.trim().trim_end_matches(" kB").to_owned())
}
