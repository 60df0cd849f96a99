//! Programs with a terminal, from a terminal.

use std::{
    fs::File,
    io::{Read, Write},
    os::fd::OwnedFd,
    process::Command,
    sync::{Arc, Mutex},
};

use nix::{
    libc,
    pty::{OpenptyResult, Winsize, openpty},
    sys::{
        signal::{Signal, kill},
        termios::{LocalFlags, tcgetattr},
    },
    unistd::Pid,
};
use roster_tests::{drive::Drive, wait};

use crate::{Running, started, until_inside};

/// rctl at a terminal of its own, whose other end is here.
pub(crate) struct Terminal {
    pub(crate) rctl: Running,
    master: File,
    /// rctl's end, to look at.
    end: OwnedFd,
    shown: Arc<Mutex<String>>,
}

impl Terminal {
    pub(crate) fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        use std::os::unix::process::CommandExt;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        let OpenptyResult { master, slave } = openpty(&size, None).expect("a terminal");
        let end = || slave.try_clone().expect("a second handle");
        command.stdin(end()).stdout(end()).stderr(end());
        // SAFETY: between fork and exec only setsid(2) and ioctl(2), which are async-signal-safe.
        unsafe {
            command.pre_exec(|| {
                nix::unistd::setsid()?;
                if libc::ioctl(0, libc::TIOCSCTTY, 0) < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
            });
        }
        let rctl = Running::start(&mut command);
        let (master, shown) = (File::from(master), Arc::new(Mutex::new(String::new())));
        let (mut reader, into) = (master.try_clone().expect("a second handle"), shown.clone());
        // Ends when both ends of the terminal are closed.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length @ 1..) = reader.read(&mut buffer) {
                into.lock().expect("no panic").push_str(&String::from_utf8_lossy(&buffer[..length]));
            }
        });
        Self { rctl, master, end: slave, shown }
    }

    pub(crate) fn shown(&self) -> String {
        self.shown.lock().expect("no panic").clone()
    }

    #[track_caller]
    pub(crate) fn until(&self, words: &str) {
        wait::until(&format!("{words:?} on the terminal"), || {
            let shown = self.shown();
            if shown.contains(words) { Ok(()) } else { Err(shown) }
        });
    }

    pub(crate) fn type_in(&mut self, keys: &[u8]) {
        self.master.write_all(keys).expect("the terminal is there");
    }

    fn resize(&self, rows: u16, columns: u16) {
        use std::os::fd::AsRawFd;
        let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
        // SAFETY: TIOCSWINSZ reads a winsize, which outlives the call.
        let set = unsafe { libc::ioctl(self.master.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) };
        assert_eq!(set, 0, "the terminal is there");
    }

    /// Line by line and with echo, as it was made.
    pub(crate) fn is_as_before(&self) -> bool {
        tcgetattr(&self.end).expect("a terminal").local_flags.contains(LocalFlags::ICANON | LocalFlags::ECHO)
    }
}

#[test]
fn a_shell_has_a_terminal_that_follows_this_one() {
    let cluster = started(1);
    let mut terminal = Terminal::start(cluster.rctl_command(&["exec", "-it", "web", "sh"]), 31, 97);
    terminal.until("# ");
    assert!(!terminal.is_as_before(), "keys are passed on as they are");
    terminal.type_in(b"echo TERM=$TERM; stty size; tty\n");
    terminal.until("TERM=xterm\r\n31 97\r\n/dev/pts/");
    terminal.resize(40, 120);
    wait::until("the new size to arrive", || {
        terminal.type_in(b"stty size\n");
        let shown = terminal.shown();
        if shown.contains("40 120\r\n") { Ok(()) } else { Err(shown) }
    });
    // Ctrl-C is for what runs in the foreground there, not for the shell and not for rctl.
    terminal.type_in(b"sleep 1010\n");
    until_inside(&cluster, "sleep", |found| found.contains("sleep 1010"));
    terminal.type_in(&[3]);
    until_inside(&cluster, "sleep's end", |found| !found.contains("sleep 1010"));
    terminal.type_in(b"echo still $((40 + 2))\n");
    terminal.until("still 42");
    terminal.type_in(b"exit 9\n");
    assert_eq!(terminal.rctl.code(), Some(9));
    assert!(terminal.is_as_before());
    cluster.down();
}

#[test]
fn the_terminal_is_put_back_whatever_ends_rctl() {
    let mut cluster = started(1);
    let begun = |cluster: &roster_tests::cluster::Cluster, seconds: u32| {
        let script = format!("trap '' INT TERM; echo ready; sleep {seconds}");
        let terminal = Terminal::start(cluster.rctl_command(&["exec", "-it", "web", "sh", "-c", &script]), 24, 80);
        terminal.until("ready");
        assert!(!terminal.is_as_before());
        terminal
    };
    let pid = |terminal: &Terminal| Pid::from_raw(terminal.rctl.0.id().cast_signed());

    let mut terminal = begun(&cluster, 1011);
    wait::until("rctl to give up", || {
        kill(pid(&terminal), Signal::SIGTERM).expect("our child");
        terminal.rctl.0.try_wait().expect("our child").ok_or("it runs")
    });
    assert_eq!(terminal.rctl.code(), Some(143));
    assert!(terminal.is_as_before());

    let mut terminal = begun(&cluster, 1012);
    kill(pid(&terminal), Signal::SIGHUP).expect("our child");
    assert_eq!(terminal.rctl.code(), Some(129));
    assert!(terminal.is_as_before());
    until_inside(&cluster, "nothing but the service", |found| found.len() == 2);

    let mut terminal = begun(&cluster, 1013);
    cluster.kill_agent();
    assert_eq!(terminal.rctl.code(), Some(1));
    terminal.until("it broke off, and what it ran in the container has ended with it");
    assert!(terminal.is_as_before());
    until_inside(&cluster, "nothing but the service", |found| found.len() == 2);
    cluster.start_agent();
    cluster.down();
}

#[test]
fn what_is_left_by_the_keys_goes_on_and_nothing_holds_it_up() {
    let mut cluster = started(1);
    // What it writes once it was left is more than a terminal holds.
    let script = "echo ready; read said; echo $said > /tmp/said; until [ -e /tmp/go ]; do sleep 0.05; done; \
                  seq 1 200000; echo over > /tmp/over; echo $$ > /tmp/pid; exec sleep 1014";
    let mut terminal = Terminal::start(cluster.rctl_command(&["exec", "-it", "web", "sh", "-c", script]), 24, 80);
    terminal.until("ready");
    // What was typed before the keys arrives, though all come at once.
    terminal.type_in(b"words\n\x10\x11");
    assert_eq!(terminal.rctl.code(), Some(0));
    terminal.until("detached from web.1, where the program goes on: `rctl top web.1` shows it");
    assert!(terminal.is_as_before());
    let until_file = |cluster: &roster_tests::cluster::Cluster, file: &str, words: &str| {
        wait::until(file, || {
            let said = cluster.rctl(&["exec", "web", "cat", file]);
            if said.stdout == words { Ok(()) } else { Err(said) }
        });
    };
    until_file(&cluster, "/tmp/said", "words\n");
    cluster.ok(&["exec", "web", "touch", "/tmp/go"]);
    until_file(&cluster, "/tmp/over", "over\n");

    // Nor does it need the agent; what ended it leaves nothing behind.
    cluster.kill_agent();
    cluster.start_agent();
    until_file(&cluster, "/tmp/over", "over\n");
    cluster.ok(&["exec", "web", "sh", "-c", "kill $(cat /tmp/pid)"]);
    until_inside(&cluster, "nothing but the service", |found| found.len() == 2);

    // By other keys; the others are the program's. It ends with its container.
    let arguments =
        ["exec", "--detach-keys", "ctrl-a,d", "-it", "web", "sh", "-c", "stty raw; echo raw; head -c 2; sleep 1015"];
    let mut terminal = Terminal::start(cluster.rctl_command(&arguments), 24, 80);
    terminal.until("raw");
    terminal.type_in(b"\x10\x11");
    until_inside(&cluster, "sleep", |found| found.contains("sleep 1015"));
    terminal.type_in(b"\x01d");
    assert_eq!(terminal.rctl.code(), Some(0));
    until_inside(&cluster, "what was left", |found| found.contains("sleep 1015"));
    cluster.ok(&["rm", "live"]);
    cluster.until_no_traces();
    cluster.down();
}
