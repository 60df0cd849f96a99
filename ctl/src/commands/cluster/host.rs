//! What is done on the host itself: the controller there is told by its unix socket, the agent by its data directory.

use std::{fmt::Write, path::Path, time::Duration};

use roster_proto::{
    id::NodeId,
    wire::{self, local_client::LocalClient},
};
use roster_tls::{IdentityDir, Role, Token};
use tokio::time::{Instant, sleep};

use super::super::{confirm, write_out};
use crate::{
    cli::{AgentDir, Init, Join, Sure},
    client::{self, Transport, Wishes},
    error::{Ending, Error},
};

/// A controller that was told something begins anew, which takes a moment.
const BEGINS_ANEW: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn init(args: Init, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client = client::local(wishes).await?;
    let request =
        wire::InitRequest { name: args.name.unwrap_or_default(), address: args.advertise.unwrap_or_default() };
    let wire::InitResponse { cluster, controller_token, agent_token } = client.init(request).await?.into_inner();
    let mut out = format!("Cluster {cluster} has begun, with this host's controller as its first.\n");
    let agent = match args.no_agent || !args.agent.agent_data_dir.is_dir() {
        true => Ok(None),
        false => adopt_agent(&agent_token, &args.agent).await.map(Some),
    };
    if let Ok(Some(node)) = &agent {
        let _ =
            writeln!(out, "This host's agent speaks for node {node}; one that runs does so within a second or two.");
    }
    let _ = write!(
        out,
        "\nOn each host of another controller, as root:\n    rctl cluster join {controller_token} --controller\n\n\
         On each host that is to run containers, as root:\n    rctl cluster join {agent_token} --agent\n\n\
         `rctl token ls` lists the tokens, `rctl user add` lets people in from elsewhere.\n"
    );
    // The tokens are shown once: first of all they are printed.
    write_out(&out)?;
    match agent {
        Ok(_) => Ok(Ending::Done),
        Err(error) => Err(Error::Usage(format!(
            "the cluster has begun, but this host's agent could not join it: {error}\nTry again with `rctl cluster join \
             ... --agent` as above."
        ))),
    }
}

/// Enrols this host's agent. The controller may only now be opening its door.
async fn adopt_agent(token: &str, agent: &AgentDir) -> Result<NodeId, Error> {
    let token: Token = token.parse().map_err(|error: roster_tls::InvalidToken| Error::Refused(error.to_string()))?;
    let node = node_name(agent)?;
    let give_up = Instant::now() + BEGINS_ANEW;
    loop {
        match enroll_agent(&token, &node, &agent.agent_data_dir).await {
            Err(_) if Instant::now() < give_up => sleep(PAUSE).await,
            ended => return ended.map(|()| node),
        }
    }
}

pub(super) async fn join(args: Join, wishes: &Wishes) -> Result<Ending, Error> {
    let (wanted, flag) = if args.what.agent { (Role::Agent, "--agent") } else { (Role::Controller, "--controller") };
    if args.token.role != wanted {
        return Err(Error::Usage(format!(
            "this token is for a{} {role}: use it with --{role}, or make another with `rctl token create --role \
             {wanted}` and use that with {flag}",
            if args.token.role == Role::Agent { "n" } else { "" },
            role = args.token.role,
        )));
    }
    if args.what.agent { join_agent(args).await } else { join_controller(args, wishes).await }
}

async fn join_agent(args: Join) -> Result<Ending, Error> {
    let node = node_name(&args.agent)?;
    enroll_agent(&args.token, &node, &args.agent.agent_data_dir).await?;
    write_out(&format!(
        "Node {node} may join cluster {}. Its agent does so within a second or two if it runs (`systemctl start \
         roster-agent` if not); `rctl node ls` on a controller shows when it is Ready.\n",
        args.token.cluster
    ))?;
    Ok(Ending::Done)
}

async fn enroll_agent(token: &Token, node: &NodeId, data: &Path) -> Result<(), Error> {
    let directory = IdentityDir(data.join("identity"));
    // What is there is looked at first: a token has a limited number of uses.
    let present = directory.load().map_err(|error| Error::Usage(told(&error)))?;
    if let Some(present) = present.filter(|present| present.cluster != token.cluster) {
        return Err(Error::Usage(format!(
            "the agent of this host belongs to cluster {}: take it out there first (`rctl node rm {node}`), then run \
             `roster-agent clean --purge` here",
            present.cluster
        )));
    }
    let request = wire::EnrollRequest {
        name: node.to_string(),
        release: env!("CARGO_PKG_VERSION").to_owned(),
        ..Default::default()
    };
    // Kept, so that a call that is cut off can be made again: for another key the name would be taken.
    let key = directory.key_to_join(&token.cluster, node.as_str()).map_err(|error| Error::Usage(told(&error)))?;
    let identity = roster_tls::enroll_with(key, token, request).await.map_err(|error| match error {
        roster_tls::EnrollError::Refused(status) => status.into(),
        other => Error::Refused(told(&other)),
    })?;
    directory.save(&identity).map_err(|error| Error::Usage(told(&error)))
}

async fn join_controller(args: Join, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client = client::local(wishes).await?;
    let request = wire::JoinRequest {
        token: args.token.to_string(),
        name: args.name.unwrap_or_default(),
        address: args.advertise.unwrap_or_default(),
        spare: args.spare,
    };
    let wire::JoinResponse { cluster, peer } = client.join(request).await?.into_inner();
    let next = match args.spare {
        true => "It catches up, and stands by as a spare",
        false => "It catches up, and votes from then on",
    };
    write_out(&format!(
        "This host's controller joins cluster {cluster} as {peer:016x}. {next}; `rctl cluster status` shows how far \
         it is.\n"
    ))?;
    Ok(Ending::Done)
}

pub(super) async fn leave(force: bool, sure: Sure, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client: LocalClient<Transport> = client::local(wishes).await?;
    confirm(&sure, "Take this host's controller out of its cluster, and empty it?")?;
    client.leave(wire::LeaveRequest { force }).await?;
    write_out(match force {
        true => "This host's controller is empty. The others do not know: run `rctl cluster remove` there.\n",
        false => "This host's controller is out of the cluster, and empty.\n",
    })?;
    Ok(Ending::Done)
}

pub(super) async fn recover(lost: Vec<String>, sure: Sure, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client = client::local(wishes).await?;
    confirm(
        &sure,
        &format!(
            "Give up {} for good, with all that only they had, and go on with this host's controller alone?",
            lost.join(", ")
        ),
    )?;
    let wire::RecoverResponse { version } = client.recover(wire::RecoverRequest { lost }).await?.into_inner();
    write_out(&format!(
        "This host's controller goes on alone, from version {version}. Never start the lost ones again with their old \
         data; let others join with `rctl token create --role controller`.\n"
    ))?;
    Ok(Ending::Done)
}

fn node_name(agent: &AgentDir) -> Result<NodeId, Error> {
    if let Some(name) = &agent.node {
        return NodeId::new(name).map_err(|error| Error::Usage(error.to_string()));
    }
    let host = nix::unistd::gethostname().map_err(|error| Error::io("cannot read the host's name", error.into()))?;
    Ok(NodeId::of_host(&host.to_string_lossy()))
}

fn told(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", told(source)),
        None => error.to_string(),
    }
}
