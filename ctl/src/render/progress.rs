//! Live progress: a block that is redrawn on a terminal, a line for each change elsewhere.

use std::{
    fmt::Write as _,
    io::{self, Write as _},
};

use roster_proto::{report::ServiceView, task::Task, time::Timestamp};

use super::{
    list,
    style::{BUSY, FAINT, GOOD},
    table::{clean, cut},
};

/// Of the tasks that are not up; the rest is counted.
const TASKS_SHOWN: usize = 8;
const BAR: usize = 20;

#[derive(Debug)]
pub struct Progress {
    /// Columns of the terminal; `None` when it is none.
    width: Option<usize>,
    /// Lines of the block on the screen.
    drawn: usize,
    last: String,
}

impl Progress {
    pub fn on_stderr() -> Self {
        use std::io::IsTerminal;
        let width = io::stderr()
            .is_terminal()
            .then(|| terminal_size::terminal_size_of(io::stderr()).map_or(80, |(width, _)| width.0.into()));
        Self { width, drawn: 0, last: String::new() }
    }

    /// Shows this state of things, if it differs from the last.
    pub fn draw(&mut self, services: &[ServiceView], tasks: &[Task], now: Timestamp) -> io::Result<()> {
        match self.width {
            Some(width) => {
                let text = block(services, tasks, now, width);
                if text != self.last {
                    self.erase()?;
                    anstream::eprint!("{text}");
                    self.drawn = text.lines().count();
                    self.last = text;
                }
            }
            None => {
                let text = lines(services);
                for line in text.lines().filter(|line| !self.last.lines().any(|old| old == *line)) {
                    anstream::eprintln!("{line}");
                }
                self.last = text;
            }
        }
        io::stderr().flush()
    }

    /// Takes the block off the screen.
    pub fn erase(&mut self) -> io::Result<()> {
        if self.drawn > 0 {
            // ECMA-48: cursor up by lines, then erase to the end of the screen.
            write!(io::stderr(), "\x1b[{}A\x1b[J", self.drawn)?;
            self.drawn = 0;
        }
        Ok(())
    }
}

fn lines(services: &[ServiceView]) -> String {
    services.iter().fold(String::new(), |mut out, view| {
        let _ = writeln!(out, "{}", list::service_line(view));
        out
    })
}

pub(super) fn block(services: &[ServiceView], tasks: &[Task], now: Timestamp, width: usize) -> String {
    let mut out = String::new();
    let longest = services.iter().map(|view| view.id.to_string().len()).max().unwrap_or(0);
    for view in services {
        let filled = (view.up as usize * BAR).checked_div(view.wanted as usize).unwrap_or(BAR).min(BAR);
        let style = if view.converged { GOOD } else { BUSY };
        let bar = "█".repeat(filled) + &"░".repeat(BAR - filled);
        let (state, _) = list::service_state(view);
        let room = width.saturating_sub(longest + BAR + 14);
        let _ = writeln!(
            out,
            "{:longest$}  {style}{bar}{style:#} {:>9}  {}",
            view.id.to_string(),
            format!("{}/{}", view.up, view.wanted),
            cut(&clean(&state), room)
        );
    }
    let busy: Vec<_> = tasks.iter().filter(|task| !task.is_up()).collect();
    for task in busy.iter().take(TASKS_SHOWN) {
        let why = task.status.cause.as_ref().map(|known| list::cause(known, now)).unwrap_or_default();
        let style = list::state_style(task);
        let head = format!("  {} ", task.name());
        let state = list::state(task);
        let room = width.saturating_sub(head.len() + state.len() + 2);
        let _ = writeln!(out, "{head}{style}{state}{style:#} {}", cut(&clean(&why), room));
    }
    if busy.len() > TASKS_SHOWN {
        let _ = writeln!(out, "{FAINT}  and {} more{FAINT:#}", busy.len() - TASKS_SHOWN);
    }
    out
}
