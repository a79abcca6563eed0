//! `flotilla txn`: what is open. Each node knows the transactions that it is the gateway of, and who waits in the ranges that it
//! leads; all are asked, and their answers joined here.

use flotilla_proto::v1;
use flotilla_types::{Key, TxnId};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::args::TxnCommand;
use super::cluster::cell;
use super::failure::{Failure, Outcome};
use super::output::Output;
use crate::{Client, Error};

pub(crate) async fn run(client: &Client, command: &TxnCommand, output: &mut Output<'_>) -> Result<Outcome, Failure> {
    let TxnCommand::Ls { node, limit } = command;
    let Asked { answers, silent } = ask_all(client, *limit).await?;
    if let Some(node) = node
        && answers.iter().all(|answer| answer.node_id != *node)
        && silent.iter().all(|(silent, _)| silent != node)
    {
        return Err(Failure::Usage(format!("node {node} is none of the cluster's: see `flotilla node ls`")));
    }
    let waits: Vec<&v1::LockWait> = answers.iter().flat_map(|answer| &answer.waits).collect();
    let mut open: Vec<(u64, &v1::OpenTransaction)> = answers
        .iter()
        .filter(|answer| node.is_none_or(|node| answer.node_id == node))
        .flat_map(|answer| answer.transactions.iter().map(|open| (answer.node_id, open)))
        .collect();
    open.sort_by_key(|(_, open)| std::cmp::Reverse(open.age_ms));
    let rows = open.into_iter().map(|(gateway, open)| object(gateway, open, &waits));
    let rows = rows.collect::<Result<Vec<_>, Error>>()?;
    let columns = ["txn", "age", "isolation", "priority", "node", "locks", "keys", "anchor", "waits for"];
    output.list(&columns, &rows, row)?;
    // What is missing is told after what is there.
    let left_out = left_out(&answers, *node);
    match (&silent[..], left_out) {
        ([], 0) => Ok(Outcome::Done),
        ([], left_out) => Err(Failure::Data(format!("{left_out} younger ones are left out: give a larger --limit"))),
        (silent, _) => {
            let silent: Vec<String> = silent.iter().map(|(node, why)| format!("node {node}: {why}")).collect();
            Err(Failure::Data(format!("what these know is missing: {}", silent.join("; "))))
        }
    }
}

/// What all nodes say, and why some do not.
struct Asked {
    answers: Vec<v1::TransactionsResponse>,
    silent: Vec<(u64, String)>,
}

async fn ask_all(client: &Client, limit: u64) -> Result<Asked, Error> {
    let mut asking = JoinSet::new();
    let mut asked = Asked { answers: Vec::new(), silent: Vec::new() };
    for node in client.nodes().await? {
        if !node.live {
            asked.silent.push((node.node_id, "it is not reached".to_owned()));
            continue;
        }
        let client = client.clone();
        asking.spawn(async move { (node.node_id, client.transactions(&node.address, limit).await) });
    }
    for (node, answer) in asking.join_all().await {
        match answer {
            Ok(answer) => asked.answers.push(answer),
            Err(error) => asked.silent.push((node, error.to_string())),
        }
    }
    asked.silent.sort();
    Ok(asked)
}

/// How many open transactions the answers do not name.
fn left_out(answers: &[v1::TransactionsResponse], node: Option<u64>) -> u64 {
    let asked = answers.iter().filter(|answer| node.is_none_or(|node| answer.node_id == node));
    asked.map(|answer| answer.open.saturating_sub(answer.transactions.len() as u64)).sum()
}

fn object(gateway: u64, open: &v1::OpenTransaction, waits: &[&v1::LockWait]) -> Result<Value, Error> {
    let mut waits: Vec<&v1::LockWait> = waits.iter().filter(|wait| wait.waiter == open.txn_id).copied().collect();
    // Two nodes may have led the range lately.
    waits.sort_by(|a, b| (&a.key, &a.holder, a.waiting_ms).cmp(&(&b.key, &b.holder, b.waiting_ms)));
    waits.dedup_by(|a, b| (&a.key, &a.holder) == (&b.key, &b.holder));
    let waits = waits
        .into_iter()
        .map(|wait| Ok(json!({ "key": key(&wait.key), "holder": id(&wait.holder)?, "waiting_ms": wait.waiting_ms })));
    Ok(json!({
        "txn": id(&open.txn_id)?,
        "age_ms": open.age_ms,
        "isolation": open.isolation().as_str_name().to_lowercase(),
        "priority": open.priority().as_str_name().to_lowercase(),
        "node": gateway,
        "locks": open.locks,
        "keys": open.first_locks.iter().map(key).collect::<Vec<_>>(),
        "anchor": open.anchor.as_ref().map(key),
        "aborted": open.aborted,
        "waits_for": waits.collect::<Result<Vec<_>, Error>>()?,
    }))
}

fn row(open: &Value) -> Vec<String> {
    let list = |field: &str| open[field].as_array().map(Vec::as_slice).unwrap_or_default();
    let waits: Vec<String> =
        list("waits_for").iter().map(|wait| format!("{} of {}", cell(&wait["key"]), cell(&wait["holder"]))).collect();
    let more = open["locks"].as_u64().unwrap_or_default() > list("keys").len() as u64;
    let keys = format!("{}{}", cell(&open["keys"]), if more { ",…" } else { "" });
    let or_none = |text: String| if text.is_empty() { "-".to_owned() } else { text };
    vec![
        cell(&open["txn"]),
        age(open["age_ms"].as_u64().unwrap_or_default()),
        cell(&open["isolation"]),
        cell(&open["priority"]),
        cell(&open["node"]),
        cell(&open["locks"]),
        or_none(keys),
        cell(&open["anchor"]),
        if open["aborted"] == true { "aborted".to_owned() } else { or_none(waits.join(", ")) },
    ]
}

/// Two units are enough for an age.
fn age(ms: u64) -> String {
    match ms / 1000 {
        0 => format!("{ms}ms"),
        seconds @ 1..=59 => format!("{seconds}.{}s", ms % 1000 / 100),
        seconds @ 60..=3599 => format!("{}m{}s", seconds / 60, seconds % 60),
        seconds => format!("{}h{}m", seconds / 3600, seconds % 3600 / 60),
    }
}

fn id(bytes: &bytes::Bytes) -> Result<String, Error> {
    let id = bytes[..].try_into().map_err(|_| Error::BadAnswer { what: "a transaction's id that is none" })?;
    Ok(TxnId(id).to_string())
}

fn key(bytes: &bytes::Bytes) -> String {
    Key::new(bytes.clone()).to_string()
}

#[cfg(test)]
mod tests {
    use super::age;

    #[test]
    fn ages_are_short() {
        let ages = [7, 1_290, 61_000, 3_600_000 * 30].map(age);
        assert_eq!(ages, ["7ms", "1.2s", "1m1s", "30h0m"]);
    }
}
