//! Loads rules with nft(8) and knows whether they are still what was loaded.
//!
//! The kernel counts every change of its rules by anyone in one number (`NFT_MSG_GETGEN`, linux/netfilter/nf_tables.h).
//! As long as that number is the one our own load made, nobody has touched our table, and asking for it costs
//! microseconds where running nft costs milliseconds.

use std::{io, process::Stdio, time::Duration};

use rtnetlink::sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};
use tokio::{io::AsyncWriteExt, process::Command, time::timeout};

/// nft answers in milliseconds; one that hangs must not hold up the agent.
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum NftError {
    #[error("cannot run nft: {0}; install the package nftables")]
    Run(#[source] io::Error),
    #[error("cannot hand the rules to nft: {0}")]
    Input(#[source] io::Error),
    #[error("nft did not answer within {} s", PATIENCE.as_secs())]
    Timeout,
    #[error("nft refused the rules: {0}")]
    Refused(String),
    #[error("cannot ask the kernel for the generation of its rules: {0}")]
    Generation(#[source] io::Error),
}

/// What was loaded last, and the generation of the kernel's rules that this load made.
#[derive(Debug, Default)]
pub(super) struct Loaded(Option<(String, u32)>);

impl Loaded {
    /// Makes the kernel have these rules, doing nothing where it still has them.
    pub(super) async fn ensure(&mut self, rules: &str) -> Result<(), NftError> {
        let before = generation().map_err(NftError::Generation)?;
        if matches!(&self.0, Some((loaded, generation)) if loaded == rules && *generation == before) {
            return Ok(());
        }
        self.0 = None;
        load(rules).await?;
        let after = generation().map_err(NftError::Generation)?;
        // Any other number means that somebody else changed rules meanwhile, perhaps ours.
        if after == before.wrapping_add(1) {
            self.0 = Some((rules.to_owned(), after));
        }
        Ok(())
    }

    pub(super) fn forget(&mut self) {
        self.0 = None;
    }
}

/// Runs one batch: all of it takes effect, or none.
pub(super) async fn load(rules: &str) -> Result<(), NftError> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .map_err(NftError::Run)?;
    let mut stdin = child.stdin.take().expect("stdin was asked for as a pipe");
    let run = async {
        // nft reads everything before it complains, and its complaint says more than a broken pipe.
        let written = stdin.write_all(rules.as_bytes()).await;
        drop(stdin);
        let output = child.wait_with_output().await.map_err(NftError::Run)?;
        if !output.status.success() {
            return Err(NftError::Refused(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        written.map_err(NftError::Input)
    };
    timeout(PATIENCE, run).await.map_err(|_| NftError::Timeout)?
}

const NLM_F_REQUEST: u16 = 1;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWGEN: u16 = 15;
const NFT_MSG_GETGEN: u16 = 16;
const NFTA_GEN_ID: u16 = 1;
/// struct nlmsghdr and struct nfgenmsg.
const HEADER: usize = 16 + 4;

fn generation() -> io::Result<u32> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    let mut request = Vec::with_capacity(HEADER);
    request.extend((HEADER as u32).to_ne_bytes());
    request.extend((NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETGEN).to_ne_bytes());
    request.extend(NLM_F_REQUEST.to_ne_bytes());
    request.resize(HEADER, 0);
    socket.send_to(&request, &SocketAddr::new(0, 0), 0)?;
    let (reply, _) = socket.recv_from_full()?;
    parse_generation(&reply).ok_or_else(|| io::Error::other("the answer is not a generation"))
}

fn parse_generation(reply: &[u8]) -> Option<u32> {
    let kind = u16::from_ne_bytes(reply.get(4..6)?.try_into().ok()?);
    if kind != NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWGEN {
        return None;
    }
    let mut rest = reply.get(HEADER..)?;
    loop {
        let length = usize::from(u16::from_ne_bytes(rest.get(..2)?.try_into().ok()?));
        let kind = u16::from_ne_bytes(rest.get(2..4)?.try_into().ok()?);
        if kind == NFTA_GEN_ID {
            return Some(u32::from_be_bytes(rest.get(4..8)?.try_into().ok()?));
        }
        rest = rest.get(length.max(4).next_multiple_of(4)..)?;
    }
}
