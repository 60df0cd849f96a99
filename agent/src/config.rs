//! The agent's flags, and what they amount to.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::SocketAddr,
    path::PathBuf,
};

use clap::{Args, Parser, Subcommand};
use roster_proto::{
    id::{InvalidId, NodeId},
    spec::rules,
};
use roster_tls::IdentityError;

use crate::{
    capacity::{self, CapacityError},
    membership,
    network::Subnet,
    runtime::linux::{containers::kept::KEPT, foreign::ForeignRuntime},
    telemetry::LogFormat,
};

/// Keeps this host's containers as the Roster controller wants them.
///
/// The agent connects to the controller, receives everything this host should run, and makes the kernel match it:
/// it fetches images, starts and stops containers, probes their health, publishes their ports, and reports back.
///
/// A host that has joined a cluster (`rctl cluster join TOKEN --agent`, at any time) speaks to the cluster's controllers
/// by TLS, follows whichever of them leads, and renews its certificate by itself. Until then the agent speaks to the
/// controller of this machine.
///
/// Containers outlive it. When it stops or crashes they run on, and the next agent with the same directories takes
/// them back. While no controller answers, it goes on with the last set it was given; only singletons end then, as soon
/// as the leader may count them as lost. To end everything it started, run `roster-agent clean`.
#[derive(Clone, Debug, Parser)]
#[command(name = "roster-agent", version, max_term_width = 100, after_long_help = EXAMPLES)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub flags: Flags,
}

const EXAMPLES: &str = "Examples:
  Join the controller on this machine:
      roster-agent
  A second agent on the same machine, with everything of its own:
      roster-agent --node two --data-dir /var/lib/roster/two --run-dir /run/roster/two \\
          --cgroup-parent roster-two --bridge roster1 --subnet 10.210.0.0/16 \\
          --nft-table roster-two --metrics none
  Stop and remove all its containers and all it made, also when it no longer runs:
      roster-agent clean --purge

Signals:
  SIGTERM, SIGINT  stop the agent and leave its containers running

Exit status:
  0  told to stop    1  could not start or go on    2  wrong usage";

#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// Stop and remove every container of this agent, with its networks, cgroups and published ports
    ///
    /// Give it the same flags as the agent. Refuses to run beside a running agent, which would start everything anew.
    /// Goes on past what it cannot remove and lists it at the end.
    Clean {
        /// Remove the data directory too: images, logs, the ledger and the node's certificate
        #[arg(long)]
        purge: bool,
        /// Seconds between the stop signal and SIGKILL
        #[arg(long, value_name = "SECONDS", default_value_t = 2)]
        grace: u64,
    },
}

#[derive(Clone, Debug, Args)]
pub struct Flags {
    /// This host's name in the cluster [default: as in its certificate, else the host name]
    ///
    /// Must be unique and stay the same over restarts.
    #[arg(long, global = true, env = "ROSTER_NODE", value_name = "NAME")]
    pub node: Option<NodeId>,

    /// Where this machine's controller listens: unix:///PATH or http://ADDRESS:PORT on loopback
    ///
    /// For a host that has joined no cluster; one that has knows its controllers.
    #[arg(
        long,
        global = true,
        env = "ROSTER_CONTROLLER",
        value_name = "URL",
        default_value = "unix:///run/roster/controller.sock",
        value_parser = controller
    )]
    pub controller: String,

    /// Images, logs, the ledger and the certificate; must survive reboots
    #[arg(long, global = true, env = "ROSTER_DATA_DIR", value_name = "DIR", default_value = "/var/lib/roster/agent")]
    pub data_dir: PathBuf,

    /// Running containers and the lock; should not survive reboots
    #[arg(long, global = true, env = "ROSTER_RUN_DIR", value_name = "DIR", default_value = "/run/roster/agent")]
    pub run_dir: PathBuf,

    /// The cgroup that holds all containers, from the root of the hierarchy
    ///
    /// No process may be in it, or on cgroup v2 in any above it. It is made when it is missing.
    #[arg(long, global = true, env = "ROSTER_CGROUP_PARENT", value_name = "PATH", default_value = "roster", value_parser = cgroup_path)]
    pub cgroup_parent: String,

    /// The network bridge for containers
    #[arg(long, global = true, env = "ROSTER_BRIDGE", value_name = "NAME", default_value = "roster0", value_parser = interface_name)]
    pub bridge: String,

    /// Addresses for containers; the first one is the bridge's
    #[arg(long, global = true, env = "ROSTER_SUBNET", value_name = "CIDR", default_value = "10.209.0.0/16")]
    pub subnet: Subnet,

    /// The nftables table for published ports
    #[arg(long, global = true, env = "ROSTER_NFT_TABLE", value_name = "NAME", default_value = "roster", value_parser = plain_name)]
    pub nft_table: String,

    /// A label of this host, for placement; may be given several times
    #[arg(long = "label", global = true, env = "ROSTER_LABELS", value_name = "KEY=VALUE", value_delimiter = ',', value_parser = label)]
    pub labels: Vec<(String, String)>,

    /// Where Prometheus metrics are served, loopback only, or `none`
    #[arg(long, global = true, env = "ROSTER_METRICS", value_name = "ADDRESS:PORT", default_value = "127.0.0.1:9641", value_parser = metrics)]
    pub metrics: Metrics,

    /// What to log: a level, or `module=level` pairs as in tracing's EnvFilter
    #[arg(long, global = true, env = "ROSTER_LOG", value_name = "FILTER", default_value = "info")]
    pub log: String,

    /// How to log
    #[arg(long, global = true, env = "ROSTER_LOG_FORMAT", value_name = "FORMAT", value_enum, default_value_t)]
    pub log_format: LogFormat,

    /// Another OCI runtime that services may ask for by `runtime: NAME`; may be given several times
    ///
    /// PROGRAM is an absolute path, with arguments after it if it needs any. It must know create, start, kill, delete
    /// and exec as runc does: runc, crun, gVisor's runsc.
    #[arg(long = "runtime", global = true, env = "ROSTER_RUNTIMES", value_name = "NAME=PROGRAM", value_delimiter = ',', value_parser = runtime)]
    pub runtimes: Vec<(String, ForeignRuntime)>,

    /// How much of the disk the files of a container may take that says nothing by `storage_opt`; else there is no limit
    ///
    /// As 512m, 10g or 1t. Such containers have a file system of their own, an ext4 in a sparse file below the data
    /// directory: needs mkfs.ext4 and loop devices.
    #[arg(long, global = true, env = "ROSTER_CONTAINER_DISK", value_name = "SIZE", value_parser = disk)]
    pub container_disk: Option<u64>,

    /// Failed containers kept for inspection, of each replica the last; 0 keeps none
    ///
    /// With their files, which `rctl debug`, `diff`, `export` and `cp` show. Beyond so many the oldest go; on a disk
    /// of which less than a twentieth is free none is kept.
    #[arg(long, global = true, env = "ROSTER_KEEP_FAILED", value_name = "COUNT", default_value_t = KEPT)]
    pub keep_failed: usize,

    /// The program that holds one container [default: roster-shim beside this one]
    #[arg(long, global = true, env = "ROSTER_SHIM", value_name = "PATH")]
    pub shim: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Metrics(pub Option<SocketAddr>);

/// What [`crate::run`] needs to know.
#[derive(Clone, Debug)]
pub struct Config {
    pub node: NodeId,
    /// `unix:///path` or `http://address:port`.
    pub controller: String,
    /// Holds the directories `ledger` and `identity`.
    pub data_dir: PathBuf,
    pub labels: BTreeMap<String, String>,
    /// Names of the OCI runtimes that services may ask for.
    pub runtimes: BTreeSet<String>,
    /// Left out of the host's addresses.
    pub bridge: String,
    /// `None`: metrics are not served.
    pub metrics: Option<SocketAddr>,
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error(transparent)]
    Capacity(#[from] CapacityError),
    #[error("the host name does not make a node name: {0}; give one with --node")]
    Node(#[from] InvalidId),
    #[error("cannot use this node's identity")]
    Identity(#[from] IdentityError),
    #[error(
        "this host has joined its cluster as node {certified}: leave out --node {asked}, or join again with --node {asked}"
    )]
    OtherNode { certified: String, asked: NodeId },
}

impl Flags {
    pub fn config(&self) -> Result<Config, ConfigError> {
        let certified = match membership::directory(&self.data_dir).load()? {
            Some(identity) => Some(identity.subject()?.name),
            None => None,
        };
        let node = match (&self.node, certified) {
            (Some(asked), Some(certified)) if asked.as_str() != certified => {
                return Err(ConfigError::OtherNode { certified, asked: asked.clone() });
            }
            (Some(node), _) => node.clone(),
            (None, Some(certified)) => NodeId::new(certified)?,
            (None, None) => NodeId::new(capacity::default_node_name()?)?,
        };
        Ok(Config {
            node,
            controller: self.controller.clone(),
            data_dir: self.data_dir.clone(),
            labels: self.labels.iter().cloned().collect(),
            runtimes: self.runtimes.iter().map(|(name, _)| name.clone()).collect(),
            bridge: self.bridge.clone(),
            metrics: self.metrics.0,
        })
    }
}

fn controller(text: &str) -> Result<String, String> {
    if text.strip_prefix("unix://").is_some_and(|path| path.starts_with('/')) {
        return Ok(text.to_owned());
    }
    if text.starts_with('/') {
        return Ok(format!("unix://{text}"));
    }
    let address = text.strip_prefix("http://").map(|rest| rest.trim_end_matches('/'));
    match address.and_then(|address| address.replace("localhost", "127.0.0.1").parse::<SocketAddr>().ok()) {
        Some(address) if address.ip().is_loopback() => Ok(format!("http://{address}")),
        Some(_) => Err("only loopback addresses are allowed, for the connection is not encrypted".to_owned()),
        None => Err("write unix:///PATH or http://ADDRESS:PORT".to_owned()),
    }
}

fn metrics(text: &str) -> Result<Metrics, String> {
    if text == "none" {
        return Ok(Metrics(None));
    }
    match text.parse::<SocketAddr>() {
        Ok(address) if address.ip().is_loopback() => Ok(Metrics(Some(address))),
        Ok(_) => Err("only loopback addresses are allowed, for everybody could read them otherwise".to_owned()),
        Err(_) => Err("write ADDRESS:PORT, as 127.0.0.1:9641, or none".to_owned()),
    }
}

fn runtime(text: &str) -> Result<(String, ForeignRuntime), String> {
    let (name, program) = text.split_once('=').ok_or("write NAME=PROGRAM, as runsc=/usr/bin/runsc")?;
    rules::runtime(name).map_err(|unfit| unfit.what)?;
    Ok((name.to_owned(), program.parse()?))
}

fn disk(text: &str) -> Result<u64, String> {
    const FORM: &str = "write a size as 512m, 10g or 1t";
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let scale = match text[digits.len()..].to_ascii_lowercase().as_str() {
        "m" => 1u64 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return Err(FORM.to_owned()),
    };
    let size = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(scale)).ok_or(FORM)?;
    rules::disk(size).map_err(|unfit| unfit.to_string())?;
    Ok(size)
}

fn label(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err("write KEY=VALUE".to_owned()),
    }
}

/// For names that become part of paths and of nftables scripts.
fn plain_name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
    if (1..=63).contains(&text.len())
        && text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(allowed)
    {
        Ok(text.to_owned())
    } else {
        Err("use 1 to 63 letters, digits, '-' or '_', beginning with a letter".to_owned())
    }
}

/// Below the root of the hierarchy and nowhere else; with the letters of a systemd unit's name.
fn cgroup_path(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.@:\\".contains(c);
    let plain = |name: &str| {
        (1..=255).contains(&name.len())
            && name.starts_with(|c: char| c.is_ascii_alphanumeric())
            && name.chars().all(allowed)
    };
    let path = text.strip_prefix('/').unwrap_or(text);
    if path.split('/').all(plain) {
        Ok(path.to_owned())
    } else {
        Err("write names of letters, digits and -_.@: with / between them, as in roster or system.slice/a.service/b"
            .to_owned())
    }
}

fn interface_name(text: &str) -> Result<String, String> {
    if text.len() > 15 {
        return Err("an interface's name has at most 15 characters".to_owned());
    }
    plain_name(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(arguments: &[&str]) -> Result<Cli, String> {
        Cli::try_parse_from([&["roster-agent"], arguments].concat()).map_err(|error| error.to_string())
    }

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory;
        Cli::command().debug_assert();
    }

    #[test]
    fn flags_are_accepted_before_and_after_the_subcommand() {
        let cli = parse(&["--node", "a", "clean", "--purge", "--metrics", "none"]).unwrap();
        assert!(matches!(cli.command, Some(Command::Clean { purge: true, grace: 2 })));
        assert_eq!(cli.flags.metrics, Metrics(None));
        assert_eq!(cli.flags.config().unwrap().node.as_str(), "a");
    }

    #[test]
    fn a_host_that_has_joined_keeps_its_name() {
        let data = tempfile::tempdir().unwrap();
        let identity = crate::tests::certified("vm7");
        let flags = ["--data-dir", data.path().to_str().unwrap()];
        let config = |more: &[&str]| parse(&[&flags, more].concat()).unwrap().flags.config();
        assert_eq!(config(&["--node", "vm1"]).unwrap().node.as_str(), "vm1");
        membership::directory(data.path()).save(&identity).unwrap();
        assert_eq!(config(&[]).unwrap().node.as_str(), "vm7");
        assert_eq!(config(&["--node", "vm7"]).unwrap().node.as_str(), "vm7");
        let error = config(&["--node", "vm1"]).unwrap_err().to_string();
        assert!(error.contains("as node vm7") && error.contains("--node vm1"), "{error}");
    }

    #[test]
    fn runtimes_have_a_name_and_a_program() {
        let cli =
            parse(&["--runtime", "runsc=/usr/bin/runsc --network=host", "--runtime", "crun=/usr/bin/crun"]).unwrap();
        let names: Vec<_> = cli.flags.runtimes.iter().map(|(name, runtime)| format!("{name} {runtime}")).collect();
        assert_eq!(names, ["runsc /usr/bin/runsc", "crun /usr/bin/crun"]);
        for wrong in ["runsc", "=/usr/bin/runsc", "a/b=/x", "runsc=runsc", "runsc="] {
            assert!(parse(&["--runtime", wrong]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_containers_disk_has_a_size() {
        let size = |text: &str| parse(&["--container-disk", text]).map(|cli| cli.flags.container_disk);
        assert_eq!((size("512m"), size("2G")), (Ok(Some(512 << 20)), Ok(Some(2 << 30))));
        for wrong in ["", "m", "5", "1.5g", "-1g", "1m", "2t", "99999999999999999999t"] {
            assert!(size(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn only_local_addresses_are_taken() {
        assert_eq!(controller("/run/c.sock").unwrap(), "unix:///run/c.sock");
        assert_eq!(controller("http://localhost:7070/").unwrap(), "http://127.0.0.1:7070");
        assert!(controller("http://[::1]:7070").is_ok());
        for wrong in ["http://192.0.2.1:7070", "https://127.0.0.1:1", "unix://relative", "127.0.0.1:7070", ""] {
            assert!(controller(wrong).is_err(), "{wrong}");
        }
        assert!(metrics("0.0.0.0:9641").is_err());
    }

    #[test]
    fn names_cannot_leave_their_place() {
        for wrong in ["", "../x", "a/b", "a b", "-a", "a\"", "a;b"] {
            assert!(plain_name(wrong).is_err(), "{wrong}");
        }
        for wrong in ["", "/", "../x", "a/../b", "a/./b", "a//b", "a/", "a b", "-a", ".hidden", "a;b"] {
            assert!(cgroup_path(wrong).is_err(), "{wrong}");
        }
        assert_eq!(cgroup_path("/system.slice/a@1.service/held").as_deref(), Ok("system.slice/a@1.service/held"));
        assert!(interface_name("roster0").is_ok() && interface_name("sixteen-letters-").is_err());
    }
}
