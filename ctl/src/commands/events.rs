//! `events`.

use roster_proto::{report::Event, wire};

use super::target;
use crate::{
    cli::Events,
    client::Client,
    error::{Ending, Error},
    render::{Format, list, views::EventView},
};

pub(super) async fn run(args: Events, client: &mut Client) -> Result<Ending, Error> {
    let format = args.output.output;
    let readings = args.target.as_deref().map_or_else(|| vec![wire::Filter::default()], target::readings);
    let (_, answer) =
        target::first_that_exists(readings, |filter| {
            let mut client = client.clone();
            async move {
                client.events(wire::EventsRequest { follow: args.follow, filter: Some(filter), after: None }).await
            }
        })
        .await?;
    let mut stream = answer.into_inner();
    loop {
        tokio::select! {
            event = stream.message() => match event? {
                Some(event) => print(format, &Event::try_from(event)?)?,
                None => return Ok(Ending::Done),
            },
            interrupt = tokio::signal::ctrl_c() => {
                interrupt.map_err(|error| Error::io("cannot listen for Ctrl-C", error))?;
                return Ok(Ending::Detached);
            }
        }
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
