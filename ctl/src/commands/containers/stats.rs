//! `stats`: a look each second; two looks make the rates.

use std::{
    collections::BTreeMap,
    io::{self, IsTerminal, Write},
    time::Duration,
};

use roster_proto::wire;
use tokio::time::{MissedTickBehavior, interval};

use crate::{
    cli::Stats,
    client::{self, Containers, Wishes},
    commands::write_out,
    error::{Ending, Error},
    render::{
        Format,
        table::cut,
        usage::{self, UsageView},
    },
};

const EVERY: Duration = Duration::from_secs(1);

pub(in crate::commands) async fn run(args: Stats, wishes: &Wishes) -> Result<Ending, Error> {
    let (containers, _) = client::containers(wishes).await?;
    tokio::select! {
        ended = look_on(args, containers) => ended,
        interrupt = tokio::signal::ctrl_c() => {
            interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
            Ok(Ending::Detached)
        }
    }
}

async fn look_on(args: Stats, mut containers: Containers) -> Result<Ending, Error> {
    let mut ticks = interval(EVERY);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut screen = Screen::of_stdout(args.output.output);
    let mut before: BTreeMap<String, wire::Usage> = BTreeMap::new();
    let mut first = true;
    loop {
        ticks.tick().await;
        let request = wire::StatsRequest { targets: args.targets.clone() };
        let answer = match containers.stats(request).await {
            // What was looked at is gone for good.
            Err(status) if status.code() == tonic::Code::NotFound && !first => return Ok(Ending::Done),
            answer => answer?.into_inner(),
        };
        let mut views: Vec<UsageView> = answer.tasks.iter().map(|task| UsageView::new(task, &before)).collect();
        views.sort_by(|a, b| (&a.stack, &a.name, &a.id).cmp(&(&b.stack, &b.name, &b.id)));
        let only = |task: wire::TaskUsage| Some((task.task?.task, task.usage?));
        before = answer.tasks.into_iter().filter_map(only).collect();
        // The first look alone has no rates.
        if !first || screen.in_place {
            screen.show(&views, &answer.failures)?;
        }
        if args.no_stream && !first {
            return match answer.failures[..] {
                [] => Ok(Ending::Done),
                _ => Err(Error::Refused(usage::escaped_lines(&answer.failures))),
            };
        }
        first = false;
    }
}

/// Drawn in place on a terminal, written one below the other elsewhere.
struct Screen {
    format: Format,
    in_place: bool,
    drawn: usize,
}

impl Screen {
    fn of_stdout(format: Format) -> Self {
        let table = matches!(format, Format::Table | Format::Wide);
        Self { format, in_place: table && io::stdout().is_terminal(), drawn: 0 }
    }

    fn show(&mut self, views: &[UsageView], failures: &[String]) -> Result<(), Error> {
        if let Some(document) = self.format.document(&views) {
            return write_out(&document);
        }
        let table = usage::stats(views, self.format == Format::Wide).render();
        if !self.in_place {
            return write_out(&table);
        }
        let failures = failures.iter().map(|failure| usage::escaped(failure.as_bytes()) + "\n");
        let text = table + &failures.collect::<String>();
        let (width, height) = terminal_size::terminal_size_of(io::stdout())
            .map_or((80, 24), |(width, height)| (usize::from(width.0), usize::from(height.0)));
        // What does not fit would scroll, and could not be drawn over. Cut to the width: a line that wraps is two.
        let lines: Vec<&str> = text.lines().take(height.saturating_sub(1).max(1)).collect();
        let mut out = io::stdout().lock();
        let mut draw = || {
            if self.drawn > 0 {
                // ECMA-48: cursor up by lines.
                write!(out, "\x1b[{}A", self.drawn)?;
            }
            for line in &lines {
                // Erase to the end of the line: what was there before may be longer.
                writeln!(out, "{}\x1b[K", cut(&usage::unstyled(line), width))?;
            }
            write!(out, "\x1b[J")?;
            out.flush()
        };
        draw().map_err(|error| Error::io("cannot print", error))?;
        self.drawn = lines.len();
        Ok(())
    }
}
