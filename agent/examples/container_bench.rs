//! How fast containers are made and removed here, and how much memory their shims take.
//!
//! `container_bench [COUNT] [DIRECTORY]`, as root, built in release beside `roster-shim`; needs busybox-static. The
//! directory, a temporary one by default, holds the writable layers: its file system matters.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, Instant},
};

use oci_spec::image::{ImageConfiguration, ImageConfigurationBuilder, RootFsBuilder};
use roster_agent::runtime::linux::{
    bundle::Network,
    containers::{Containers, ContainersConfig, RootImage},
};
use roster_proto::{
    assignment::Assignment,
    id::{NodeId, ServiceId, ServiceName, Slot, StackName, TaskId},
    spec::{NetworkMode, TaskSpec},
    task::Desired,
};

/// Containers made and removed one after another.
const SINGLE_ROUNDS: usize = 50;

struct Bench {
    containers: Arc<Containers>,
    image: ImageConfiguration,
    layers: Vec<PathBuf>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut args = std::env::args().skip(1);
    let count: usize = args.next().map_or(Ok(100), |count| count.parse())?;
    let dir = match args.next() {
        Some(dir) => tempfile::tempdir_in(dir)?,
        None => tempfile::tempdir()?,
    };
    let parent = format!("roster-bench-{}", std::process::id());
    let result = run(count, dir.path(), &parent).await;
    for root in ["pids", "memory", "cpu", "cpu,cpuacct", ""] {
        let group = Path::new("/sys/fs/cgroup").join(root).join(&parent);
        if group.exists() {
            fs::remove_dir(group)?;
        }
    }
    result
}

async fn run(count: usize, dir: &Path, parent: &str) -> Result<(), Box<dyn Error>> {
    let bench = Arc::new(Bench::new(dir, parent)?);
    let mut singles = Vec::new();
    for round in 0..SINGLE_ROUNDS {
        let begin = Instant::now();
        bench.start(round).await?;
        let started = begin.elapsed();
        bench.remove(round).await?;
        singles.push((started, begin.elapsed() - started));
    }
    singles.sort();
    println!("one start, median:        {:.2} ms", millis(singles[SINGLE_ROUNDS / 2].0));
    singles.sort_by_key(|(_, removed)| *removed);
    println!("one removal, median:      {:.2} ms", millis(singles[SINGLE_ROUNDS / 2].1));

    let begin = Instant::now();
    let starts = (0..count).map(|number| {
        let bench = bench.clone();
        async move { bench.start(number).await }
    });
    let pids: Vec<u32> = futures::future::try_join_all(starts).await?;
    let took = begin.elapsed();
    println!("{count} starts at once:      {:.0} ms, {:.0}/s", millis(took), count as f64 / took.as_secs_f64());
    let shims = pids.iter().map(|pid| parent_of(*pid)).collect::<Result<Vec<_>, _>>()?;
    let sizes = shims.iter().map(|shim| pss(*shim)).collect::<Result<Vec<_>, _>>()?;
    println!("shim, mean PSS of {count}:   {} KiB", sizes.iter().sum::<u64>() / count as u64);

    let begin = Instant::now();
    let removals = (0..count).map(|number| {
        let bench = bench.clone();
        async move { bench.remove(number).await }
    });
    futures::future::try_join_all(removals).await?;
    println!("{count} removals at once:    {:.0} ms", millis(begin.elapsed()));
    Ok(())
}

impl Bench {
    fn new(dir: &Path, parent: &str) -> Result<Self, Box<dyn Error>> {
        let layer = dir.join("layer");
        fs::create_dir_all(layer.join("bin"))?;
        fs::copy("/bin/busybox", layer.join("bin/sleep"))?;
        let shim = std::env::current_exe()?.with_file_name("../roster-shim");
        let containers = Arc::new(Containers::open(ContainersConfig {
            data_dir: dir.join("data"),
            run_dir: dir.join("run"),
            cgroup_parent: parent.to_owned(),
            node: NodeId::new("bench")?,
            shim,
            runtimes: Default::default(),
            disk: None,
            keep_failed: 0,
        })?);
        let image = ImageConfigurationBuilder::default()
            .architecture("amd64")
            .os("linux")
            .rootfs(RootFsBuilder::default().typ("layers").diff_ids(Vec::new()).build()?)
            .build()?;
        Ok(Self { containers, image, layers: vec![layer] })
    }

    async fn start(&self, number: usize) -> Result<u32, Box<dyn Error>> {
        let command = ["/bin/sleep", "1000"].map(str::to_owned).to_vec();
        let spec = TaskSpec { command: Some(command), network: NetworkMode::None, ..TaskSpec::of_image("busybox") };
        let assignment = Assignment {
            task: task(number)?,
            service: ServiceId::new(StackName::new("bench")?, ServiceName::new("sleep")?),
            slot: Slot::Replica(1),
            desired: Desired::Run,
            spec: Arc::new(spec),
            ports: Vec::new(),
            paused: false,
            shares_with: None,
        };
        let image = RootImage { config: &self.image, layers: &self.layers };
        Ok(self.containers.start(&assignment, image, Network::None).await?.pid)
    }

    async fn remove(&self, number: usize) -> Result<(), Box<dyn Error>> {
        Ok(self.containers.remove(&task(number)?).await?)
    }
}

fn task(number: usize) -> Result<TaskId, Box<dyn Error>> {
    Ok(TaskId::new(format!("t{number}"))?)
}

fn millis(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

fn field(path: &str, name: &str) -> Result<u64, Box<dyn Error>> {
    let text = fs::read_to_string(path)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next());
    Ok(value.ok_or_else(|| format!("{path} has no {name}"))?.parse()?)
}

fn parent_of(pid: u32) -> Result<u64, Box<dyn Error>> {
    field(&format!("/proc/{pid}/status"), "PPid:")
}

/// KiB.
fn pss(pid: u64) -> Result<u64, Box<dyn Error>> {
    field(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}
