//! One transaction of a script at its gateway: steps that are answered, steps that wait, and steps behind those.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router, Savepoint, ScanRequest, Txn, TxnOptions};
use flotilla_sim::{Cluster, Pending};
use flotilla_types::{Key, KeySpan, Row, Strength, Timestamp, Wait, keys};

use crate::script::{Deed, Value};

/// A step may wait for others as long as any script takes.
const PATIENCE: Duration = Duration::from_secs(60);

/// The key of a name.
pub(crate) fn key(name: &str) -> Key {
    keys::user(name.as_bytes())
}

/// A number as the store counts it.
pub(crate) fn encoded(number: i64) -> Bytes {
    Bytes::copy_from_slice(&number.to_be_bytes())
}

fn shown(value: Option<&Bytes>) -> String {
    let number = value.map(|value| <[u8; 8]>::try_from(&value[..]).map(i64::from_be_bytes));
    match number {
        None => "none".to_owned(),
        Some(Ok(number)) => number.to_string(),
        Some(Err(_)) => format!("{value:?}"),
    }
}

/// What a step brought.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Said {
    Done,
    /// What was read where.
    Saw(String, String),
    Committed(Timestamp),
    RolledBack,
}

impl Said {
    /// As traces show it.
    pub(crate) fn shown(&self) -> String {
        match self {
            Self::Done => "done".to_owned(),
            Self::Saw(_, value) => value.clone(),
            Self::Committed(_) => "committed".to_owned(),
            Self::RolledBack => "rolled back".to_owned(),
        }
    }
}

/// A step that was asked for.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    pub(crate) deed: Deed,
    pub(crate) text: String,
}

/// The answer to a step.
#[derive(Debug)]
pub(crate) struct Told {
    /// When it came.
    pub(crate) at: Duration,
    pub(crate) asked: Asked,
    pub(crate) said: Result<Said, KvError>,
}

/// A transaction under way.
struct Open {
    txn: Box<Txn>,
    /// Where it may go back to.
    savepoint: Option<Savepoint>,
}

impl Open {
    fn begin(router: &Router, options: TxnOptions) -> Result<Self, KvError> {
        Ok(Self { txn: Box::new(router.begin(options)?), savepoint: None })
    }
}

/// What comes back from a step: the transaction, if it lives on, and the answer.
type Returned = (Option<Open>, Result<Said, KvError>);

enum State {
    /// Nothing is under way; `None` before the first step.
    Idle(Option<Open>),
    Busy {
        asked: Asked,
        pending: Pending<Returned>,
    },
    Ended,
}

/// See the module's page.
pub(crate) struct Session {
    gateway: u64,
    pub(crate) options: TxnOptions,
    /// Each step is a transaction of its own.
    alone: bool,
    state: State,
    /// Steps behind the one that waits.
    pub(crate) behind: VecDeque<Asked>,
    /// What it read last.
    last: BTreeMap<String, i64>,
}

impl Session {
    pub(crate) fn new(gateway: u64, options: TxnOptions, alone: bool) -> Self {
        let (behind, last) = (VecDeque::new(), BTreeMap::new());
        Self { gateway, options, alone, state: State::Idle(None), behind, last }
    }

    pub(crate) const fn has_ended(&self) -> bool {
        matches!(self.state, State::Ended)
    }

    pub(crate) const fn is_busy(&self) -> bool {
        matches!(self.state, State::Busy { .. })
    }

    pub(crate) fn is_answered(&self) -> bool {
        matches!(&self.state, State::Busy { pending, .. } if pending.is_answered())
    }

    /// Sends a step on its way.
    pub(crate) fn begin(&mut self, cluster: &mut Cluster, asked: Asked) {
        let State::Idle(open) = std::mem::replace(&mut self.state, State::Ended) else {
            panic!("{}: the transaction is busy or has ended", asked.text);
        };
        let deed = self.resolved(&asked.deed);
        let (options, alone) = (self.options.clone(), self.alone);
        let pending = cluster.start(self.gateway, PATIENCE, move |router, deadline| async move {
            let open = match open {
                Some(open) => open,
                None => Open::begin(&router, options)?,
            };
            Ok(if alone {
                perform_alone(router, open, deed, deadline).await
            } else {
                perform(open, deed, deadline).await
            })
        });
        self.state = State::Busy { asked, pending: pending.expect("the gateway is up") };
    }

    /// The answer, if it has come.
    pub(crate) fn take(&mut self) -> Option<Told> {
        let State::Busy { pending, .. } = &self.state else { return None };
        let answer = pending.take()?;
        let State::Busy { asked, .. } = std::mem::replace(&mut self.state, State::Ended) else { return None };
        let (open, said) = answer.result.unwrap_or_else(|error| (None, Err(error)));
        if open.is_some() {
            self.state = State::Idle(open);
        }
        if let Ok(Said::Saw(key, value)) = &said
            && let Ok(number) = value.parse()
        {
            self.last.insert(key.clone(), number);
        }
        Some(Told { at: answer.at, asked, said })
    }

    /// With the values that depend on what was read.
    fn resolved(&self, deed: &Deed) -> Deed {
        match deed {
            Deed::Put(key, Value::Read(of, more)) => {
                let read = self.last.get(of).copied().unwrap_or_default();
                Deed::Put(key.clone(), Value::Number(read + more))
            }
            other => other.clone(),
        }
    }
}

/// Carries a step out as a transaction of its own. What ends the script's transaction or goes back in it does nothing.
async fn perform_alone(router: Router, open: Open, deed: Deed, deadline: Duration) -> Returned {
    match deed {
        Deed::Commit => (None, router.clock().now().map(Said::Committed).map_err(KvError::from)),
        Deed::Rollback => (None, Ok(Said::RolledBack)),
        Deed::Savepoint | Deed::RollbackTo => (Some(open), Ok(Said::Done)),
        deed => {
            let (open, said) = perform(open, deed, deadline).await;
            if let Some(open) = open
                && let Err(error) = open.txn.commit(deadline).await
            {
                return (None, Err(error));
            }
            match Open::begin(&router, TxnOptions::default()) {
                Ok(next) => (Some(next), said),
                Err(error) => (None, Err(error)),
            }
        }
    }
}

/// Carries a step out. A transaction that cannot go on is rolled back, as a client would.
async fn perform(mut open: Open, deed: Deed, deadline: Duration) -> Returned {
    let said = match deed {
        Deed::Commit => return (None, open.txn.commit(deadline).await.map(|committed| Said::Committed(committed.at))),
        Deed::Rollback => {
            open.txn.rollback().await;
            return (None, Ok(Said::RolledBack));
        }
        Deed::Savepoint => {
            open.savepoint = Some(open.txn.savepoint());
            Ok(Said::Done)
        }
        Deed::RollbackTo => {
            let savepoint = open.savepoint.expect("the script has set a savepoint");
            open.txn.rollback_to(savepoint).map(|()| Said::Done)
        }
        deed => operate(&mut open.txn, deed, deadline).await,
    };
    match said {
        Ok(said) => (Some(open), Ok(said)),
        Err(error) => {
            open.txn.rollback().await;
            (None, Err(error))
        }
    }
}

async fn operate(txn: &mut Txn, deed: Deed, deadline: Duration) -> Result<Said, KvError> {
    let row = |row: Option<Row>| shown(row.map(|row| row.value).as_ref());
    Ok(match deed {
        Deed::Get(name) => {
            let value = row(txn.get(key(&name), Wait::Block, deadline).await?);
            Said::Saw(name, value)
        }
        Deed::Lock { key: name, exclusive } => {
            let strength = if exclusive { Strength::Exclusive } else { Strength::Shared };
            let value = row(txn.get_and_lock(key(&name), strength, Wait::Block, deadline).await?);
            Said::Saw(name, value)
        }
        Deed::Put(name, Value::Number(number)) => {
            txn.write(key(&name), Some(encoded(number)), Wait::Block, deadline).await?;
            Said::Done
        }
        Deed::Delete(name) => {
            txn.write(key(&name), None, Wait::Block, deadline).await?;
            Said::Done
        }
        Deed::Increment(name, by) => {
            let sum = txn.increment(key(&name), by, Wait::Block, deadline).await?;
            Said::Saw(name, sum.to_string())
        }
        Deed::CompareAndSet { key: name, expected, new } => {
            let (expected, new) = (Some(encoded(expected)), Some(encoded(new)));
            let (swapped, actual) = txn.compare_and_set(key(&name), expected, new, Wait::Block, deadline).await?;
            let value = if swapped { "swapped".to_owned() } else { format!("refused at {}", shown(actual.as_ref())) };
            Said::Saw(name, value)
        }
        Deed::Scan(from, to) => {
            let value = scan(txn, &from, &to, deadline).await?;
            Said::Saw(format!("{from}..{to}"), value)
        }
        Deed::DeleteRange(from, to) => {
            let span = KeySpan { start: key(&from), end: key(&to) };
            let (removed, _) = txn.delete_range(span, 0, Wait::Block, deadline).await?;
            Said::Saw(format!("{from}..{to}"), format!("{removed} deleted"))
        }
        Deed::Put(_, Value::Read(..)) | Deed::Savepoint | Deed::RollbackTo | Deed::Commit | Deed::Rollback => {
            unreachable!("done by the callers")
        }
    })
}

async fn scan(txn: &mut Txn, from: &str, to: &str, deadline: Duration) -> Result<String, KvError> {
    let span = KeySpan { start: key(from), end: key(to) };
    let request = ScanRequest { span, reverse: false, rows_max: 0, bytes_max: 1 << 20, at: None };
    let rows = txn.scan(request, Wait::Block, deadline).await?.rows;
    let name = |row: &Row| String::from_utf8_lossy(&keys::user_body(&row.key).unwrap_or_default()).into_owned();
    let shown: Vec<_> = rows.iter().map(|row| format!("{}={}", name(row), shown(Some(&row.value)))).collect();
    Ok(format!("{{{}}}", shown.join(" ")))
}
