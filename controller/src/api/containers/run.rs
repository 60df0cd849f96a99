//! What running a service's spec once is. Pure.

use std::collections::BTreeMap;

use roster_proto::{
    id::{ServiceId, ServiceName},
    spec::{
        HealthTest, Healthcheck, Mode, RestartCondition, RestartPolicy, ServiceSpec, StackSpec, TaskSpec, UpdatePolicy,
    },
    wire,
};
use sha2::{Digest, Sha256};
use tonic::Status;

use crate::{
    api::{
        filter::{FilterError, Selection},
        validate::validated,
    },
    state::{ClusterState, OneOff, command::Command},
    status::invalid_id,
};

/// Letters and digits behind `-run-`: so many that two requests do not meet.
const SUFFIX: usize = 8;
/// Of the service's name before it, so that all is a name still.
const STEM: usize = 63 - SUFFIX - "-run-".len();

/// The one-off's own name, and the command that makes it. The same request gives the same again.
pub(super) fn command(
    state: &ClusterState,
    request: wire::RunRequest,
    id: Option<&str>,
) -> Result<(ServiceId, Command), Status> {
    let of = service(state, &request.service)?;
    let service = state.services.get(&of).ok_or_else(|| Status::internal(format!("{of} is gone")))?;
    let name = match &request.name {
        Some(name) => ServiceName::new(name.as_str()).map_err(invalid_id)?,
        None => ServiceName::new(format!("{}-run-{}", stem(of.name.as_str()), suffix(id))).map_err(invalid_id)?,
    };
    let one_off = OneOff { of: of.name, remove_when_ended: request.remove_when_ended };
    let spec = once(&service.spec, request)?;
    // As if it had been applied: what people add to a spec is checked like the spec.
    let stack = StackSpec { name: of.stack.clone(), services: BTreeMap::from([(name.clone(), spec)]) };
    let spec = validated(stack)?.services.remove(&name).ok_or_else(|| Status::internal("the spec got lost"))?;
    let service = ServiceId::new(of.stack, name);
    Ok((service.clone(), Command::RunOnce { service, one_off, spec: Box::new(spec) }))
}

fn service(state: &ClusterState, name: &str) -> Result<ServiceId, Status> {
    let filter = wire::Filter { service: Some(name.to_owned()), ..Default::default() };
    let selection = Selection::resolve(state, &filter)?;
    let found = state.services.keys().find(|id| selection.has_service(id)).cloned();
    let missing = || FilterError::NotFound { what: "service", given: name.to_owned(), hint: String::new() };
    Ok(found.ok_or_else(missing)?)
}

fn stem(name: &str) -> &str {
    name.get(..STEM).unwrap_or(name)
}

/// Of the request's id, so that one that comes again is not another.
fn suffix(id: Option<&str>) -> String {
    let digest: [u8; 32] = match id {
        Some(id) => Sha256::digest(id).into(),
        None => rand::random(),
    };
    let letter = |byte: &u8| char::from_digit(u32::from(*byte) % 36, 36).unwrap_or('0');
    digest.iter().take(SUFFIX).map(letter).collect()
}

/// The service's spec for one task, with what the request says instead.
fn once(of: &ServiceSpec, request: wire::RunRequest) -> Result<ServiceSpec, Status> {
    if request.env.keys().any(|name| name.is_empty() || name.contains('=')) {
        return Err(Status::invalid_argument("field env: a variable's name must not be empty or hold '='"));
    }
    if let Some(partner) = of.task.rights.shares_with() {
        return Err(Status::failed_precondition(format!(
            "its containers share the namespaces of service {partner}, replica by replica, which one that runs once has \
             no part in: use `rctl exec` in one of its replicas, or run a service that shares nothing"
        )));
    }
    let mut task = TaskSpec {
        ports: Vec::new(),
        healthcheck: Some(Healthcheck { test: HealthTest::Disabled, ..Healthcheck::default() }),
        singleton: false,
        tty: request.tty,
        stdin_open: request.input,
        attended: request.attended,
        ..of.task.clone()
    };
    if let Some(entrypoint) = request.entrypoint {
        // The service's command is an argument of its own entrypoint.
        (task.entrypoint, task.command) = (Some(entrypoint.values), None);
    }
    if let Some(command) = request.command {
        task.command = Some(command.values);
    }
    task.environment.extend(request.env);
    task.user = request.user.or(task.user);
    task.working_dir = request.working_dir.or(task.working_dir);
    Ok(ServiceSpec {
        mode: Mode::Replicated { replicas: 1 },
        restart: RestartPolicy { condition: RestartCondition::Never, ..RestartPolicy::default() },
        update: UpdatePolicy::default(),
        labels: of.labels.clone(),
        extensions: BTreeMap::new(),
        task,
    })
}

#[cfg(test)]
mod tests;
