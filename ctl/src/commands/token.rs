//! `token create|ls|revoke`.

use roster_proto::wire;

use super::{now, print, write_out};
use crate::{
    cli::{MachineRole, Token},
    client::{self, Wishes},
    error::{Ending, Error},
    render::cluster::{self, TokenInfo},
};

pub(super) async fn run(args: Token, wishes: &Wishes) -> Result<Ending, Error> {
    let mut client = client::cluster(wishes).await?;
    match args {
        Token::Create { role, ttl, uses, quiet } => {
            let (role, flag) = match role {
                MachineRole::Controller => ("controller", "--controller"),
                MachineRole::Agent => ("agent", "--agent"),
            };
            let lifetime = ttl.map_or(0, |ttl| u64::try_from(ttl.as_micros()).unwrap_or(u64::MAX));
            let request = wire::CreateTokenRequest { role: role.to_owned(), lifetime, uses: uses.unwrap_or_default() };
            let wire::CreateTokenResponse { token, view } = client.create_token(request).await?.into_inner();
            if quiet {
                write_out(&format!("{token}\n"))?;
                return Ok(Ending::Done);
            }
            let until = view.map(|view| cluster::token_limits(&view, now())).unwrap_or_default();
            write_out(&format!(
                "As root on a host that joins{until}:\n    rctl cluster join {token} {flag}\nIt is not shown again.\n"
            ))?;
        }
        Token::Ls(output) => {
            let tokens = client.list_tokens(wire::ListTokensRequest {}).await?.into_inner().tokens;
            print(
                output.output,
                || tokens.iter().map(TokenInfo::from).collect::<Vec<_>>(),
                |_| cluster::tokens(&tokens, now()),
            )?;
        }
        Token::Revoke { id } => {
            for id in id {
                client.revoke_token(wire::RevokeTokenRequest { id: id.clone() }).await?;
                write_out(&format!("revoked {id}\n"))?;
            }
        }
    }
    Ok(Ending::Done)
}
