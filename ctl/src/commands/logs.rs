//! `logs`: lines as they come, each replica's in order.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use anstyle::Style;
use roster_proto::{
    report::{LogLine, LogStream},
    time::Timestamp,
    wire,
};

use super::{now, target};
use crate::{
    cli::{Logs, Moment},
    client::Client,
    error::{Ending, Error},
    render::style,
};

pub(super) async fn run(args: Logs, client: &mut Client) -> Result<Ending, Error> {
    let query = wire::LogQuery {
        since: args.since.map(|since| since_micros(since, now())),
        tail: args.tail,
        follow: args.follow,
    };
    let (reading, answer) = target::first_that_exists(target::readings(&args.target), |filter| {
        let mut client = client.clone();
        async move {
            client.logs(wire::LogsRequest { filter: Some(filter), query: Some(query), ..Default::default() }).await
        }
    })
    .await?;
    let mut stream = answer.into_inner();
    let mut printer =
        Printer { prefixed: reading.task.is_none(), timestamps: args.timestamps, colours: BTreeMap::new() };
    loop {
        tokio::select! {
            line = stream.message() => match line? {
                Some(line) => printer.print(&LogLine::try_from(line)?).map_err(|error| Error::io("cannot print", error))?,
                None => return Ok(Ending::Done),
            },
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
                return Ok(Ending::Detached);
            }
        }
    }
}

fn since_micros(since: Moment, now: Timestamp) -> u64 {
    match since {
        Moment::Ago(duration) => now.0.saturating_sub(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)),
        Moment::At(at) => u64::try_from(at.as_microsecond()).unwrap_or(0),
    }
}

#[derive(Debug)]
struct Printer {
    prefixed: bool,
    timestamps: bool,
    /// By replica, in the order of their first line.
    colours: BTreeMap<String, Style>,
}

impl Printer {
    /// A container's stderr goes to ours, as Docker does it.
    fn print(&mut self, line: &LogLine) -> io::Result<()> {
        match line.stream {
            LogStream::Stdout => self.write(&mut anstream::stdout().lock(), line),
            LogStream::Stderr => self.write(&mut anstream::stderr().lock(), line),
        }
    }

    fn write(&mut self, out: &mut impl Write, line: &LogLine) -> io::Result<()> {
        if self.prefixed {
            let next = style::REPLICAS[self.colours.len() % style::REPLICAS.len()];
            let style = *self.colours.entry(line.name.clone()).or_insert(next);
            write!(out, "{style}{:<10} |{style:#} ", line.name)?;
        }
        if self.timestamps {
            write!(out, "{} ", Timestamp(line.nanos / 1000))?;
        }
        out.write_all(&line.line)?;
        if !line.partial {
            out.write_all(b"\n")?;
        }
        out.flush()
    }
}
