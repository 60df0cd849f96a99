//! What users do in the containers of this node, through the controller.

use futures::StreamExt;
use roster_proto::{
    id::TaskId,
    wire::{self, answer_part, dispatch_client::DispatchClient},
};
use tokio::sync::mpsc;
use tonic::transport::Channel;

use super::requests::{ANSWER_PARTS, Answer, Failure, Services, part};

/// The caller's input comes with the request, as an archive does; it goes on for as long as the caller is there.
pub(super) async fn produce<S: Services>(
    services: &S,
    mut uploads: DispatchClient<Channel>,
    id: &str,
    live: wire::TaskLive,
    answer: &Answer,
) -> Result<(), Failure> {
    let task = TaskId::new(live.task).map_err(|error| Failure::Invalid(error.to_string()))?;
    let unknown = || Failure::Invalid("this agent does not know such work in a container: update it".to_owned());
    let work = live.work.and_then(|work| work.work).ok_or_else(unknown)?;
    let request = wire::UploadRequest { request_id: id.to_owned() };
    let sent = uploads.upload(request).await;
    let sent = sent.map_err(|status| Failure::Unavailable(format!("cannot hear the caller: {}", status.message())))?;
    let input = sent.into_inner().map(|chunk| match chunk {
        Ok(wire::Chunk { input: Some(wire::LiveInput { input: Some(input) }), .. }) => Ok(input),
        Ok(_) => Err("it sent what is no input".to_owned()),
        Err(status) => Err(status.message().to_owned()),
    });
    let (output, mut produced) = mpsc::channel(ANSWER_PARTS);
    let forward = async {
        while let Some(output) = produced.recv().await {
            if answer.send(part(answer_part::Part::Live(output))).await.is_err() {
                return;
            }
        }
    };
    let (result, ()) = tokio::join!(services.live(&task, work, input.boxed(), output), forward);
    result
}
