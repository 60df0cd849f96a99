//! What the controller is told when it starts: flags, each with an environment variable. Read once, passed down.

use std::{net::SocketAddr, ops::RangeInclusive, path::PathBuf, str::FromStr, time::Duration};

use clap::{Args, Parser, ValueEnum};

use crate::home::Step;

/// A node is Down once it was silent for so many heartbeat periods.
pub const MISSED_HEARTBEATS: u32 = 3;

const LONG_ABOUT: &str = "\
Roster's controller: holds what the cluster should run, decides what to do about the difference, and serves rctl and \
the agents.

It keeps its state in --data-dir and listens on a unix socket that only root and its own user may use. Stopping or \
killing it stops no container: agents go on with what they were last told. Started again, it takes up where it was.";

const EXAMPLES: &str = "\
Examples:
  Start with the defaults, as root:
      roster-controller

  Start a second one beside it, for a trial:
      roster-controller --data-dir /tmp/trial --socket /tmp/trial/controller.sock --metrics none

  Say more about agents' sessions, as JSON for a log collector:
      roster-controller --log info,roster_controller::dispatch=debug --log-format json

Signals:
  SIGTERM, SIGINT   stop in order: end sessions and calls, close the log

Exit codes:
  0  stopped as asked
  1  could not start or could not go on; the last line on stderr says why and what to do
  2  the command line is wrong

Files:
  /var/lib/roster/controller           the replicated log and its snapshots
  /run/roster/controller.sock          where rctl and local agents connect";

#[derive(Clone, Debug, Parser)]
#[command(name = "roster-controller", version, about = "Roster's controller", long_about = LONG_ABOUT, after_long_help = EXAMPLES)]
pub struct Config {
    /// Directory of the replicated log and its snapshots
    ///
    /// Made when it is missing. One controller at a time may use it.
    #[arg(long, value_name = "DIR", env = "ROSTER_CONTROLLER_DATA_DIR", default_value = "/var/lib/roster/controller")]
    pub data_dir: PathBuf,

    /// Unix socket for rctl and local agents
    ///
    /// Made with mode 0600; the peer's credentials are checked as well. One left behind by a controller that was
    /// killed is replaced, one that still answers is not.
    #[arg(long, value_name = "PATH", env = "ROSTER_CONTROLLER_SOCKET", default_value = "/run/roster/controller.sock")]
    pub socket: PathBuf,

    /// Also listen on this TCP address, for the other controllers, the agents and people
    ///
    /// In a cluster it speaks TLS, and asks everybody for a certificate of this cluster. Before `rctl cluster init` or
    /// `join` it answers on loopback only, without asking: every local user who can connect has the controller's full
    /// power; at any other address callers are sent away. The port is usually 7640.
    #[arg(long, value_name = "ADDR:PORT", env = "ROSTER_CONTROLLER_LISTEN", value_parser = socket_address)]
    pub listen: Option<SocketAddr>,

    /// Where others reach --listen, when not at the address it names
    ///
    /// The other controllers and the agents are told, also when it changes.
    #[arg(long, value_name = "HOST:PORT", env = "ROSTER_CONTROLLER_ADVERTISE", value_parser = host_and_port)]
    pub advertise: Option<String>,

    /// With an empty --data-dir, wait to be told what to be
    ///
    /// Until `rctl cluster init`, `join` or `restore` says so, nothing else is served. Without this a controller that
    /// finds nothing begins alone at once.
    #[arg(long, env = "ROSTER_CONTROLLER_WAIT")]
    pub wait: bool,

    /// Where to serve Prometheus metrics over HTTP, or `none`; loopback only
    #[arg(long, value_name = "ADDR:PORT", env = "ROSTER_CONTROLLER_METRICS", default_value = "127.0.0.1:9640")]
    pub metrics: MetricsListen,

    /// How often agents let themselves be heard (10ms to 60s)
    ///
    /// A node that stays silent for three periods counts as Down, and its tasks are replaced elsewhere.
    #[arg(long, value_name = "DURATION", env = "ROSTER_CONTROLLER_HEARTBEAT", default_value = "1s", value_parser = heartbeat_period)]
    pub heartbeat: Duration,

    #[command(flatten)]
    pub log: LogConfig,

    /// What this release speaks with other controllers. No flag: tests make a controller another release's by it.
    #[arg(skip = crate::peers::PROTOCOLS)]
    pub protocols: RangeInclusive<u32>,

    /// No flag either: where a test has the controller crash.
    #[arg(skip)]
    pub cut_off_at: Option<Step>,
}

#[derive(Clone, Debug, Args)]
pub struct LogConfig {
    /// What to log: error, warn, info, debug or trace, also per module
    ///
    /// Directives as in `info,roster_controller::leader=debug`.
    #[arg(long, value_name = "DIRECTIVES", env = "ROSTER_LOG", default_value = "info")]
    pub log: String,

    /// How to write the log to stderr
    #[arg(long, value_name = "FORMAT", env = "ROSTER_LOG_FORMAT", default_value = "human")]
    pub log_format: LogFormat,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// A line for a person
    Human,
    /// A JSON object a line
    Json,
}

/// An address that only this machine can reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Loopback(SocketAddr);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetricsListen {
    Off,
    At(Loopback),
}

#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    #[error("write it as ADDRESS:PORT, for example 127.0.0.1:7640")]
    Unreadable,
    #[error(
        "{0} can be reached from other machines, and nobody is asked for a certificate here: use 127.0.0.1:{port} or [::1]:{port}",
        port = .0.port()
    )]
    NotLoopback(SocketAddr),
}

impl Config {
    /// HOST:PORT at which others are to reach this controller; `None` when it does not say.
    pub(crate) fn advertised(&self) -> Option<String> {
        let listened = self.listen.filter(|addr| !addr.ip().is_unspecified() && addr.port() != 0);
        self.advertise.clone().or_else(|| listened.map(|addr| addr.to_string()))
    }
}

fn host_and_port(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
            Ok(text.to_owned())
        }
        _ => Err("write it as HOST:PORT, for example 10.0.0.1:7640".to_owned()),
    }
}

fn socket_address(text: &str) -> Result<SocketAddr, AddressError> {
    text.parse().map_err(|_| AddressError::Unreadable)
}

impl Loopback {
    pub fn addr(self) -> SocketAddr {
        self.0
    }
}

impl FromStr for Loopback {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let addr: SocketAddr = text.parse().map_err(|_| AddressError::Unreadable)?;
        if addr.ip().is_loopback() { Ok(Self(addr)) } else { Err(AddressError::NotLoopback(addr)) }
    }
}

impl FromStr for MetricsListen {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if text == "none" { Ok(Self::Off) } else { text.parse().map(Self::At) }
    }
}

fn heartbeat_period(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a number with ms or s, from 10ms to 60s, for example 500ms";
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let number: u64 = number.parse().map_err(|_| HINT.to_owned())?;
    let period = match unit {
        "ms" => Duration::from_millis(number),
        "s" => Duration::from_secs(number),
        _ => return Err(HINT.to_owned()),
    };
    let allowed = Duration::from_millis(10)..=Duration::from_secs(60);
    if allowed.contains(&period) { Ok(period) } else { Err(HINT.to_owned()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(args: &[&str]) -> Result<Config, String> {
        let args = std::iter::once("roster-controller").chain(args.iter().copied());
        Config::try_parse_from(args).map_err(|e| e.to_string())
    }

    #[test]
    fn what_asks_for_no_certificate_is_on_loopback_only() {
        for address in ["0.0.0.0:7640", "192.0.2.7:7640", "[::]:7640"] {
            let error = parse(&["--metrics", address]).expect_err("must be refused");
            assert!(error.contains("nobody is asked for a certificate here: use 127.0.0.1:7640"), "{error}");
            parse(&["--listen", address]).expect("TLS guards it");
        }
        let config = parse(&["--listen", "[::1]:0", "--metrics", "none"]).expect("loopback is fine");
        assert_eq!(config.listen.map(|l| l.to_string()).as_deref(), Some("[::1]:0"));
        assert_eq!(config.metrics, MetricsListen::Off);
        assert!(parse(&["--listen", "localhost"]).expect_err("no port").contains("write it as ADDRESS:PORT"));
    }

    #[test]
    fn heartbeat_periods() {
        assert_eq!(heartbeat_period("500ms"), Ok(Duration::from_millis(500)));
        assert_eq!(heartbeat_period("2s"), Ok(Duration::from_secs(2)));
        for wrong in ["", "s", "1", "1h", "9ms", "61s", "-1s", "99999999999999999999s"] {
            assert!(heartbeat_period(wrong).is_err(), "{wrong:?} must be refused");
        }
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Config::command().debug_assert();
    }
}
