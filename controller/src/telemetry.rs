//! The log: what is written, in which form. To stderr, so that systemd or a terminal has it; never to files.

use std::io::IsTerminal;

use tracing_subscriber::{EnvFilter, filter::ParseError, util::TryInitError};

use crate::config::{LogConfig, LogFormat};

#[derive(Debug, thiserror::Error)]
pub enum TelemetryError {
    #[error("--log {directives:?} cannot be read: write a level or MODULE=LEVEL, separated by commas")]
    Directives { directives: String, source: ParseError },
    #[error("the log is already set up in this process")]
    AlreadySet(#[from] TryInitError),
}

/// Once per process.
pub fn init(config: &LogConfig) -> Result<(), TelemetryError> {
    use tracing_subscriber::util::SubscriberInitExt;

    let filter = EnvFilter::try_new(&config.log)
        .map_err(|source| TelemetryError::Directives { directives: config.log.clone(), source })?;
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        LogFormat::Human => subscriber.with_ansi(std::io::stderr().is_terminal()).finish().try_init()?,
        LogFormat::Json => subscriber.json().flatten_event(true).finish().try_init()?,
    }
    Ok(())
}
