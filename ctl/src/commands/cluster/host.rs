//! What is done on the host itself: the controller there is told by its unix socket, the agent by its data directory.

use std::{fmt::Write, time::Duration};

use roster_proto::{
    id::NodeId,
    wire::{self, local_client::LocalClient},
};
use roster_tls::{EnrollError, Identity, IdentityDir, KeyAndRequest, Role, Token, enroll_over, enroll_with};
use tokio::time::{Instant, sleep};
use tonic::Code;

use super::super::{confirm, write_out};
use crate::{
    cli::{AgentDir, Init, Join, Sure},
    client::{self, Transport, Wishes, goes_on},
    error::{Ending, Error},
};

/// A controller that was told something begins anew, which takes a moment.
const BEGINS_ANEW: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(100);

pub(super) async fn init(args: Init, wishes: &Wishes) -> Result<Ending, Error> {
    let controller = wishes.local_target()?.connect().await?;
    let mut client = LocalClient::new(controller.clone());
    let request =
        wire::InitRequest { name: args.name.unwrap_or_default(), address: args.advertise.unwrap_or_default() };
    let wire::InitResponse { cluster, controller_token, agent_token } = client.init(request).await?.into_inner();
    let mut out = format!("Cluster {cluster} has begun, with this host's controller as its first.\n");
    let agent = match args.no_agent || !args.agent.agent_data_dir.is_dir() {
        true => Ok(None),
        false => adopt_agent(&agent_token, &args.agent, &controller).await.map(Some),
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

/// Enrols this host's agent, by way of this host's controller: the agent may have a session there, by the socket that
/// only root may use, and only there this host's root may have its node's name.
async fn adopt_agent(token: &str, agent: &AgentDir, controller: &Transport) -> Result<NodeId, Error> {
    let token: Token = token.parse().map_err(|error: roster_tls::InvalidToken| Error::Refused(error.to_string()))?;
    let candidate = Candidate::new(&token, agent)?;
    let give_up = Instant::now() + BEGINS_ANEW;
    let identity = loop {
        match candidate.ask_here(candidate.key()?, controller).await {
            // It has yet to begin anew, or to lead.
            Err(EnrollError::Refused(status)) if goes_on(&status) && Instant::now() < give_up => sleep(PAUSE).await,
            ended => break ended.map_err(refused)?,
        }
    };
    candidate.take(&identity)?;
    Ok(candidate.node)
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
    if args.what.agent { join_agent(args, wishes).await } else { join_controller(args, wishes).await }
}

async fn join_agent(args: Join, wishes: &Wishes) -> Result<Ending, Error> {
    let candidate = Candidate::new(&args.token, &args.agent)?;
    let identity = match candidate.ask(candidate.key()?).await {
        Err(EnrollError::Refused(status)) if status.code() == Code::AlreadyExists => {
            // Perhaps by this very agent, which without a certificate has found the controller of its own host.
            candidate.ask_own(candidate.key()?, wishes).await.ok_or(status)?
        }
        ended => ended.map_err(refused)?,
    };
    candidate.take(&identity)?;
    write_out(&format!(
        "Node {} may join cluster {}. Its agent does so within a second or two if it runs (`systemctl start \
         roster-agent` if not); `rctl node ls` on a controller shows when it is Ready.\n",
        candidate.node, args.token.cluster
    ))?;
    Ok(Ending::Done)
}

/// This host's agent, which is to get a certificate.
struct Candidate<'a> {
    token: &'a Token,
    node: NodeId,
    directory: IdentityDir,
}

impl<'a> Candidate<'a> {
    fn new(token: &'a Token, agent: &AgentDir) -> Result<Self, Error> {
        let (node, directory) = (node_name(agent)?, IdentityDir(agent.agent_data_dir.join("identity")));
        // What is there is looked at first: a token has a limited number of uses.
        let present = directory.load().map_err(|error| Error::Usage(told(&error)))?;
        if let Some(present) = present.filter(|present| present.cluster != token.cluster) {
            return Err(Error::Usage(format!(
                "the agent of this host belongs to cluster {}: take it out there first (`rctl node rm {node}`), then \
                 run `roster-agent clean --purge` here",
                present.cluster
            )));
        }
        Ok(Self { token, node, directory })
    }

    /// At the addresses in the token.
    async fn ask(&self, key: KeyAndRequest) -> Result<Identity, EnrollError> {
        enroll_with(key, self.token, self.request()).await
    }

    async fn ask_here(&self, key: KeyAndRequest, controller: &Transport) -> Result<Identity, EnrollError> {
        enroll_over(controller.clone(), key, self.token, self.request()).await
    }

    /// `None`: this host has no controller, or it does not know better than those that were asked before.
    async fn ask_own(&self, key: KeyAndRequest, wishes: &Wishes) -> Option<Identity> {
        let controller = wishes.local_target().ok()?.connect_at_once().await.ok()?;
        self.ask_here(key, &controller).await.ok()
    }

    /// Kept, so that a call that is cut off can be made again: for another key the name would be taken.
    fn key(&self) -> Result<KeyAndRequest, Error> {
        let key = self.directory.key_to_join(&self.token.cluster, self.node.as_str());
        key.map_err(|error| Error::Usage(told(&error)))
    }

    fn request(&self) -> wire::EnrollRequest {
        let release = env!("CARGO_PKG_VERSION").to_owned();
        wire::EnrollRequest { name: self.node.to_string(), release, ..Default::default() }
    }

    fn take(&self, identity: &Identity) -> Result<(), Error> {
        self.directory.save(identity).map_err(|error| Error::Usage(told(&error)))
    }
}

fn refused(error: EnrollError) -> Error {
    match error {
        EnrollError::Refused(status) => status.into(),
        other => Error::Refused(told(&other)),
    }
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
