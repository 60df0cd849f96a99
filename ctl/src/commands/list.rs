//! `ps`, `services`.

use roster_proto::{report::ServiceView, task::Task, wire};

use super::{all, now, print, target};
use crate::{
    cli::{Ps, Services},
    client::{self, Client},
    error::{Ending, Error},
    render::{
        Format, list,
        views::{ServiceInfo, TaskView},
    },
};

pub(super) async fn tasks(args: Ps, client: &mut Client) -> Result<Ending, Error> {
    let readings = args.target.as_deref().map_or_else(|| vec![wire::Filter::default()], target::readings);
    let (_, answer) = target::first_that_exists(readings, |filter| {
        let client = client.clone();
        let filter = wire::Filter { node: args.node.clone(), ..filter };
        async move { client::tasks(&client, wire::ListTasksRequest { filter: Some(filter), all: args.all }).await }
    })
    .await?;
    let tasks: Vec<Task> = all(answer.tasks)?;
    if tasks.is_empty() {
        say_why_empty(args.output.output, "no tasks: `rctl apply` makes some");
    }
    print(
        args.output.output,
        || tasks.iter().map(TaskView::from).collect::<Vec<_>>(),
        |wide| list::tasks(&tasks, wide, now()),
    )?;
    Ok(Ending::Done)
}

pub(super) async fn services(args: Services, client: &mut Client) -> Result<Ending, Error> {
    let request = wire::ListServicesRequest { filter: Some(target::by_stack(args.stack)) };
    let services: Vec<ServiceView> = all(client::services(client, request).await?.services)?;
    if services.is_empty() {
        say_why_empty(args.output.output, "no services: `rctl apply` makes some");
    }
    print(
        args.output.output,
        || services.iter().map(|view| ServiceInfo::new(view, false)).collect::<Vec<_>>(),
        |wide| list::services(&services, wide, now()),
    )?;
    Ok(Ending::Done)
}

/// Beside a table of nothing but its header; on stderr, so that what reads the table finds only the table.
pub(super) fn say_why_empty(format: Format, why: &str) {
    if matches!(format, Format::Table | Format::Wide) {
        anstream::eprintln!("{why}");
    }
}
