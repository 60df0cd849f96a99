//! The grammar of what is done with containers that run.

use std::path::PathBuf;

use clap::Args;

use super::{Output, Waiting};

#[derive(Debug, Args)]
#[command(after_help = "\
TARGET is a service or a whole stack (all replicas that run), a replica (web.2), or a task's id. Whether a container \
that ends by the signal is replaced, and when, is its restart policy's to say; `rctl ps` shows it. To replace it in any \
case there is `rctl restart`, to end it for good `rctl scale` and `rctl rm`.

Examples:
  rctl kill web.2                 SIGKILL
  rctl kill -s HUP web            every replica reads its configuration again")]
pub struct Kill {
    /// Which one: SIGHUP, HUP, 1 or RTMIN+3
    #[arg(short, long, value_name = "SIGNAL", default_value = "SIGKILL", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub signal: String,
    /// Services, stacks, replicas, or tasks' ids or their beginnings
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
TARGET is a service or a whole stack, whose replicas are replaced as an update replaces them: by `update_config`'s \
parallelism, order and delay, each next batch when the last is up. Or a replica (web.2) or a task's id: that one alone \
is stopped, and replaced at once. Also what has ended, or waits for its next try, begins anew.

Waits until the new ones are up; Ctrl-C stops the waiting only.

Examples:
  rctl restart web
  rctl restart web.2
  rctl restart hello --detach")]
pub struct Restart {
    /// Services, stacks, replicas, or tasks' ids or their beginnings
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub waiting: Waiting,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Pids and users are the container's own. CPU is the share of one processor over the process's whole life, TIME what it \
has had of processors, MEMORY what is resident of it.

Examples:
  rctl top web.2
  rctl top web                    every replica
  rctl top -o json web.2")]
pub struct Top {
    /// A service, a stack, a replica, or a task's id or its beginning
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Drawn anew each second on a terminal, printed one below the other elsewhere, until Ctrl-C. CPU 100 % is one processor. \
MEMORY leaves out the cache of files that can be had back at once; its limit is the container's or else the host's. \
NETWORK (received / sent) and DISK (read / written) are since the container's start. FILES is what its \
own files take where their disk is limited (storage_opt). PRESSURE is the share of the last \
ten seconds in which some process waited for processor / memory / disk, where the kernel counts that (cgroup v2).

Examples:
  rctl stats                      every container
  rctl stats web db
  rctl stats --no-stream -o json | jq -r '.[] | select(.cpu_percent > 90) | .name'")]
pub struct Stats {
    /// Services, stacks, replicas, or tasks' ids or their beginnings [default: all that run]
    #[arg(value_name = "TARGET")]
    pub targets: Vec<String>,
    /// Measure for one second, print that, and end
    #[arg(long)]
    pub no_stream: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
No process of the container runs any more until `rctl unpause`; it keeps its memory and its connections. Published ports \
lead to the other replicas meanwhile, and its healthcheck rests. It can be stopped, replaced and killed as any other, and \
stays paused over restarts of the daemons; what takes its place runs. A signal waits until it goes on, but for SIGKILL.

Examples:
  rctl pause web.2
  rctl pause web                  every replica that runs")]
pub struct Pause {
    /// Services, stacks, replicas, or tasks' ids or their beginnings
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  rctl unpause web.2\n  rctl unpause web")]
pub struct Unpause {
    /// Services, stacks, replicas, or tasks' ids or their beginnings
    #[arg(required = true, value_name = "TARGET")]
    pub targets: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Each line is A (added), C (changed) or D (deleted) and a path; in a directory that is C something changed, or its owner \
or mode. What is mounted into the container is not its own. Names that are no plain text are written as in a string of C.

Examples:
  rctl diff web.2
  rctl diff --failed web.2        of what failed last, which is kept
  rctl diff -o json web.2")]
pub struct Diff {
    /// A service with one replica, a replica, or a task's id or its beginning
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Of the last container that failed, not of what runs
    #[arg(long)]
    pub failed: bool,
    #[command(flatten)]
    pub output: Output,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The image is the container's own with one layer more: what the container added, changed and removed, without what is \
mounted into it. It is given to every node that is Ready; one that lacks the container's image pulls that, or says that \
it cannot. Its configuration is the image's, changed by --change, not what the service's spec says instead: that stays \
the spec's to say. The container stands still for as long as its files are read.

Examples:
  rctl commit web.2 web:fixed
  rctl commit -m 'with the schema' -a ann db.1 db:seeded
  rctl commit -c 'CMD [\"serve\"]' -c 'ENV MODE=demo' -c 'EXPOSE 80' web.1 demo")]
pub struct Commit {
    /// Say what it is, in the image's history
    #[arg(short, long, value_name = "TEXT")]
    pub message: Option<String>,
    /// Who made it
    #[arg(short, long, value_name = "NAME")]
    pub author: Option<String>,
    /// Change the configuration, as a Dockerfile does: CMD, ENTRYPOINT, ENV, LABEL, WORKDIR, USER, EXPOSE. May be
    /// given again
    #[arg(short, long, value_name = "INSTRUCTION")]
    pub change: Vec<String>,
    /// Let the container go on meanwhile, which may tear what it is writing
    #[arg(long)]
    pub no_pause: bool,
    /// A service with one replica, a replica, or a task's id or its beginning
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// What to call the image
    #[arg(value_name = "IMAGE[:TAG]")]
    pub image: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
As the container sees them, without what is mounted into it. It goes on meanwhile; `rctl pause` it first where all must \
be of one moment.

Examples:
  rctl export web.2 -o web.tar
  rctl export web.2 | tar -x -C /mnt")]
pub struct Export {
    /// A service with one replica, a replica, or a task's id or its beginning
    #[arg(value_name = "TARGET")]
    pub target: String,
    /// Of the last container that failed, not of what runs
    #[arg(long)]
    pub failed: bool,
    /// Write to this file, which appears when it is whole [default: standard output]
    #[arg(short, long, value_name = "FILE")]
    pub output: Option<PathBuf>,
}
