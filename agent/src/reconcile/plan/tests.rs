//! Scenarios, told as text, and properties over a small model of a host.

mod model;
mod scenarios;

use std::sync::Arc;

use roster_proto::{
    assignment::PublishedPort,
    id::Slot,
    spec::{Protocol, TaskSpec},
};

use super::*;

fn id(name: &str) -> TaskId {
    TaskId::new(name).unwrap()
}

fn at(millis: u64) -> Timestamp {
    Timestamp(0).plus(Duration::from_millis(millis))
}

/// A task of the image `web` that publishes port 8080 and has two seconds to stop.
fn assignment(name: &str, desired: Desired) -> Assignment {
    let spec = TaskSpec { stop_grace_period: Duration::from_secs(2), ..TaskSpec::of_image("web") };
    Assignment {
        task: id(name),
        service: "shop/web".parse().unwrap(),
        slot: Slot::Replica(1),
        desired,
        spec: Arc::new(spec),
        ports: vec![PublishedPort { published: 8080, target: 80, protocol: Protocol::Tcp, host_ip: None }],
        paused: false,
        shares_with: None,
    }
}
