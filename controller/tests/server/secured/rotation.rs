//! A new authority takes over from the old one, and nobody is left outside.

use roster_tls::renew;

use super::*;

impl Secured {
    async fn authorities(&self) -> Vec<String> {
        let status = self.root().status(wire::ClusterStatusRequest {}).await.expect("status");
        status.into_inner().authorities
    }
}

#[tokio::test]
async fn the_old_authority_counts_until_everybody_has_renewed() {
    let cluster = Secured::start().await;
    let agent = cluster.agent("vm1").await;
    let ann = cluster.person("ann", "admin").await;
    let old = cluster.authorities().await;
    assert_eq!(old.len(), 1);

    cluster.root().rotate_authority(wire::RotateAuthorityRequest {}).await.expect("begun");
    let both = cluster.authorities().await;
    assert_eq!((both.len(), &both[1]), (2, &old[0]));
    let status = cluster.root().rotate_authority(wire::RotateAuthorityRequest {}).await.expect_err("under way");
    assert_eq!(status.code(), Code::FailedPrecondition);
    assert!(status.message().contains("node vm1") && status.message().contains("user ann"), "{status}");

    // Those who have not heard of it go on, and so does a token from before.
    list(cluster.member(&ann).await).await.expect("as before");
    let late = cluster.agent("vm2").await;
    assert_eq!(late.authorities.len(), 2);
    let renewed = renew(cluster.member(&agent).await, &agent).await.expect("renewed");
    let hex = |digest: [u8; 32]| digest.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(renewed.signer().map(hex).as_ref(), Some(&both[0]));

    // Ann is gone for good: without her, everybody has renewed. The controller did so by itself.
    cluster.root().remove_user(wire::RemoveUserRequest { name: "ann".to_owned() }).await.expect("removed");
    let ended = async {
        loop {
            let now = cluster.authorities().await;
            if now.len() == 1 {
                return now;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    let now = tokio::time::timeout(DEADLINE * 2, ended).await.expect("the rotation ends by itself");
    assert_eq!(now[0], both[0]);

    let status = DispatchClient::new(cluster.member(&renewed).await)
        .upload(wire::UploadRequest { request_id: "none".to_owned() })
        .await
        .expect_err("admitted, but there is no such request");
    assert_eq!(status.code(), Code::NotFound);
    let outlived = match cluster.try_member(&agent).await {
        Ok(channel) => list(channel).await.expect_err("refused").code() != Code::PermissionDenied,
        Err(_) => true,
    };
    assert!(outlived, "what the old authority signed is refused before anything else");
    let error = enroll(&cluster.agent_token, enrolment("vm3")).await.expect_err("the token names the old one");
    assert!(error.to_string().contains("make a new token"), "{error}");
    cluster.stop().await;
}
