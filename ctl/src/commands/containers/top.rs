//! `top`.

use roster_proto::wire;

use crate::{
    cli::Top,
    client::{self, Wishes},
    commands::print,
    error::{Ending, Error},
    render::usage::{self, ProcessView},
};

pub(in crate::commands) async fn run(args: Top, wishes: &Wishes) -> Result<Ending, Error> {
    let (mut containers, _) = client::containers(wishes).await?;
    let mut stream = containers.top(wire::TopRequest { targets: args.targets }).await?.into_inner();
    let (mut processes, mut failures, mut tasks) = (Vec::new(), Vec::new(), 0);
    while let Some(answer) = stream.message().await? {
        let task = answer.task.unwrap_or_default();
        tasks += 1;
        if let Some(failure) = answer.failure {
            failures.push(format!("{} ({}): {failure}", task.name, task.task));
        }
        let found = answer.processes.unwrap_or_default();
        if found.more > 0 {
            failures.push(format!("{} ({}): {} more processes are not shown", task.name, task.task, found.more));
        }
        processes.extend(found.processes.into_iter().map(|process| ProcessView::new(&task, process)));
    }
    processes.sort_by(|a, b| (&a.name, &a.task, a.pid).cmp(&(&b.name, &b.task, b.pid)));
    print(args.output.output, || &processes, |_| usage::processes(&processes, tasks > 1))?;
    match failures[..] {
        [] => Ok(Ending::Done),
        _ => Err(Error::Refused(usage::escaped_lines(&failures))),
    }
}
