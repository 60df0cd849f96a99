//! The grammar of what is about the cluster itself: its controllers, who may join and who may speak, and contexts.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Subcommand, ValueEnum};
use roster_tls::Token as JoinToken;

use super::{Output, duration};
use crate::context;

/// Where the agent's package keeps its state.
const AGENT_DATA: &str = "/var/lib/roster/agent";

#[derive(Debug, Subcommand)]
pub enum Cluster {
    /// Make this host's controller the first of a cluster that others can join
    #[command(after_help = "\
Run it as root on the host of a controller. What the controller already runs goes on. The agent on this host gets an \
identity too, unless --no-agent. The two tokens that are printed let controllers and agents join for a day; `rctl \
token create` makes others.

Examples:
  rctl cluster init
  rctl cluster init --advertise 10.0.0.1:7640 --name vm1")]
    Init(Init),

    /// Join this host's controller, or its agent, to a cluster
    #[command(after_help = "\
Run it as root on the host that joins. The token says which cluster it is, and makes sure that it is no other.

A controller must hold nothing yet, or wait to be told (`roster-controller --wait`). It first catches up, then votes; \
with --spare it stands by and takes the place of a voter that is gone for good. An agent that runs already needs no \
restart.

Examples:
  rctl cluster join roster-join-v1... --controller
  rctl cluster join roster-join-v1... --controller --spare --advertise 10.0.0.4:7640
  rctl cluster join roster-join-v1... --agent
  rctl cluster join roster-join-v1... --agent --node lab7")]
    Join(Join),

    /// Take this host's controller out of its cluster, and empty it
    #[command(after_help = "\
Run it as root on the host of the controller that goes. One that leads hands over first.

Examples:
  rctl cluster leave
  rctl cluster leave --force         although no other controller answers")]
    Leave {
        /// Even when the others cannot be asked: run `rctl cluster remove` there afterwards
        #[arg(long)]
        force: bool,
        #[command(flatten)]
        sure: Sure,
    },

    /// Give a spare or learning controller a vote
    #[command(after_help = "Returns once the new configuration is in force.\n\nExamples:\n  rctl cluster promote vm4")]
    Promote(Controller),

    /// Take a controller's vote: it keeps up as a spare
    #[command(after_help = "Returns once the new configuration is in force.\n\nExamples:\n  rctl cluster demote vm4")]
    Demote(Controller),

    /// Have another controller lead
    #[command(after_help = "\
It must have a vote and keep up. Nothing stops; returns once it leads.

Examples:
  rctl cluster transfer vm2")]
    Transfer(Controller),

    /// Take a controller out of the cluster, also a dead one
    #[command(after_help = "\
Its certificate is refused from then on. A controller that is alive is better told on its own host: `rctl cluster \
leave`.

Examples:
  rctl cluster remove vm3
  rctl cluster remove 9f3c51d2a7e80b44 --yes      one of several of the same name, by its id")]
    Remove {
        #[command(flatten)]
        controller: Controller,
        #[command(flatten)]
        sure: Sure,
    },

    /// The controllers, who leads, and whether each keeps up
    #[command(after_help = "\
LAG is how many entries of the log a controller has yet to confirm. Any controller answers, also while nobody leads.

Examples:
  rctl cluster status
  rctl cluster status -o wide
  rctl cluster status -o json | jq '.controllers[] | select(.reachable | not)'")]
    Status(Output),

    /// Change the cluster's settings
    #[command(after_help = "\
Settings:
  replace-controller-after   a voter that was unreachable this long is replaced by a spare; never [2m]
  brake-for                  how long the brake holds by itself; never: until it is released [10m]
  certificate-lifetime       of the certificates that are issued from now on [90d]

Examples:
  rctl cluster set replace-controller-after=2m
  rctl cluster set brake-for=never certificate-lifetime=90d")]
    Set {
        #[arg(required = true, value_name = "KEY=VALUE", value_parser = setting)]
        settings: Vec<(Setting, Duration)>,
    },

    /// Let the tasks of vanished nodes be moved again
    #[command(after_help = "\
When more than half of the nodes vanish within a minute, it is more likely the network than the nodes: nothing is \
moved until an operator says so here, a timer runs out (`rctl cluster set brake-for=10m`), or they come back.

Examples:
  rctl cluster release")]
    Release,

    /// Write the whole state to a file, as of one moment, while everything goes on
    #[command(after_help = "\
The cluster's authority with its key is inside: keep the file as you keep a password.

Examples:
  rctl cluster backup roster.backup
  rctl cluster backup - | gpg -e -r ops > roster.backup.gpg")]
    Backup {
        /// Where to; - writes standard output
        file: PathBuf,
    },

    /// Begin a cluster from a backup, on this host's controller
    #[command(after_help = "\
Run it as root on the host of a controller that waits to be told (`roster-controller --wait`, an empty data \
directory) or holds nothing. It becomes the only controller; the others join it anew. Agents and people keep their \
certificates: agents find the controller where one was before, or by what `rctl cluster join --agent` tells them.

Examples:
  rctl cluster restore roster.backup
  rctl cluster restore roster.backup --force      over what this controller holds, which is lost then")]
    Restore(Restore),

    /// Go on with this host's controller alone, after the majority is lost for good
    #[command(after_help = "\
Run it as root on the surviving controller that has the most (`rctl cluster status --stale` on each: the highest \
COMMIT). What only the lost ones had is lost with them. The lost ones must never be started again with their old \
data.

Examples:
  rctl cluster recover --lost vm2 --lost vm3")]
    Recover {
        /// A controller that is given up, by name or id; each of the others
        #[arg(long, required = true, value_name = "NAME")]
        lost: Vec<String>,
        #[command(flatten)]
        sure: Sure,
    },

    /// Make a new authority beside the present one
    #[command(after_help = "\
Everybody renews under the new authority; once all have, the old one is no longer trusted. Nothing stops meanwhile.

Examples:
  rctl cluster rotate-ca
  rctl cluster status          the authorities that are trusted, the signing one first")]
    RotateCa,
}

#[derive(Debug, Args)]
pub struct Init {
    /// Where the others reach this controller [default: this host's address and the port the controller listens on]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The controller's name [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
    /// Leave the agent on this host as it is
    #[arg(long)]
    pub no_agent: bool,
    #[command(flatten)]
    pub agent: AgentDir,
}

#[derive(Debug, Args)]
pub struct AgentDir {
    /// The agent's data directory
    #[arg(long, value_name = "DIR", env = "ROSTER_DATA_DIR", default_value = AGENT_DATA)]
    pub agent_data_dir: PathBuf,
    /// The node's name [default: the host's name]
    #[arg(long, value_name = "NAME", env = "ROSTER_NODE")]
    pub node: Option<String>,
}

#[derive(Debug, Args)]
#[group(id = "what", required = true, multiple = false)]
pub struct What {
    /// This host's controller joins
    #[arg(long)]
    pub controller: bool,
    /// This host's agent joins
    #[arg(long)]
    pub agent: bool,
}

#[derive(Debug, Args)]
pub struct Join {
    /// What `rctl cluster init` or `rctl token create` printed
    #[arg(value_name = "TOKEN")]
    pub token: JoinToken,
    #[command(flatten)]
    pub what: What,
    /// Keep up without a vote, and stand in for a controller that is gone for good
    #[arg(long, conflicts_with = "agent")]
    pub spare: bool,
    /// Where the others reach this controller [default: this host's address and the port the controller listens on]
    #[arg(long, value_name = "HOST:PORT", conflicts_with = "agent")]
    pub advertise: Option<String>,
    /// The controller's name [default: the host's name]
    #[arg(long, conflicts_with = "agent")]
    pub name: Option<String>,
    #[command(flatten)]
    pub agent: AgentDir,
}

#[derive(Debug, Args)]
pub struct Restore {
    /// What `rctl cluster backup` wrote; - reads standard input
    pub file: PathBuf,
    /// Although this controller holds something, which is lost then; not while others are in its cluster
    #[arg(long)]
    pub force: bool,
    /// Where the others reach this controller [default: this host's address and the port the controller listens on]
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The controller's name [default: the host's name]
    #[arg(long)]
    pub name: Option<String>,
}

#[derive(Debug, Args)]
pub struct Controller {
    /// Its name or id, as `rctl cluster status` shows them
    #[arg(value_name = "CONTROLLER")]
    pub controller: String,
}

#[derive(Debug, Args)]
pub struct Sure {
    /// Do not ask
    #[arg(short, long)]
    pub yes: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Setting {
    ReplaceControllerAfter,
    BrakeFor,
    CertificateLifetime,
}

fn setting(text: &str) -> Result<(Setting, Duration), String> {
    let (key, value) = text.split_once('=').ok_or("write KEY=VALUE, as in brake-for=10m")?;
    let setting = match key {
        "replace-controller-after" => Setting::ReplaceControllerAfter,
        "brake-for" => Setting::BrakeFor,
        "certificate-lifetime" => Setting::CertificateLifetime,
        _ => {
            return Err(format!(
                "{key:?} is no setting: there are replace-controller-after, brake-for and certificate-lifetime"
            ));
        }
    };
    let value = match value {
        "never" if setting != Setting::CertificateLifetime => Duration::ZERO,
        value => long_duration(value)?,
    };
    Ok((setting, value))
}

/// Also in days, which certificates last.
fn long_duration(text: &str) -> Result<Duration, String> {
    const HINT: &str = "write a duration such as 90s, 10m, 24h or 90d";
    let days = text.strip_suffix('d').filter(|days| days.bytes().all(|b| b.is_ascii_digit()));
    let Some(days) = days else { return duration(text).map_err(|_| HINT.to_owned()) };
    let days: u64 = days.parse().map_err(|_| HINT.to_owned())?;
    days.checked_mul(24 * 60 * 60).map(Duration::from_secs).ok_or_else(|| HINT.to_owned())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum MachineRole {
    Controller,
    Agent,
}

#[derive(Debug, Subcommand)]
pub enum Token {
    /// Make a token that lets machines join
    #[command(after_help = "\
It is shown once; the cluster keeps only its digest.

Examples:
  rctl token create --role agent
  rctl token create --role agent --ttl 1h --uses 20
  rctl token create --role controller")]
    Create {
        /// As what its holders join
        #[arg(long, value_enum)]
        role: MachineRole,
        /// How long it can be used [default: 24h]
        #[arg(long, value_name = "DURATION", value_parser = long_duration)]
        ttl: Option<Duration>,
        /// How many machines can use it [default: 1 for controllers, 100 for agents]
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        uses: Option<u32>,
        /// Print the token and nothing else
        #[arg(short, long)]
        quiet: bool,
    },
    /// List the tokens that can still be used
    #[command(after_help = "Examples:\n  rctl token ls\n  rctl token ls -o json")]
    Ls(Output),
    /// Refuse a token from now on; who has joined with it stays
    #[command(after_help = "Examples:\n  rctl token revoke k3f9x2ab")]
    Revoke {
        /// As `rctl token ls` shows it
        #[arg(required = true)]
        id: Vec<String>,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum PersonRole {
    /// Everything, also tokens, users and the controllers
    Admin,
    /// Stacks, nodes and images
    Operator,
    /// Looking only
    Viewer,
}

#[derive(Debug, Subcommand)]
pub enum User {
    /// Let a person use the cluster
    #[command(after_help = "\
Makes a key, has the cluster sign it, and writes both to a file that the person takes up with `rctl context set NAME \
--from FILE`, or names with --credentials. Whoever holds the file is that person. Adding somebody again \
replaces the earlier certificate.

Examples:
  rctl user add ann --role operator --out ann.json
  rctl user add root --role admin --save-as lab       for yourself, as the context lab")]
    Add {
        name: String,
        /// What the person may do
        #[arg(long, value_enum)]
        role: PersonRole,
        /// Write the credentials to this file [default: NAME.json]
        #[arg(long, value_name = "FILE", conflicts_with = "save_as")]
        out: Option<PathBuf>,
        /// Keep the credentials yourself, as a context of this name
        #[arg(long, value_name = "NAME", value_parser = context::valid_name)]
        save_as: Option<String>,
        /// How long the certificate holds [default: what the cluster gives machines]
        #[arg(long, value_name = "DURATION", value_parser = long_duration)]
        ttl: Option<Duration>,
    },
    /// List the people who may use the cluster
    #[command(after_help = "Examples:\n  rctl user ls\n  rctl user ls -o json")]
    Ls(Output),
    /// Refuse a person's certificates from now on
    #[command(after_help = "Examples:\n  rctl user rm ann")]
    Rm {
        #[arg(required = true)]
        name: Vec<String>,
    },
}

#[derive(Debug, Subcommand)]
pub enum Context {
    /// List the contexts; * marks the one in use
    #[command(after_help = "Examples:\n  rctl context ls\n  rctl context ls -o json")]
    Ls(Output),
    /// Use a context from now on, or `local`: this host's controller
    #[command(after_help = "Examples:\n  rctl context use lab\n  rctl context use local")]
    Use { name: String },
    /// Everything about a context
    #[command(after_help = "Examples:\n  rctl context show\n  rctl context show lab -o yaml")]
    Show {
        /// [default: the one in use]
        name: Option<String>,
        #[command(flatten)]
        output: Output,
    },
    /// Add a context, or change one
    #[command(after_help = "\
The credentials are copied beside the configuration (~/.config/roster/config.yaml, or what ROSTER_CONFIG names). \
Endpoints come from them, unless --at names others.

Examples:
  rctl context set lab --from ann.json --use
  rctl context set lab --at 10.0.0.1,10.0.0.2,10.0.0.3
  rctl context set lab --refresh         the present controllers' addresses, and a new certificate")]
    Set {
        #[arg(value_parser = context::valid_name)]
        name: String,
        /// Where its controllers are: HOST:PORT or unix:///PATH; several with commas, or given again
        #[arg(long, value_name = "ENDPOINT", value_delimiter = ',')]
        at: Vec<String>,
        /// What `rctl user add` wrote
        #[arg(long = "from", value_name = "FILE")]
        from: Option<PathBuf>,
        /// Ask the cluster where its controllers are now, and for a certificate of today
        #[arg(long)]
        refresh: bool,
        /// And use it from now on
        #[arg(long = "use")]
        select: bool,
    },
    /// Forget a context and its credentials
    #[command(after_help = "Examples:\n  rctl context rm lab")]
    Rm { name: String },
}
