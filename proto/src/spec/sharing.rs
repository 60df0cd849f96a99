//! Which services of a stack can share the namespaces of which others: the same rules for `rctl` and the controller.

use std::collections::BTreeMap;

use super::{IpcMode, Mode, PidMode, ServiceSpec, UpdateOrder, rules::Unfit};
use crate::id::ServiceName;

/// All that stands against it, each with the service where it is to be told.
///
/// `is_named`: there is a service of this name, though it may not be among those whose spec is known.
pub fn problems(
    services: &BTreeMap<ServiceName, ServiceSpec>,
    is_named: impl Fn(&ServiceName) -> bool,
) -> Vec<(ServiceName, Unfit)> {
    let mut all = Vec::new();
    for (name, service) in services {
        let Some(partner) = service.task.rights.shares_with() else { continue };
        let mut found = of_two_names(service);
        match services.get(partner) {
            _ if partner == name => found.push(Unfit::new(
                format_args!("the service {name} cannot share its own namespaces"),
                "name another service of this file",
            )),
            Some(other) => found.extend(of_pair(name, service, partner, other)),
            None if is_named(partner) => {}
            None => found.push(Unfit::new(
                format_args!("`service:{partner}`: there is no service of this name in the file"),
                "name a service of the same file",
            )),
        }
        all.extend(found.into_iter().map(|unfit| (name.clone(), unfit)));
    }
    all
}

fn of_two_names(service: &ServiceSpec) -> Vec<Unfit> {
    match (&service.task.rights.ipc, &service.task.rights.pid) {
        (IpcMode::Service(ipc), PidMode::Service(pid)) if ipc != pid => {
            let what = format!("`ipc` names the service {ipc} and `pid` the service {pid}");
            vec![Unfit::new(what, "name the same service in both: a container goes where that one runs")]
        }
        _ => Vec::new(),
    }
}

fn of_pair(name: &ServiceName, service: &ServiceSpec, partner: &ServiceName, other: &ServiceSpec) -> Vec<Unfit> {
    let mut found = Vec::new();
    if let Some(third) = other.task.rights.shares_with() {
        let what = format!("the service {partner} itself shares the namespaces of {third}");
        found.push(Unfit::new(what, format_args!("name the service {third}")));
    }
    match (service.mode, other.mode) {
        (Mode::Replicated { replicas }, Mode::Replicated { replicas: most }) if replicas > most => {
            let what = format!("{replicas} replicas cannot share the namespaces of the {most} of {partner}");
            found.push(Unfit::new(what, "a replica goes with the same replica: ask for no more of them"));
        }
        (Mode::Replicated { .. }, Mode::Replicated { .. }) | (Mode::Global, Mode::Global) => {}
        (Mode::Replicated { .. }, Mode::Global) | (Mode::Global, Mode::Replicated { .. }) => {
            let what = format!("only one of {name} and {partner} is in global mode");
            found.push(Unfit::new(what, "give both the same `deploy.mode`: a replica goes with the same replica"));
        }
    }
    for (whose, spec) in [(name, service), (partner, other)] {
        if spec.update.order == UpdateOrder::StartFirst {
            let what = format!("the service {whose} is updated `start-first`: two of it run at once then");
            found.push(Unfit::new(what, "remove `order: start-first`: what shares namespaces is stopped first"));
        }
        if let Some(runtime) = &spec.task.runtime {
            let what = format!("the runtime {runtime} makes the containers of {whose}, whose namespaces only it knows");
            found.push(Unfit::new(what, "remove `runtime`"));
        }
    }
    found
}
