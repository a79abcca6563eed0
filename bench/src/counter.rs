//! `flotilla-bench counter`: many clients add to one key.
//!
//! The hottest key there can be: all operations meet. In the end it must hold what was acknowledged, and at most what
//! stayed unknown besides. How even the clients' shares are shows whether the queue at the key is fair.

use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use flotilla_client::{Client, Error};
use serde::Serialize;

use crate::Failure;
use crate::args::Counter as Args;
use crate::record::Kind;
use crate::report::{Findings, Run};
use crate::run::{Done, Turn, Workload, connect, measure};

const KEY: &str = "bench-counter";

/// What became of the counter, in whole runs: what was done while it warmed up is part of it.
#[derive(Debug, Clone, Copy, Serialize)]
pub(crate) struct CounterFindings {
    /// What it grew by.
    grown: i64,
    /// Additions that were acknowledged.
    acknowledged: i64,
    /// Additions whose outcome is unknown.
    unknown: i64,
}

impl CounterFindings {
    pub(crate) fn hold(&self) -> bool {
        (self.acknowledged..=self.acknowledged + self.unknown).contains(&self.grown)
    }

    pub(crate) fn line(&self) -> String {
        format!("acknowledged={} unknown={} grown={}", self.acknowledged, self.unknown, self.grown)
    }
}

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Args) -> Result<Vec<Run>, Failure> {
    let client = connect(&args.run.cluster).await?;
    let mut runs = Vec::new();
    for clients in &args.run.clients {
        let before = client.increment(KEY, 0).await?;
        let adding = Adding { args: args.clone(), acknowledged: AtomicI64::new(0), unknown: AtomicI64::new(0) };
        let (measured, adding) = measure(&client, adding, &args.run, *clients).await?;
        let grown = client.increment(KEY, 0).await? - before;
        let (acknowledged, unknown) = (adding.acknowledged.into_inner(), adding.unknown.into_inner());
        let findings = CounterFindings { grown, acknowledged, unknown };
        runs.push(Run::new(&measured, Some(Findings::Counter(findings))));
    }
    Ok(runs)
}

struct Adding {
    args: Args,
    acknowledged: AtomicI64,
    unknown: AtomicI64,
}

impl Workload for Adding {
    async fn operate(&self, client: &Client, _: Turn<'_>) -> Done {
        let done = match self.args.interactive {
            true => self.add_in_transaction(client).await,
            false => Done::plain(Kind::Increment, client.increment(KEY, 1).await),
        };
        match &done.result {
            Ok(()) => self.acknowledged.fetch_add(1, Ordering::Relaxed),
            Err(error) if error.is_ambiguous() => self.unknown.fetch_add(1, Ordering::Relaxed),
            Err(_) => 0,
        };
        done
    }
}

impl Adding {
    async fn add_in_transaction(&self, client: &Client) -> Done {
        let mut attempts = 0_u64;
        let added = client.run(self.args.txn.options(), |txn| {
            attempts += 1;
            async move {
                let found = match self.args.txn.lock {
                    true => txn.get_for_update(KEY).await?,
                    false => txn.get(KEY).await?,
                };
                let held = found.map_or(Ok([0; 8]), |found| found.value[..].try_into());
                let held = held.map_err(|_| Error::BadAnswer { what: "a counter that is none" })?;
                let sum = i64::from_be_bytes(held) + 1;
                txn.put(KEY, Bytes::copy_from_slice(&sum.to_be_bytes())).await
            }
        });
        let result = added.await.map(|_| ());
        Done { kind: Kind::Increment, restarts: attempts.saturating_sub(1), result }
    }
}
