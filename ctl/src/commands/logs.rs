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

use super::{follow::Patience, now, target};
use crate::{
    cli::{Logs, Moment},
    client::Client,
    error::{Ending, Error},
    render::style,
};

pub(super) async fn run(args: Logs, client: &mut Client) -> Result<Ending, Error> {
    let now = now();
    let micros = |moment: Option<Moment>| moment.map(|moment| micros(moment, now));
    let query =
        wire::LogQuery { since: micros(args.since), until: micros(args.until), tail: args.tail, follow: args.follow };
    if query.since.zip(query.until).is_some_and(|(since, until)| since > until) {
        return Err(Error::Usage("--until is before --since: there can be no line between them".to_owned()));
    }
    let (filter, answer) = target::first_that_exists(target::readings(&args.target), |filter| {
        let mut client = client.clone();
        async move {
            client.logs(wire::LogsRequest { filter: Some(filter), query: Some(query), ..Default::default() }).await
        }
    })
    .await?;
    let printer = Printer { prefixed: filter.task.is_none(), timestamps: args.timestamps, colours: BTreeMap::new() };
    let request = wire::LogsRequest { filter: Some(filter), query: Some(query), ..Default::default() };
    tokio::select! {
        ended = follow(client.clone(), request, answer.into_inner(), printer) => ended.map(|()| Ending::Done),
        interrupt = tokio::signal::ctrl_c() => {
            interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
            Ok(Ending::Detached)
        }
    }
}

/// Prints until the end. After a break, each task's lines go on behind the last that was printed.
async fn follow(
    mut client: Client,
    mut request: wire::LogsRequest,
    mut stream: tonic::Streaming<wire::LogLine>,
    mut printer: Printer,
) -> Result<(), Error> {
    let mut patience = Patience::default();
    loop {
        let mut broken = match stream.message().await {
            Ok(Some(line)) => {
                patience.renew();
                note(&mut request.seen, &line);
                printer.print(&LogLine::try_from(line)?).map_err(|error| Error::io("cannot print", error))?;
                continue;
            }
            Ok(None) => return Ok(()),
            Err(status) => status,
        };
        stream = loop {
            patience.broke(broken).await?;
            match client.logs(request.clone()).await {
                Ok(answer) => break answer.into_inner(),
                // What was followed has gone meanwhile.
                Err(status) if status.code() == tonic::Code::NotFound => return Ok(()),
                Err(status) => broken = status,
            }
        };
    }
}

/// Tasks that are told apart after a break; of older ones, lines may then come twice. As many as the controller takes.
const SEEN_TASKS: usize = 2_000;

fn note(seen: &mut BTreeMap<String, wire::LogPosition>, line: &wire::LogLine) {
    if !seen.contains_key(&line.task) && seen.len() >= SEEN_TASKS {
        let oldest = seen.iter().min_by_key(|(_, position)| position.nanos).map(|(task, _)| task.clone());
        oldest.and_then(|task| seen.remove(&task));
    }
    let position = seen.entry(line.task.clone()).or_default();
    if position.nanos == line.nanos {
        position.lines = position.lines.saturating_add(1);
    } else {
        *position = wire::LogPosition { nanos: line.nanos, lines: 1 };
    }
}

fn micros(moment: Moment, now: Timestamp) -> u64 {
    match moment {
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
