//! The grammar of looking into containers with the node's own programs.

use clap::Args;

use super::{Inside, Output};

pub(super) const HELP: &str = "\
The programs are those of the container's node (sh, ls, ps, strace, ip, whatever is installed there), so the image needs \
none. /usr, /bin, /sbin and /lib* are the node's, read-only; everything else is the container's, and its whole root, \
with its own /usr, is /container. User, limits, network and confinement are the container's, as with `rctl exec`; it \
begins in /. Without COMMAND a shell is opened; at a terminal it has one (-it).

Of each replica the last container that failed is kept with its files, its log and its last figures: until the next one \
fails, or the replica or its service is removed. --failed goes into that one, as does a TARGET of which none runs: with \
its files as it left them, in namespaces of its own, without network and with read-only binds, one visitor at a time. \
Read it also by the --failed of `diff`, `export`, `cp` and `logs`. `--info` tells how it ended and what it used.

Exit codes: as those of `rctl exec`.

Examples:
  rctl debug web.2
  rctl debug --failed web.2 cat /var/log/app.log
  rctl debug -u root web.2 -- strace -p 1
  rctl debug --info web.2";

#[derive(Debug, Args)]
pub struct Debug {
    #[command(flatten)]
    pub inside: Inside,
    /// Not into what runs, but into the last container that failed
    #[arg(long)]
    pub failed: bool,
    /// Only tell how the last container that failed ended, and what it used
    #[arg(long, conflicts_with_all = ["interactive", "tty", "user", "workdir", "env", "privileged", "command"])]
    pub info: bool,
    #[command(flatten)]
    pub output: Output,
    /// A service, a replica, or a task's id or its beginning
    pub target: String,
    /// The program and its arguments, instead of a shell; a -- before it may be left out
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}
