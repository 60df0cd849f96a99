//! `events`.

use roster_proto::{report::Event, wire};

use super::{follow::Patience, target};
use crate::{
    cli::Events,
    client::Client,
    error::{Ending, Error},
    render::{Format, list, views::EventView},
};

pub(super) async fn run(args: Events, client: &mut Client) -> Result<Ending, Error> {
    let readings = args.target.as_deref().map_or_else(|| vec![wire::Filter::default()], target::readings);
    let (filter, answer) =
        target::first_that_exists(readings, |filter| {
            let mut client = client.clone();
            async move {
                client.events(wire::EventsRequest { follow: args.follow, filter: Some(filter), after: None }).await
            }
        })
        .await?;
    tokio::select! {
        ended = follow(client.clone(), args, filter, answer.into_inner()) => ended.map(|()| Ending::Done),
        interrupt = tokio::signal::ctrl_c() => {
            interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
            Ok(Ending::Detached)
        }
    }
}

/// What has been printed. A version can have several events.
#[derive(Debug, Default)]
struct Told {
    version: u64,
    /// Of that version.
    events: usize,
    /// What comes again after a break.
    again: Again,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum Again {
    #[default]
    Nothing,
    /// So many events of the last version.
    Some(usize),
    /// Whatever is not newer than the last version.
    All,
}

impl Told {
    /// From which version to ask on.
    fn resume(&mut self) -> Option<u64> {
        match self.version {
            0 => None,
            version => {
                self.again = Again::Some(self.events);
                Some(version - 1)
            }
        }
    }

    /// From the first that is kept.
    fn begin_anew(&mut self) {
        self.again = Again::All;
    }

    /// Whether an event of this version, the next of the stream, is news.
    fn is_news(&mut self, version: u64) -> bool {
        match &mut self.again {
            Again::Some(left) if version == self.version && *left > 0 => {
                *left -= 1;
                return false;
            }
            Again::All if version <= self.version => return false,
            _ => self.again = Again::Nothing,
        }
        if version != self.version {
            self.version = version;
            self.events = 0;
        }
        self.events += 1;
        true
    }
}

async fn follow(
    mut client: Client,
    args: Events,
    filter: wire::Filter,
    mut stream: tonic::Streaming<wire::Event>,
) -> Result<(), Error> {
    let mut told = Told::default();
    let mut patience = Patience::default();
    loop {
        let mut broken = match stream.message().await {
            Ok(Some(event)) => {
                patience.renew();
                if told.is_news(event.version) {
                    print(args.output.output, &Event::try_from(event)?)?;
                }
                continue;
            }
            Ok(None) => return Ok(()),
            Err(status) => status,
        };
        stream = loop {
            let after = if broken.code() == tonic::Code::OutOfRange && told.again != Again::All {
                anstream::eprintln!("Events are missing here: more came meanwhile than the controllers keep.");
                told.begin_anew();
                None
            } else {
                patience.broke(broken).await?;
                told.resume()
            };
            let request = wire::EventsRequest { follow: args.follow, filter: Some(filter.clone()), after };
            match client.events(request).await {
                Ok(answer) => break answer.into_inner(),
                Err(status) => broken = status,
            }
        };
    }
}

/// A stream has no end to close a JSON list with: one document a line, or one YAML document after the other.
fn print(format: Format, event: &Event) -> Result<(), Error> {
    let view = EventView::from(event);
    super::write_out(&match format {
        Format::Table | Format::Wide => format!("{}\n", list::event(event, format == Format::Wide)),
        Format::Json => format!("{}\n", serde_json::to_string(&view).expect("views are plain data")),
        Format::Yaml => format!("---\n{}", format.document(&view).unwrap_or_default()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The printed versions when the stream breaks after `cut` events and is taken up from what is kept then.
    fn printed(events: &[u64], cut: usize, kept: &[u64], anew: bool) -> Vec<u64> {
        let mut told = Told::default();
        let mut printed: Vec<u64> = events[..cut].iter().copied().filter(|version| told.is_news(*version)).collect();
        let after = if anew {
            told.begin_anew();
            None
        } else {
            told.resume()
        };
        let rest = kept.iter().copied().filter(|version| after.is_none_or(|after| *version > after));
        printed.extend(rest.filter(|version| told.is_news(*version)));
        printed
    }

    #[test]
    fn a_break_anywhere_neither_repeats_nor_loses_an_event() {
        let events = [3, 3, 3, 5, 8, 8, 9];
        for cut in 0..=events.len() {
            assert_eq!(printed(&events, cut, &events, false), events, "cut after {cut}");
        }
    }

    #[test]
    fn after_a_gap_what_is_kept_comes_once() {
        assert_eq!(printed(&[3, 5, 8], 3, &[8, 9, 9, 12], true), [3, 5, 8, 9, 9, 12]);
        assert_eq!(printed(&[3, 5, 8], 3, &[20, 20, 21], true), [3, 5, 8, 20, 20, 21]);
    }
}
