//! `apply` and `plan`.

use std::path::PathBuf;

use roster_proto::{
    id::{ServiceId, Version},
    report::{ServiceAction, StackPlan},
    wire,
};

use super::{converge, now, write_out};
use crate::{
    cli::{Apply, Plan, SpecFile},
    client::Client,
    compose,
    error::{Ending, Error},
    render::{self, views::PlanView},
};

/// A cluster that changes faster than one can plan is told to the user after so many tries.
const MAX_PLANS: usize = 5;

const DEFAULT_FILES: [&str; 3] = ["spec.yaml", "compose.yaml", "compose.yml"];

fn load(args: &SpecFile) -> Result<compose::Loaded, Error> {
    let file = match &args.file {
        Some(file) => file.clone(),
        None => DEFAULT_FILES.iter().map(PathBuf::from).find(|file| file.exists()).ok_or_else(|| {
            Error::Usage(format!("there is no {} here: name the Compose file", DEFAULT_FILES.join(", ")))
        })?,
    };
    let options = compose::Options {
        project_name: args.project_name.clone(),
        environment: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        env_file: args.env_file.clone(),
    };
    let loaded = compose::load(&file, &options)?;
    for warning in &loaded.warnings {
        anstream::eprintln!("{}\n", render::problem(warning));
    }
    Ok(loaded)
}

async fn ask_for_plan(client: &mut Client, loaded: &compose::Loaded, prune: bool) -> Result<StackPlan, Error> {
    let request = wire::PlanRequest { stack: Some(loaded.stack.clone().into()), prune };
    let plan = client.plan(request).await?.into_inner().plan.unwrap_or_default();
    Ok(plan.try_into()?)
}

pub(super) async fn plan<F>(args: Plan, connect: impl FnOnce() -> F) -> Result<Ending, Error>
where
    F: Future<Output = Result<Client, Error>>,
{
    // The file first: its mistakes are told without a controller.
    let loaded = load(&args.spec)?;
    let plan = ask_for_plan(&mut connect().await?, &loaded, args.spec.prune).await?;
    match args.output.output.document(&PlanView::from(&plan)) {
        Some(document) => write_out(&document)?,
        None => write_out(&render::plan::plan(&plan, now()))?,
    }
    Ok(if plan.changes_anything() { Ending::Changes } else { Ending::Done })
}

pub(super) async fn apply<F>(args: Apply, connect: impl FnOnce() -> F) -> Result<Ending, Error>
where
    F: Future<Output = Result<Client, Error>>,
{
    let loaded = load(&args.spec)?;
    let mut client = connect().await?;
    let mut tries = 0;
    let (version, plan) = loop {
        tries += 1;
        let plan = ask_for_plan(&mut client, &loaded, args.spec.prune).await?;
        if !args.quiet {
            write_out(&render::plan::plan(&plan, now()))?;
        }
        let request = wire::ApplyRequest {
            stack: Some(loaded.stack.clone().into()),
            prune: args.spec.prune,
            base: Some(plan.base.into()),
        };
        match client.apply(request).await.map_err(Error::from) {
            Ok(answer) => break (Version(answer.into_inner().version), plan),
            Err(Error::Stale(_)) if tries < MAX_PLANS => {
                anstream::eprintln!("The cluster changed meanwhile; planning again.");
            }
            Err(error) => return Err(error),
        }
    };
    if args.waiting.detach {
        if !args.quiet {
            converge::say_detached(version);
        }
        return Ok(Ending::Done);
    }
    let goal = converge::Goal {
        version,
        services: loaded
            .stack
            .services
            .keys()
            .map(|name| ServiceId::new(loaded.stack.name.clone(), name.clone()))
            .collect(),
        gone: plan
            .services
            .iter()
            .filter(|service| service.action == ServiceAction::Remove)
            .map(|service| service.service.clone())
            .collect(),
    };
    converge::wait(&mut client, goal, args.waiting, args.quiet).await
}
