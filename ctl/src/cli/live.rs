//! The grammar of what is done in running containers.

use std::path::PathBuf;

use clap::Args;

use crate::commands::DetachKeys;

/// How a program is run in a container.
#[derive(Debug, Args)]
pub struct Inside {
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Run it as this user (and group), by name or number, instead of the container's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run it in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Set a variable; without a value rctl's own is passed on. May be given again
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// With all capabilities and without a filter of system calls
    #[arg(long)]
    pub privileged: bool,
}

/// How what goes on is left.
#[derive(Debug, Args)]
pub struct Leaving {
    /// The keys that leave a terminal, with commas: a letter, or ctrl- and a letter or one of @ [ \ ] ^ _
    #[arg(long, value_name = "KEYS", default_value = "ctrl-p,ctrl-q", value_parser = DetachKeys::parse)]
    pub detach_keys: DetachKeys,
}

pub(super) const EXEC: &str = "\
TARGET is a service (its first replica that runs), a replica (web.2) or a task's id. The program gets the container's \
environment, user, limits and confinement, and ends when rctl goes away or the connection to it breaks, unless it was \
left at its terminal by the detach keys (ctrl-p, then ctrl-q) or begun with -d: then it goes on to its own end or its \
container's, and nobody sees what it writes. (The first of the keys reaches the program with the key after it.) \
Signals and the terminal's size are passed on; the third Ctrl-C in a row \
ends a program that does not listen.

Exit codes: the program's own; 128 and its number for a signal that ended it; 127 when there is no such program, 126 \
when it cannot be run; 0 when it was left to go on; 1 for an error of rctl's, which is printed.

Examples:
  rctl exec web ls -l /etc
  rctl exec -it web.2 sh
  rctl exec -d web.2 ./reindex --all
  rctl exec -i db.1 -- psql -U app < dump.sql
  rctl exec -u root -w /tmp -e DEBUG=1 web ./check";

#[derive(Debug, Args)]
pub struct Exec {
    #[command(flatten)]
    pub inside: Inside,
    /// Return as soon as it runs, whatever it reads (-i has no effect) and writes
    #[arg(short, long)]
    pub detach: bool,
    #[command(flatten)]
    pub leaving: Leaving,
    /// A service, a replica, or a task's id or its beginning
    pub target: String,
    /// The program and its arguments; a -- before it may be left out
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

pub(super) const RUN: &str = "\
One task of the service's image, environment, volumes, network mode, limits and rights, placed as any other, beside the \
service. COMMAND takes the place of the service's `command`. It publishes no ports, has no healthcheck, and runs once: \
it is neither begun anew when it ends nor moved, and is lost with its node. What is done to its stack leaves it alone, \
but for `rctl rm STACK`. `rctl ps`, `logs`, `exec` and `rm` know it as SERVICE-run-XXXXXXXX.

Its program begins when rctl is there to watch it, so nothing that it prints is missed; with -d it begins by itself. Why \
it does not begin is told, and Ctrl-C takes back what has not begun. \
When rctl goes away it goes on, but its standard input ends. Signals are passed on, and the third Ctrl-C in a row leaves \
it.

Exit codes: the program's own; 128 and its number for a signal that ended it; 127 when there is no such program, 126 \
when it cannot be run; 130 when Ctrl-C took it back before it began; 1 for an error of rctl's, which is printed.

Examples:
  rctl run --rm web ./manage migrate
  rctl run --rm -it web sh
  rctl run --rm -i -e PGUSER=app db psql < dump.sql
  rctl run -d --name nightly hello/web ./report && rctl logs -f nightly";

#[derive(Debug, Args)]
pub struct Run {
    /// Forget it once it has ended, also when rctl does not live to see it; else it stays until `rctl rm`
    #[arg(long)]
    pub rm: bool,
    /// Pass standard input on
    #[arg(short, long)]
    pub interactive: bool,
    /// Give it a terminal
    #[arg(short, long)]
    pub tty: bool,
    /// Print its name and return when it runs; with -i and -t `rctl attach` can type to it
    #[arg(short, long)]
    pub detach: bool,
    /// Set a variable over the service's; without a value rctl's own is passed on. May be given again
    #[arg(short, long, value_name = "NAME[=VALUE]")]
    pub env: Vec<String>,
    /// Run it as this user (and group), by name or number, instead of the service's
    #[arg(short, long, value_name = "USER[:GROUP]")]
    pub user: Option<String>,
    /// Run it in this directory of the container
    #[arg(short, long, value_name = "DIR")]
    pub workdir: Option<String>,
    /// Instead of the service's entrypoint and command; words are split as a shell does it, and \"\" is none at all
    #[arg(long, value_name = "WORDS")]
    pub entrypoint: Option<String>,
    /// What to call it, instead of SERVICE-run-XXXXXXXX
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    #[command(flatten)]
    pub leaving: Leaving,
    /// A service, with its stack where several have it: STACK/SERVICE
    pub service: String,
    /// The program and its arguments [default: the service's]
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub command: Vec<String>,
}

pub(super) const ATTACH: &str = "\
What the program writes from now on; `rctl logs` has what it wrote before. It reads what is typed if its service has \
`tty` or `stdin_open`. It goes on when rctl goes away: at its terminal by the detach keys (ctrl-p, then ctrl-q), \
elsewhere by closing rctl. Signals are for the program, Ctrl-C too, unless --sig-proxy=false makes them end rctl alone.

Exit codes: the program's own when it ends; 0 after the detach keys; 1 for an error of rctl's, which is printed.

Examples:
  rctl attach db.1
  rctl attach --no-stdin --sig-proxy=false web
  rctl attach --detach-keys ctrl-a,d console";

#[derive(Debug, Args)]
pub struct Attach {
    /// Only watch
    #[arg(long)]
    pub no_stdin: bool,
    /// Pass signals on to the program
    #[arg(long, value_name = "BOOL", default_value_t = true, action = clap::ArgAction::Set)]
    pub sig_proxy: bool,
    #[command(flatten)]
    pub leaving: Leaving,
    /// A service, a replica, or a task's id or its beginning
    pub target: String,
}

pub(super) const CP: &str = "\
A file or a directory with all that is in it; owners, modes and times are kept (as far as rctl may give files away). \
Into a directory that is there it goes under its own name; SOURCE/. means what is in SOURCE. What is in the way of a \
file is replaced. Symbolic links are copied as such, devices and sockets are left out. The container needs no tar.

A path with a TARGET and a colon before it is the container's; TARGET is a service (its first replica that runs), a \
replica (web.2) or a task's id. - is a tar archive on standard input or output.

Examples:
  rctl cp web.2:/var/log .
  rctl cp site/. hello/web.1:/www
  rctl cp web:/etc/nginx.conf - | tar tv";

#[derive(Debug, Args)]
pub struct Cp {
    /// What a symbolic link SOURCE leads to, instead of the link
    #[arg(short = 'L', long)]
    pub follow_link: bool,
    /// Out of the last container that failed, not of what runs
    #[arg(long)]
    pub failed: bool,
    /// TARGET:PATH in a container, a path here, or -
    #[arg(value_parser = Place::parse)]
    pub source: Place,
    /// The same; one of the two must be in a container
    #[arg(value_parser = Place::parse)]
    pub destination: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Place {
    Inside {
        target: String,
        path: String,
    },
    Here(PathBuf),
    /// Standard input or output.
    Stream,
}

impl Place {
    /// As with docker: what begins like a path is one, whatever is in it.
    fn parse(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            _ if text.is_empty() => Err("write a path, or TARGET:PATH".to_owned()),
            _ if text == "-" => Ok(Self::Stream),
            _ if text.starts_with(['/', '.']) => Ok(Self::Here(text.into())),
            Some((_, "")) => Err(format!("{text:?} names no path behind the colon: / is the container's root")),
            Some(("", _)) => Err(format!("{text:?} names no container before the colon")),
            Some((target, path)) => Ok(Self::Inside { target: target.to_owned(), path: path.to_owned() }),
            None => Ok(Self::Here(text.into())),
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::{Place, Run};
    use crate::cli::{Cli, Command};

    #[test]
    fn places_in_containers_have_a_colon() {
        let inside = |target: &str, path: &str| Ok(Place::Inside { target: target.into(), path: path.into() });
        assert_eq!(Place::parse("web.2:/var/log"), inside("web.2", "/var/log"));
        assert_eq!(Place::parse("hello/web:a:b"), inside("hello/web", "a:b"));
        for here in ["file", "./a:b", "/a:b", "../x:y", "dir/file"] {
            assert_eq!(Place::parse(here), Ok(Place::Here(here.into())));
        }
        assert_eq!(Place::parse("-"), Ok(Place::Stream));
        assert!(Place::parse("web:").is_err() && Place::parse(":/x").is_err() && Place::parse("").is_err());
    }

    fn run(words: &[&str]) -> Result<Run, clap::Error> {
        Cli::try_parse_from([&["rctl", "run"], words].concat()).map(|cli| match cli.command {
            Command::Run(run) => run,
            other => panic!("{other:?}"),
        })
    }

    #[test]
    fn what_runs_once_may_be_the_services_own_command() {
        let told = run(&["--rm", "-it", "web", "sh", "-c", "x -- y", "--rm"]).expect("it is right");
        assert!(told.rm && told.interactive && told.tty && !told.detach);
        assert_eq!(
            (told.service.as_str(), told.command),
            ("web", ["sh", "-c", "x -- y", "--rm"].map(str::to_owned).to_vec())
        );
        assert_eq!(run(&["web"]).expect("it is right").command, Vec::<String>::new());
        assert_eq!(run(&["-e", "A=1", "web", "--", "-odd"]).expect("it is right").command, ["-odd"]);
        assert!(run(&["-dit", "web"]).is_ok_and(|run| run.detach && run.tty) && run(&[]).is_err());
    }

    fn exec(words: &[&str]) -> (bool, String, Vec<String>) {
        let cli = Cli::try_parse_from([&["rctl", "exec"], words].concat()).unwrap_or_else(|error| panic!("{error}"));
        match cli.command {
            Command::Exec(exec) => (exec.inside.interactive && exec.inside.tty, exec.target, exec.command),
            other => panic!("{other:?}"),
        }
    }

    /// As people write it for docker and for kubectl.
    #[test]
    fn options_come_first_and_the_rest_is_the_programs() {
        let told = |at_terminal, command: &[&str]| {
            (at_terminal, "web".to_owned(), command.iter().map(ToString::to_string).collect::<Vec<_>>())
        };
        assert_eq!(exec(&["-it", "web", "sh"]), told(true, &["sh"]));
        assert_eq!(exec(&["-i", "-t", "web", "--", "sh", "-c", "x -- y"]), told(true, &["sh", "-c", "x -- y"]));
        assert_eq!(exec(&["web", "-it", "--", "sh"]), told(true, &["sh"]));
        assert_eq!(exec(&["web", "ls", "-it", "--", "-u"]), told(false, &["ls", "-it", "--", "-u"]));
        assert_eq!(exec(&["web", "--", "-odd"]), told(false, &["-odd"]));
        assert!(Cli::try_parse_from(["rctl", "exec", "web"]).is_err());
        assert!(Cli::try_parse_from(["rctl", "exec", "web", "--"]).is_err());
    }
}
