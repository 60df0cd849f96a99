//! The grammar of the command line and its help.

mod cluster;
mod containers;
mod debug;
mod live;
mod node;

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};

pub use self::cluster::{
    AgentDir, Cluster, Context, Init, Join, MachineRole, PersonRole, Restore, Setting, Sure, Token, User, What,
};
pub use self::containers::{Commit, Diff, Export, Kill, Pause, Restart, Stats, Top, Unpause};
pub use self::debug::Debug;
pub use self::live::{Attach, Cp, Exec, Inside, Place, Run};
pub use self::node::{Drain, Label, LabelChange, Node, Nodes as NamedNodes, RemoveNodes};
use crate::{client::Wishes, render::Format};

/// Sorted apart, or clap strews these among the options of each command.
const EVERYWHERE: &str = "Global options";

const ABOUT: &str = "\
Write what you want in a Compose file, apply it, and Roster keeps real containers matching it: restarted when they \
fail or turn unhealthy, and scaled as you say.";

const EXAMPLES: &str = "\
Examples:
  rctl plan spec.yaml            what an apply would do
  rctl apply spec.yaml           do it, and wait until it is so
  rctl ps                        every replica, and why it is not running
  rctl logs -f web               what all replicas of web print
  rctl exec -it web.2 sh         a shell in one of them
  rctl run --rm web ./migrate    its spec once more, for another command
  rctl cp web.2:/var/log .       files out of it
  rctl scale web=5               more of it
  rctl rm hello                  take the stack down

Exit codes:
  0    done
  1    an error, which is printed
  2    `plan` only: there are changes to apply
  3    applied, but not as wanted in time; what is wrong is printed
  130  Ctrl-C stopped the watching; the work goes on
`exec` and `run` end as the program does that they ran; their --help says more.";

#[derive(Debug, Parser)]
#[command(name = "rctl", version, about = "Roster's command line", long_about = ABOUT, after_help = EXAMPLES)]
#[command(max_term_width = 100, disable_help_subcommand = true, arg_required_else_help = true)]
pub struct Cli {
    #[command(flatten)]
    pub connection: Connection,

    /// Colours: auto means on a terminal only; NO_COLOR is obeyed
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN", help_heading = EVERYWHERE)]
    pub color: Color,

    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Args)]
pub struct Connection {
    /// A controller, as HOST:PORT or unix:///PATH; several with commas, or given again [default: the context's, else
    /// this host's controller]
    #[arg(long, global = true, env = "ROSTER_ENDPOINT", value_name = "ENDPOINT", value_delimiter = ',')]
    #[arg(help_heading = EVERYWHERE)]
    pub endpoint: Vec<String>,

    /// The cluster, by a name that `rctl context ls` lists
    #[arg(long, global = true, env = "ROSTER_CONTEXT", value_name = "NAME", help_heading = EVERYWHERE)]
    pub context: Option<String>,

    /// Speak as this file says, which `rctl user add` wrote
    #[arg(long, global = true, env = "ROSTER_CREDENTIALS", value_name = "FILE", help_heading = EVERYWHERE)]
    pub credentials: Option<PathBuf>,

    /// Be content with what one controller knows, also while nobody leads
    #[arg(long, global = true, help_heading = EVERYWHERE)]
    pub stale: bool,

    /// How long to try when no controller can answer
    #[arg(long, global = true, value_name = "DURATION", value_parser = duration, default_value = "10s")]
    #[arg(help_heading = EVERYWHERE)]
    pub request_timeout: Duration,
}

impl Connection {
    pub fn wishes(self) -> Wishes {
        let Self { endpoint, context, credentials, stale, request_timeout } = self;
        Wishes { endpoints: endpoint, context, credentials, stale, request_timeout }
    }
}

#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Make the cluster match a Compose file
    #[command(after_help = "\
Shows the plan, applies exactly that plan (it is planned again when the cluster changed meanwhile), then waits until \
every replica is up. Services of the stack that are missing from the file are shown, and removed only with --prune.

Examples:
  rctl apply spec.yaml
  rctl apply --prune --timeout 2m spec.yaml
  TAG=1.4 rctl apply -p shop compose.yaml
  generate-spec | rctl apply -p lab -")]
    Apply(Apply),

    /// Show what an apply would do, and do nothing
    #[command(after_help = "\
Exit codes: 0 nothing to do, 2 there are changes, 1 an error.

Examples:
  rctl plan spec.yaml
  rctl plan spec.yaml; test $? -ne 1 && echo the file is right
  rctl plan -o json spec.yaml")]
    Plan(Plan),

    /// List tasks: every replica, where it runs, and why it does not
    #[command(after_help = "\
Examples:
  rctl ps                  all stacks
  rctl ps hello            one stack
  rctl ps web              one service
  rctl ps -a web           also what ended and was replaced
  rctl ps -o wide          more columns
  rctl ps -o json          for programs")]
    Ps(Ps),

    /// List services
    #[command(after_help = "Examples:\n  rctl services\n  rctl services hello -o yaml")]
    Services(Services),

    /// Everything known of a service, a task or a node
    #[command(after_help = "\
TARGET is a service (web, hello/web), a replica (web.2), a task's id or its beginning, or a node.

Examples:
  rctl inspect web
  rctl inspect web.2             with the history of the slot
  rctl inspect -o json vm1")]
    Inspect(Inspect),

    /// What containers print
    #[command(after_help = "\
TARGET is a service or a whole stack (all replicas, each line prefixed), a replica (web.2) or a task's id. Following \
a service joins the replicas that come later.

Examples:
  rctl logs web
  rctl logs -f --tail 10 web
  rctl logs --since 5m -t web.2
  rctl logs --since 2h --until 1h web
  rctl logs k3f9x2 --since 2026-01-31T12:00:00Z")]
    Logs(Logs),

    /// Run a service's spec once, with another command
    #[command(after_help = live::RUN)]
    Run(Run),

    /// Run a program in a running container
    #[command(after_help = live::EXEC)]
    Exec(Exec),

    /// Watch a container's own program, and type to it
    #[command(after_help = live::ATTACH)]
    Attach(Attach),

    /// Open a shell of the node's in a container, also in one that has failed
    #[command(after_help = debug::HELP)]
    Debug(Debug),

    /// Copy files into running containers and out of them
    #[command(after_help = live::CP)]
    Cp(Cp),

    /// Change how many replicas services have
    #[command(after_help = "\
All of them or, when one is refused, none.

Examples:
  rctl scale web=5
  rctl scale hello/web=5 hello/db=2 --detach")]
    Scale(Scale),

    /// The processes in containers
    Top(Top),

    /// What containers use, live: processors, memory, network, disks, pressure
    Stats(Stats),

    /// What a container changed in its files
    Diff(Diff),

    /// All files of a container, as a tar archive
    Export(Export),

    /// Make an image of a container's files, on every node
    Commit(Commit),

    /// Send a signal to the main process of containers
    Kill(Kill),

    /// Make containers stand still
    Pause(Pause),

    /// Let containers go on that were paused
    Unpause(Unpause),

    /// Replace replicas with new ones of the same spec
    Restart(Restart),

    /// Remove stacks or services, with their containers
    #[command(after_help = "\
Examples:
  rctl rm hello          the whole stack
  rctl rm hello/web      one service")]
    Rm(Rm),

    /// The cluster's hosts: how they are, what they take, and what they are called
    #[command(subcommand, arg_required_else_help = true)]
    Node(Node),

    /// What happened, and what happens
    #[command(after_help = "\
Shows the events that the controller still keeps, oldest first.

Examples:
  rctl events
  rctl events -f
  rctl events -f -o json web")]
    Events(Events),

    /// The images on the nodes
    #[command(subcommand, arg_required_else_help = true)]
    Image(Image),

    /// The controllers: how they are, who votes, backup and recovery
    #[command(subcommand, arg_required_else_help = true)]
    Cluster(Cluster),

    /// Tokens, which let machines join the cluster
    #[command(subcommand, arg_required_else_help = true)]
    Token(Token),

    /// People, who may use the cluster
    #[command(subcommand, arg_required_else_help = true)]
    User(User),

    /// The clusters that this rctl knows
    #[command(subcommand, arg_required_else_help = true)]
    Context(Context),

    /// The versions of rctl and of the controllers
    #[command(after_help = "Examples:\n  rctl version\n  rctl version --client\n  rctl version -o json")]
    Version(Version),

    /// Print a completion script for a shell
    #[command(after_help = "\
Examples:
  rctl completion bash > /etc/bash_completion.d/rctl
  rctl completion zsh > \"${fpath[1]}/_rctl\"")]
    Completion {
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
}

#[derive(Debug, Args)]
pub struct SpecFile {
    /// The Compose file; - reads standard input [default: spec.yaml, else compose.yaml, else compose.yml]
    #[arg(value_name = "FILE")]
    pub file: Option<PathBuf>,

    /// The stack's name, instead of the file's `name` or its folder's
    #[arg(short, long, value_name = "NAME", env = "COMPOSE_PROJECT_NAME")]
    pub project_name: Option<String>,

    /// Read variables from this file instead of .env beside the Compose file
    #[arg(long, value_name = "FILE")]
    pub env_file: Option<PathBuf>,

    /// Also remove the stack's services that are not in the file
    #[arg(long)]
    pub prune: bool,
}

#[derive(Debug, Args)]
pub struct Waiting {
    /// Return once the change is durable, without waiting for it to be carried out
    #[arg(short, long)]
    pub detach: bool,

    /// How long to wait for it to be carried out, as 90s or 5m; 0 waits for ever
    #[arg(long, default_value = "5m", value_name = "DURATION", value_parser = duration)]
    pub timeout: std::time::Duration,

    /// How long a replica without a healthcheck must have run to count as up: one that crashes at its start is told
    #[arg(long, default_value = "1s", value_name = "DURATION", value_parser = duration)]
    pub settle: std::time::Duration,
}

#[derive(Debug, Args)]
pub struct Apply {
    #[command(flatten)]
    pub spec: SpecFile,
    #[command(flatten)]
    pub waiting: Waiting,
    /// Print neither the plan nor the progress
    #[arg(short, long)]
    pub quiet: bool,
}

#[derive(Debug, Args)]
pub struct Plan {
    #[command(flatten)]
    pub spec: SpecFile,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Output {
    /// How to print it
    #[arg(short, long, value_enum, default_value_t = Format::Table, value_name = "FORMAT")]
    pub output: Format,
}

#[derive(Debug, Args)]
pub struct Ps {
    /// A stack, a service, or a replica [default: all]
    pub target: Option<String>,
    /// Also tasks that ended and were replaced, as long as they are kept
    #[arg(short, long)]
    pub all: bool,
    /// Only tasks of this node
    #[arg(long)]
    pub node: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Services {
    /// Only this stack's
    pub stack: Option<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    Service,
    Task,
    Node,
}

#[derive(Debug, Args)]
pub struct Inspect {
    /// A service, a replica, a task's id or its beginning, or a node
    pub target: String,
    /// What TARGET is, where one name could be several things
    #[arg(long = "type", value_enum, value_name = "KIND")]
    pub kind: Option<Kind>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Logs {
    /// A stack, a service, a replica, or a task's id or its beginning
    pub target: String,
    /// Of the last container of a replica that failed alone
    #[arg(long)]
    pub failed: bool,
    /// Go on with new lines
    #[arg(short, long)]
    pub follow: bool,
    /// Only lines since this moment: 10m (ago), 2026-01-31T12:00:00Z, or without the Z of this machine's time zone
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub since: Option<Moment>,
    /// Only lines up to this moment; ends --follow when it comes
    #[arg(long, value_name = "WHEN", value_parser = moment)]
    pub until: Option<Moment>,
    /// Only the last N lines of each task, or all
    #[arg(short = 'n', long, value_name = "N", value_parser = tail, default_value = "all", hide_default_value = true)]
    pub tail: Tail,
    /// Begin each line with its time
    #[arg(short, long)]
    pub timestamps: bool,
}

#[derive(Debug, Args)]
pub struct Scale {
    /// SERVICE=REPLICAS
    #[arg(required = true, value_name = "SERVICE=N", value_parser = replicas)]
    pub replicas: Vec<(String, u32)>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct Rm {
    /// A stack, or a service
    #[arg(required = true)]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
pub struct Events {
    /// A stack, a service, or a replica [default: all]
    pub target: Option<String>,
    /// Go on with new events
    #[arg(short, long)]
    pub follow: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
pub struct Nodes {
    /// Only this node; may be given again [default: every node that is Ready]
    #[arg(long = "node", value_name = "NODE")]
    pub nodes: Vec<String>,
}

#[derive(Debug, Subcommand)]
pub enum Image {
    /// Copy an image from a tar archive to the nodes
    #[command(after_help = "\
The archive is what `docker save`, `podman save` or `skopeo copy` write: docker-archive or OCI layout, plain, gzip \
or zstd.

Examples:
  rctl image load hello.tar
  docker save shop:1.4 | rctl image load -")]
    Load {
        /// The archive; - reads standard input
        file: PathBuf,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// Fetch an image from a registry to the nodes
    #[command(after_help = "Examples:\n  rctl image pull 127.0.0.1:5000/shop:1.4")]
    Pull {
        reference: String,
        #[command(flatten)]
        nodes: Nodes,
    },
    /// List the nodes' images
    Ls {
        #[command(flatten)]
        nodes: Nodes,
        #[command(flatten)]
        output: Output,
    },
    /// Remove an image from the nodes; one in use is refused
    Rm {
        reference: String,
        #[command(flatten)]
        nodes: Nodes,
    },
}

#[derive(Debug, Args)]
pub struct Version {
    /// Do not ask the controller
    #[arg(long)]
    pub client: bool,
    #[command(flatten)]
    pub output: Output,
}

/// A point in time as the user wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    Ago(std::time::Duration),
    At(jiff::Timestamp),
}

fn duration(text: &str) -> Result<std::time::Duration, String> {
    if text == "0" {
        return Ok(std::time::Duration::ZERO);
    }
    text.parse::<jiff::SignedDuration>()
        .ok()
        .and_then(|duration| std::time::Duration::try_from(duration).ok())
        .ok_or_else(|| "write a duration such as 90s, 5m or 1h30m".to_owned())
}

fn moment(text: &str) -> Result<Moment, String> {
    if let Ok(at) = text.parse::<jiff::Timestamp>() {
        return Ok(Moment::At(at));
    }
    // A day is its beginning.
    if let Ok(local) = text.parse::<jiff::civil::DateTime>()
        && let Ok(at) = local.to_zoned(jiff::tz::TimeZone::system())
    {
        return Ok(Moment::At(at.timestamp()));
    }
    duration(text)
        .map(Moment::Ago)
        .map_err(|_| "write how long ago (10m, 2h) or a moment (2026-01-31T12:00:00Z, 2026-01-31)".to_owned())
}

/// How much of a log's end; `None` is all of it.
pub type Tail = Option<u64>;

fn tail(text: &str) -> Result<Tail, String> {
    match text {
        "all" => Ok(None),
        text => text.parse().map(Some).map_err(|_| "write a number of lines, or all".to_owned()),
    }
}

fn replicas(text: &str) -> Result<(String, u32), String> {
    let (service, count) = text.split_once('=').ok_or("write SERVICE=REPLICAS, as in web=3")?;
    let count = count.parse().map_err(|_| format!("{count:?} is not a number of replicas"))?;
    Ok((service.to_owned(), count))
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_grammar_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn moments_and_durations() {
        assert_eq!(duration("1h30m"), Ok(std::time::Duration::from_secs(5400)));
        assert_eq!(duration("0"), Ok(std::time::Duration::ZERO));
        assert!(duration("-5s").is_err());
        assert!(duration("soon").is_err());
        assert_eq!(moment("10m"), Ok(Moment::Ago(std::time::Duration::from_secs(600))));
        let at = |text: &str| text.parse().map(Moment::At).map_err(|error: jiff::Error| error.to_string());
        assert_eq!(moment("2026-01-31T12:00:00Z"), at("2026-01-31T12:00:00Z"));
        assert_eq!(moment("2026-01-31T12:00:00.5+02:00"), at("2026-01-31T10:00:00.5Z"));
        for local in ["2026-01-31", "2026-01-31T12:00", "2026-01-31 12:00:00"] {
            assert!(matches!(moment(local), Ok(Moment::At(_))), "{local}");
        }
        assert!(moment("yesterday").is_err());
        assert_eq!(replicas("hello/web=3"), Ok(("hello/web".to_owned(), 3)));
        assert!(replicas("web").is_err());
        assert!(replicas("web=many").is_err());
    }
}
