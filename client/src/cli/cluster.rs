//! `flotilla init`, `status`, `node`, `range` and `debug`: the cluster and its ranges.

use flotilla_proto::v1;
use flotilla_types::{ClusterId, Key, KeySpan, keys};
use serde_json::{Value, json};

use super::args::{DebugCommand, Form, NodeCommand, RangeCommand};
use super::failure::{Failure, Outcome};
use super::output::Output;
use crate::{Client, Error};

pub(crate) async fn init(client: &Client, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let id = cluster_id(&client.init().await?)?.ok_or(Error::BadAnswer { what: "a cluster without id" })?;
    output.answer(&json!({ "cluster_id": id }), || format!("cluster {id} made"))?;
    Ok(Outcome::Done)
}

pub(crate) async fn status(client: &Client, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let status = client.status().await?;
    let id = cluster_id(&status.cluster_id)?;
    let answer = json!({
        "cluster_id": id,
        "version": status.version,
        "node_id": status.node_id,
        "nodes": status.nodes,
        "nodes_live": status.nodes_live,
        "replicas": status.replicas,
        "leaders": status.leaders,
        "timestamp": status.timestamp.map(|t| crate::kv::timestamp(Some(&t)).to_string()),
    });
    output.answer(&answer, || match &id {
        None => format!("version {}, no cluster yet: make one with `flotilla init`", status.version),
        Some(id) => format!(
            "cluster   {id}\nnodes     {} of {} live\nasked     node {}, version {}\nreplicas  {} there, {} of them lead",
            status.nodes_live, status.nodes, status.node_id, status.version, status.replicas, status.leaders
        ),
    })?;
    Ok(Outcome::Done)
}

pub(crate) async fn node(client: &Client, command: &NodeCommand, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let NodeCommand::Ls = command;
    let nodes: Vec<Value> = client.nodes().await?.iter().map(node_object).collect();
    let columns = ["node", "address", "locality", "live", "version", "replicas", "leaders"];
    output.list(&columns, &nodes, |node| columns.iter().map(|column| cell(&node[*column])).collect())?;
    Ok(Outcome::Done)
}

fn node_object(node: &v1::Node) -> Value {
    json!({
        "node": node.node_id,
        "address": node.address,
        "locality": node.locality,
        "live": node.live,
        "version": node.version,
        "replicas": node.replicas,
        "leaders": node.leaders,
    })
}

pub(crate) async fn range(
    client: &Client,
    form: Form,
    command: RangeCommand,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    match command {
        RangeCommand::Ls { user, limit } => {
            let span = if user { keys::user_span() } else { KeySpan::ALL };
            let ranges: Vec<Value> = client.ranges(&span, limit).await?.iter().map(range_object).collect();
            list_ranges(&ranges, output)?;
        }
        RangeCommand::Split { key } => {
            let key = keys::user(&form.argument("the key", &key)?);
            let answer = client.split(&key).await?;
            let halves: Vec<Value> = [answer.left, answer.right].iter().flatten().map(descriptor_object).collect();
            list_ranges(&halves, output)?;
        }
        RangeCommand::Transfer { range, to } => {
            client.transfer_leader(range, to).await?;
            output.answer(&json!({ "range": range, "leader": to }), || format!("store {to} leads range {range}"))?;
        }
        RangeCommand::Replicas { range, voters, learners } => {
            let answer = client.change_replicas(range, voters, learners).await?;
            let changed: Vec<Value> = answer.descriptor.iter().map(descriptor_object).collect();
            list_ranges(&changed, output)?;
        }
    }
    Ok(Outcome::Done)
}

fn list_ranges(ranges: &[Value], output: &mut Output<'_>) -> Result<(), Failure> {
    let columns = ["range", "start", "end", "generation", "replicas", "leader", "applied", "bytes"];
    output.list(&columns, ranges, |range| columns.iter().map(|column| cell(&range[*column])).collect())
}

fn range_object(range: &v1::Range) -> Value {
    let mut object = range.descriptor.as_ref().map_or_else(|| json!({}), descriptor_object);
    object["leader"] = range.leaseholder.or(range.leader).into();
    object["applied"] = range.stats.as_ref().map(|stats| stats.applied_index).into();
    object["term"] = range.stats.as_ref().map(|stats| stats.term).into();
    object["bytes"] = range.stats.as_ref().map(|stats| stats.bytes).into();
    object
}

fn descriptor_object(descriptor: &v1::RangeDescriptor) -> Value {
    let replicas: Vec<String> = descriptor.replicas.iter().map(replica).collect();
    json!({
        "range": descriptor.range_id,
        "start": Key::new(descriptor.start.clone()).to_string(),
        "end": Key::new(descriptor.end.clone()).to_string(),
        "generation": descriptor.generation,
        "replicas": replicas,
    })
}

/// The store of a replica, marked unless it is an ordinary voter.
fn replica(replica: &v1::ReplicaDescriptor) -> String {
    let mark = match replica.kind() {
        v1::ReplicaKind::Voter | v1::ReplicaKind::Unspecified => "",
        v1::ReplicaKind::Learner => " learner",
        v1::ReplicaKind::VoterIncoming => " incoming",
        v1::ReplicaKind::VoterOutgoing => " outgoing",
        v1::ReplicaKind::VoterDemoting => " demoting",
    };
    format!("{}{mark}", replica.store_id)
}

pub(crate) async fn debug(
    client: &Client,
    command: &DebugCommand,
    output: &mut Output<'_>,
) -> Result<Outcome, Failure> {
    let DebugCommand::Checksum { range } = command;
    let mut hashes: Vec<Value> = Vec::new();
    let (mut ranges, mut disagreeing) = (0_u64, Vec::new());
    client
        .checksum(*range, |answer| {
            ranges += 1;
            if !agrees(&answer) {
                disagreeing.push(answer.range_id);
            }
            hashes.extend(answer.hashes.iter().map(|hash| hash_object(answer.range_id, hash)));
        })
        .await?;
    let columns = ["range", "replica", "store", "applied", "hash", "pairs", "error"];
    output.list(&columns, &hashes, |hash| columns.iter().map(|column| cell(&hash[*column])).collect())?;
    if disagreeing.is_empty() && ranges > 0 {
        return Ok(Outcome::Done);
    }
    let what = if ranges == 0 { "no range answered".to_owned() } else { format!("ranges {disagreeing:?} disagree") };
    Err(Failure::Data(format!("{what}: not all replicas gave the same hash at the same applied index")))
}

/// Believes the hashes rather than the word of the node that compared them.
fn agrees(answer: &v1::ChecksumResponse) -> bool {
    let mut states = answer.hashes.iter().map(|hash| (hash.applied_index, hash.hash, hash.pairs));
    let first = states.next();
    let same = first.is_some() && states.all(|state| Some(state) == first);
    answer.agree && same && answer.hashes.iter().all(|hash| hash.error.is_none())
}

fn hash_object(range: u64, hash: &v1::ReplicaHash) -> Value {
    let known = hash.error.is_none();
    json!({
        "range": range,
        "replica": hash.replica_id,
        "store": hash.store_id,
        "applied": known.then_some(hash.applied_index),
        "hash": known.then(|| format!("{:016x}", hash.hash)),
        "pairs": known.then_some(hash.pairs),
        "error": hash.error,
    })
}

fn cluster_id(bytes: &[u8]) -> Result<Option<String>, Failure> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let id = ClusterId::try_from(bytes).map_err(|_| Error::BadAnswer { what: "a cluster id that is none" })?;
    Ok(Some(id.to_string()))
}

/// A JSON value as a cell of a table.
pub(super) fn cell(value: &Value) -> String {
    match value {
        Value::Null => "-".to_owned(),
        Value::Bool(true) => "yes".to_owned(),
        Value::Bool(false) => "no".to_owned(),
        Value::String(text) if text.is_empty() => "-".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => items.iter().map(cell).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
