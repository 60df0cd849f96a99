//! A cluster's authority, and controllers that a test plays behind real TLS.

use std::{
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, SystemTime},
};

use roster_proto::wire::{self, enroll_server::Enroll};
use roster_tls::{Authority, Identity, KeyAndRequest, Role, Subject};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, transport::server::Connected};

use super::controller::Heard;

const ID: &str = "k3vq7m2xw5ot4zpa";
pub(super) const HOUR: Duration = Duration::from_secs(3600);

pub(super) fn authority() -> Arc<Authority> {
    Arc::new(Authority::new(ID, SystemTime::now()).unwrap())
}

/// Signed `ago`, for an hour.
pub(super) fn identity(authority: &Authority, role: Role, name: &str, ago: Duration) -> Identity {
    let key = KeyAndRequest::generate(name).unwrap();
    let certificate = sign(authority, &key.request_der, role, name, SystemTime::now() - ago);
    Identity {
        certificates: vec![certificate],
        key_pem: key.key_pem,
        authorities: vec![authority.certificate().to_vec()],
        cluster: ID.to_owned(),
        controllers: Vec::new(),
        peer: None,
    }
}

fn sign(authority: &Authority, request: &[u8], role: Role, name: &str, now: SystemTime) -> Vec<u8> {
    let subject = Subject { cluster: ID.to_owned(), role, name: name.to_owned() };
    authority.sign(request, &subject, HOUR, now).unwrap()
}

/// Renews any certificate, for the node `vm1`.
pub(super) struct Renewals {
    pub(super) authority: Arc<Authority>,
    pub(super) heard: Arc<watch::Sender<Heard>>,
}

#[tonic::async_trait]
impl Enroll for Renewals {
    async fn enroll(&self, _: Request<wire::EnrollRequest>) -> Result<Response<wire::Credentials>, Status> {
        Err(Status::unimplemented("agents enroll by rctl"))
    }

    async fn renew(&self, request: Request<wire::RenewRequest>) -> Result<Response<wire::Credentials>, Status> {
        let request = request.into_inner().signing_request;
        self.heard.send_modify(|heard| heard.renewals += 1);
        let controllers = self.heard.borrow().controllers.clone();
        let certificate = sign(&self.authority, &request, Role::Agent, "vm1", SystemTime::now());
        Ok(Response::new(wire::Credentials {
            cluster: ID.to_owned(),
            certificates: vec![certificate.into()],
            authorities: vec![self.authority.certificate().to_vec().into()],
            controllers,
            peer: 0,
        }))
    }
}

/// What a listener takes in: connections whose client showed a certificate.
pub(super) fn connections(
    listener: TcpListener,
    identity: &Identity,
    closed: CancellationToken,
) -> ReceiverStream<std::io::Result<Tls>> {
    let config = roster_tls::server_config(identity).unwrap();
    let (connections, incoming) = mpsc::channel(16);
    tokio::spawn(async move {
        while let Some(Ok((stream, _))) = closed.run_until_cancelled(listener.accept()).await {
            let Ok(accepted) = roster_tls::accept(config.clone(), stream).await else { continue };
            assert!(accepted.certificate.is_some(), "an agent shows its certificate");
            if connections.send(Ok(Tls(accepted.stream))).await.is_err() {
                return;
            }
        }
    });
    ReceiverStream::new(incoming)
}

/// For tonic to serve.
pub(super) struct Tls(tokio_rustls::server::TlsStream<TcpStream>);

impl Connected for Tls {
    type ConnectInfo = ();

    fn connect_info(&self) {}
}

impl AsyncRead for Tls {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl AsyncWrite for Tls {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<Result<usize, std::io::Error>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Result<(), std::io::Error>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}
