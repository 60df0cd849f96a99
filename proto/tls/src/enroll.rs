//! How one gets a certificate, and a newer one.

use std::time::Duration;

use roster_proto::wire::{self, enroll_client::EnrollClient};
use tonic::{Status, body::Body, client::GrpcService, transport::Channel};

use crate::{
    ConnectError, Identity, IdentityError, KeyAndRequest, SignError, TlsError, Token, anonymous_client_config, connect,
};

/// Of one call: a controller without a leader says so at once, so silence is worse than that.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum EnrollError {
    #[error(transparent)]
    Key(#[from] SignError),
    #[error(transparent)]
    Tls(#[from] TlsError),
    #[error(transparent)]
    Connect(#[from] ConnectError),
    #[error("the controller refused: {}", .0.message())]
    Refused(Status),
    #[error("the controller's answer cannot be used")]
    Identity(#[from] IdentityError),
    #[error("the controller gave a certificate for {given:?} instead of {asked:?}")]
    OtherSubject { given: String, asked: String },
}

/// Joins by `token` as `request.name`; the rest of the request is filled in here.
pub async fn enroll(token: &Token, request: wire::EnrollRequest) -> Result<Identity, EnrollError> {
    let key = KeyAndRequest::generate(&request.name)?;
    enroll_with(key, token, request).await
}

/// As [`enroll`], with a key that was made before. Asking again with the same one is answered again, and uses up nothing.
pub async fn enroll_with(
    key: KeyAndRequest,
    token: &Token,
    request: wire::EnrollRequest,
) -> Result<Identity, EnrollError> {
    let config = anonymous_client_config(&token.cluster, token.authority)?;
    let channel = connect(&token.addresses, config).await?;
    enroll_over(channel, key, token, request).await
}

/// The same by `way`, whose other end is trusted: a connection that was made to the token's authority, or the
/// controller's own socket.
pub async fn enroll_over<T>(
    way: T,
    key: KeyAndRequest,
    token: &Token,
    request: wire::EnrollRequest,
) -> Result<Identity, EnrollError>
where
    T: GrpcService<Body, ResponseBody = Body>,
{
    let name = request.name.clone();
    let request =
        wire::EnrollRequest { token: token.to_string(), signing_request: key.request_der.clone().into(), ..request };
    let mut request = tonic::Request::new(request);
    request.set_timeout(ANSWER_TIMEOUT);
    let answer = EnrollClient::new(way).enroll(request).await.map_err(EnrollError::Refused)?;
    let identity = Identity::assemble(key, answer.into_inner())?;
    let asked = format!("{}/{name} of {}", token.role, token.cluster);
    let subject = identity.subject()?;
    let given = format!("{subject} of {}", subject.cluster);
    if given == asked { Ok(identity) } else { Err(EnrollError::OtherSubject { given, asked }) }
}

/// A newer certificate for the same subject, with a fresh key, by a connection that was made with `present`.
pub async fn renew(channel: Channel, present: &Identity) -> Result<Identity, EnrollError> {
    let subject = present.subject()?;
    let key = KeyAndRequest::generate(&subject.name)?;
    let mut request = tonic::Request::new(wire::RenewRequest { signing_request: key.request_der.clone().into() });
    request.set_timeout(ANSWER_TIMEOUT);
    let answer = EnrollClient::new(channel).renew(request).await.map_err(EnrollError::Refused)?;
    let mut renewed = Identity::assemble(key, answer.into_inner())?;
    renewed.peer = renewed.peer.or(present.peer);
    let (asked, given) = (subject, renewed.subject()?);
    if asked == given {
        Ok(renewed)
    } else {
        let tell = |subject: &crate::Subject| format!("{subject} of {}", subject.cluster);
        Err(EnrollError::OtherSubject { given: tell(&given), asked: tell(&asked) })
    }
}
