//! What a user means by a name.

use roster_proto::wire;

/// A replica's name has a dot (`web.2`), which service and stack names cannot have.
pub(super) fn is_replica(target: &str) -> bool {
    target.contains('.')
}

pub(super) fn by_stack(stack: Option<String>) -> wire::Filter {
    wire::Filter { stack, ..Default::default() }
}

pub(super) fn by_service(service: &str) -> wire::Filter {
    wire::Filter { service: Some(service.to_owned()), ..Default::default() }
}

pub(super) fn by_task(task: &str) -> wire::Filter {
    wire::Filter { task: Some(task.to_owned()), ..Default::default() }
}

/// What the name could mean, the likeliest first. The controller says of each whether it exists.
pub(super) fn readings(target: &str) -> Vec<wire::Filter> {
    if is_replica(target) {
        vec![by_task(target)]
    } else if target.contains('/') {
        vec![by_service(target)]
    } else {
        vec![by_service(target), by_stack(Some(target.to_owned())), by_task(target)]
    }
}

/// Asks with each reading in turn until one exists, and says which; the first refusal is the one to tell.
pub(super) async fn first_that_exists<T, F>(
    readings: Vec<wire::Filter>,
    mut ask: impl FnMut(wire::Filter) -> F,
) -> Result<(wire::Filter, T), crate::error::Error>
where
    F: Future<Output = Result<T, tonic::Status>>,
{
    let mut refusal = None;
    for reading in readings {
        match ask(reading.clone()).await {
            Ok(answer) => return Ok((reading, answer)),
            Err(status) if status.code() == tonic::Code::NotFound => {
                refusal.get_or_insert(status);
            }
            Err(status) => return Err(status.into()),
        }
    }
    Err(refusal.unwrap_or_else(|| tonic::Status::not_found("nothing was asked for")).into())
}
