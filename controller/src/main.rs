//! The controller's process: arguments, log, signals, exit code. Everything else is in the library.

use std::process::ExitCode;

use clap::Parser;
use nix::sys::{
    prctl,
    resource::{Resource, getrlimit, setrlimit},
};
use roster_controller::{Listeners, RunError, config::Config, run, status, telemetry};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

#[derive(Debug, thiserror::Error)]
enum Fatal {
    #[error(transparent)]
    Telemetry(#[from] telemetry::TelemetryError),
    #[error("cannot start the runtime")]
    Runtime(#[source] std::io::Error),
    #[error("cannot raise the limit of open files")]
    Files(#[source] nix::errno::Errno),
    #[error("cannot turn huge pages off")]
    HugePages(#[source] nix::errno::Errno),
    #[error("cannot wait for signals")]
    Signals(#[source] std::io::Error),
    #[error(transparent)]
    Run(#[from] RunError),
}

fn main() -> ExitCode {
    match start(Config::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("roster-controller: {}", status::chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn start(config: Config) -> Result<(), Fatal> {
    telemetry::init(&config.log)?;
    // The allocator asks for huge pages, which are 60 MB resident where 5 are used.
    prctl::set_thp_disable(true).map_err(Fatal::HugePages)?;
    raise_file_limit().map_err(Fatal::Files)?;
    // One thread, for handing a request to another costs more than what is done with it. What takes long has threads of
    // its own: flushes, plans, encoding the state.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().map_err(Fatal::Runtime)?;
    runtime.block_on(async {
        let shutdown = CancellationToken::new();
        cancel_on_signal(shutdown.clone()).map_err(Fatal::Signals)?;
        let listeners = Listeners::bind(&config).await.map_err(RunError::from)?;
        Ok(run(config, listeners, shutdown).await?)
    })
}

/// Each connection takes one, and the usual limit is a tenth of those that may come in.
fn raise_file_limit() -> nix::Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)
}

fn cancel_on_signal(shutdown: CancellationToken) -> std::io::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    tokio::spawn(async move {
        let name = tokio::select! {
            _ = term.recv() => "SIGTERM",
            _ = int.recv() => "SIGINT",
        };
        tracing::info!(signal = name, "stopping");
        shutdown.cancel();
    });
    Ok(())
}
