//! Acknowledged writes of 256 bytes, three voters on one disk: `SetNodeLabels` here, `Put` in etcd.
//!
//! Every client has a connection of its own to the leader: by its socket here, by TCP without TLS there.

use std::time::Duration;

use prost::Message;
use roster_proto::wire::{SetNodeLabelsRequest, control_client::ControlClient};
use tonic::{Request, codegen::http::uri::PathAndQuery, transport::Channel};
use tonic_prost::ProstCodec;

use super::{
    etcd::Etcd,
    wire::{self, Load},
};
use crate::lab::trial::Trial;

pub const CLIENTS: [usize; 3] = [1, 16, 128];
const LENGTH: Duration = Duration::from_secs(10);
/// As long as a label's value may be.
const VALUE: usize = 256;
/// A node has room for 64 labels, so the clients share out the nodes.
const LABELS: usize = 60;

/// Different each time: the same again would change nothing.
fn value(number: u64) -> String {
    format!("{number:0>VALUE$}")
}

pub fn roster(trial: &Trial, clients: usize) -> Result<Load, String> {
    let leader = trial.leader();
    let socket = trial.lab.host(&leader).map_err(|error| error.to_string())?.socket();
    let nodes: Vec<String> = trial.lab.hosts.iter().map(|host| host.name.clone()).collect();
    let operator = trial.lab.operator().map_err(|error| error.to_string())?;
    wire::inside(&operator, async || {
        let mut connected = Vec::new();
        for number in 0..clients {
            let channel = wire::unix(&socket).await?;
            let node = nodes[number / LABELS % nodes.len()].clone();
            connected.push((ControlClient::new(channel), node, format!("bench-{}", number % LABELS)));
        }
        wire::load(connected, LENGTH, async |(client, node, label), number| {
            let put = [(label.clone(), value(number))].into();
            let request = SetNodeLabelsRequest { node: node.clone(), put, remove: Vec::new() };
            client.set_node_labels(request).await.map(drop).map_err(|status| status.to_string())
        })
        .await
    })
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

pub fn etcd(trial: &Trial, etcd: &Etcd, clients: usize) -> Result<Load, String> {
    let leader = etcd.endpoints()[etcd.leader()?].clone();
    let operator = trial.lab.operator().map_err(|error| error.to_string())?;
    wire::inside(&operator, async || {
        let mut connected = Vec::new();
        for number in 0..clients {
            connected.push((tonic::client::Grpc::new(wire::tcp(&leader).await?), format!("bench-{number}")));
        }
        wire::load(connected, LENGTH, async |(client, key), number| {
            put(client, PutRequest { key: key.clone().into_bytes(), value: value(number).into_bytes() }).await
        })
        .await
    })
}

async fn put(client: &mut tonic::client::Grpc<Channel>, request: PutRequest) -> Result<(), String> {
    client.ready().await.map_err(|error| error.to_string())?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec = ProstCodec::<PutRequest, PutResponse>::default();
    client.unary(Request::new(request), path, codec).await.map(drop).map_err(|status| status.to_string())
}
