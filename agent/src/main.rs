//! The agent's daemon and its `clean` subcommand: joins the real runtime, image store and network to the library.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::Arc,
    time::Duration,
};

use clap::Parser;
use nix::{
    errno::Errno,
    fcntl::{Flock, FlockArg},
    unistd::geteuid,
};
use roster_agent::{
    clean::{self, Leftovers},
    config::{Cli, Command, Flags},
    image::ImageStore,
    network::{Network, NetworkConfig},
    runtime::linux::{LinuxConfig, LinuxRuntime, containers::kept::layers_in_use, shim_beside},
    services::HostServices,
    telemetry::{self, Chain},
};
use roster_runtime::cgroup::Hierarchies;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::{error, info};

/// Enough: the agent mostly waits for the kernel.
const THREADS: usize = 2;

type Failure = Box<dyn std::error::Error>;

#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error("must run as root, for it makes namespaces, cgroups and network links: use sudo")]
    NotRoot,
    #[error("another agent uses {}: stop it, or choose another --run-dir", .0.display())]
    Locked(PathBuf),
    #[error("cannot lock {}: {source}", path.display())]
    Lock { path: PathBuf, source: io::Error },
    #[error("cannot find roster-shim: {0}; give its place with --shim")]
    NoShim(io::Error),
    #[error("some things could not be removed; run it again, or remove them by hand:\n  {}", .0.join("\n  "))]
    Leftovers(Vec<String>),
}

/// For work on other threads that is as good as done; the rest is cut off as by a crash.
const LAST_WORK: Duration = Duration::from_millis(500);

/// What both commands work with.
struct Host {
    runtime: Arc<LinuxRuntime>,
    images: Arc<ImageStore>,
    network: Arc<Network>,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    if let Err(problem) = telemetry::init(&cli.flags.log, cli.flags.log_format) {
        eprintln!("roster-agent: --log {:?}: {problem}", cli.flags.log);
        return ExitCode::from(2);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(THREADS).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(begin(cli));
            // A thread that waits for a name server would hold up the next agent's start, and the node be taken for dead.
            runtime.shutdown_timeout(LAST_WORK);
            result
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(problem) => {
            error!("{}", Chain(&*problem));
            ExitCode::FAILURE
        }
    }
}

async fn begin(cli: Cli) -> Result<(), Failure> {
    if !geteuid().is_root() {
        return Err(StartError::NotRoot.into());
    }
    let _lock = lock(&cli.flags.run_dir)?;
    match cli.command {
        None => serve(&cli.flags).await,
        Some(Command::Clean { purge, grace }) => sweep(&cli.flags, purge, Duration::from_secs(grace)).await,
    }
}

async fn serve(flags: &Flags) -> Result<(), Failure> {
    let config = flags.config()?;
    let host = Host::open(flags).await?;
    let services = HostServices { node: config.node.clone(), runtime: host.runtime.clone(), images: host.images };
    let shutdown = shutdown_on_signal()?;
    Ok(roster_agent::run(config, host.runtime, Arc::new(services), shutdown).await?)
}

async fn sweep(flags: &Flags, purge: bool, grace: Duration) -> Result<(), Failure> {
    let mut left = Leftovers::default();
    let host = Host::open(flags).await?;
    let count = clean::containers(&host.runtime, grace, &mut left).await;
    left.note("remove the network", host.network.remove().await);
    // The parent's own directories, with whatever strays in them.
    let parent = Path::new("/").join(flags.cgroup_parent.trim_matches('/'));
    left.note("remove the cgroup", Hierarchies::open()?.dirs(&parent)?.remove());
    drop(host);
    clean::directories(&flags.run_dir, &flags.data_dir, purge, &mut left);
    if !left.0.is_empty() {
        return Err(StartError::Leftovers(left.0).into());
    }
    info!(containers = count, "nothing of this agent is left");
    Ok(())
}

impl Host {
    async fn open(flags: &Flags) -> Result<Self, Failure> {
        let (data_dir, run_dir) = (flags.data_dir.clone(), flags.run_dir.clone());
        let used = Box::new(move || layers_in_use(&data_dir, &run_dir));
        let images = Arc::new(ImageStore::open_for(&flags.data_dir.join("images"), used)?);
        let network = Arc::new(
            Network::open(NetworkConfig {
                bridge: flags.bridge.clone(),
                subnet: flags.subnet,
                run_dir: flags.run_dir.clone(),
                table: flags.nft_table.clone(),
            })
            .await?,
        );
        let config = LinuxConfig {
            data_dir: flags.data_dir.clone(),
            run_dir: flags.run_dir.clone(),
            cgroup_parent: flags.cgroup_parent.clone(),
            node: flags.config()?.node,
            shim: flags.shim.clone().map_or_else(shim_beside, Ok).map_err(StartError::NoShim)?,
            runtimes: flags.runtimes.iter().cloned().collect(),
            disk: flags.container_disk,
            keep_failed: flags.keep_failed,
        };
        let runtime = Arc::new(LinuxRuntime::open(config, images.clone(), network.clone())?);
        Ok(Self { runtime, images, network })
    }
}

/// Held as long as the process lives; the kernel lets go of it whatever happens.
fn lock(run_dir: &Path) -> Result<Flock<File>, StartError> {
    let path = run_dir.join("lock");
    let failed = |source| StartError::Lock { path: path.clone(), source };
    fs::create_dir_all(run_dir).map_err(failed)?;
    let file = File::options().create(true).truncate(false).write(true).open(&path).map_err(failed)?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        Errno::EWOULDBLOCK => StartError::Locked(run_dir.to_owned()),
        errno => failed(errno.into()),
    })
}

fn shutdown_on_signal() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let shutdown = CancellationToken::new();
    let told = shutdown.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("told to stop");
        told.cancel();
    });
    Ok(shutdown)
}
