//! Conditional transactions in one request: if all comparisons hold do this, else that.

use bytes::Bytes;
use flotilla_proto::v1;
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_proto::v1::transact_op::Op;
use flotilla_types::Timestamp;
use tonic::transport::Channel;

use crate::call::{Answer, Repeat};
use crate::{Client, Error};

/// A conditional transaction: which keys must have which values, and what is done if they have or have not. Without a
/// comparison the first branch is done.
///
/// ```
/// use flotilla_client::{Branch, Transact};
///
/// let take = Transact::new()
///     .compare("seat/12", None)
///     .then(Branch::new().put("seat/12", "ada").increment("seats-taken", 1))
///     .otherwise(Branch::new().get("seat/12"));
/// ```
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Transact {
    compare: Vec<v1::Compare>,
    then: Branch,
    otherwise: Branch,
}

impl Transact {
    /// Compares nothing and does nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The key must have this value; `None`: it must have none.
    pub fn compare(mut self, key: impl Into<Bytes>, expected: Option<Bytes>) -> Self {
        self.compare.push(v1::Compare { key: key.into(), expected });
        self
    }

    /// What is done if all comparisons hold.
    pub fn then(self, then: Branch) -> Self {
        Self { then, ..self }
    }

    /// What is done if one does not.
    pub fn otherwise(self, otherwise: Branch) -> Self {
        Self { otherwise, ..self }
    }
}

/// The steps of one branch, done in order.
#[derive(Debug, Clone, Default)]
#[must_use]
pub struct Branch {
    ops: Vec<v1::TransactOp>,
}

impl Branch {
    /// No steps yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Reads a key.
    pub fn get(self, key: impl Into<Bytes>) -> Self {
        self.and(Op::Get(key.into()))
    }

    /// Sets a key.
    pub fn put(self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        self.and(Op::Put(v1::BatchPut { key: key.into(), value: value.into() }))
    }

    /// Removes a key.
    pub fn delete(self, key: impl Into<Bytes>) -> Self {
        self.and(Op::Delete(key.into()))
    }

    /// Adds to a counter.
    pub fn increment(self, key: impl Into<Bytes>, by: i64) -> Self {
        self.and(Op::Increment(v1::TransactIncrement { key: key.into(), by }))
    }

    fn and(mut self, op: Op) -> Self {
        self.ops.push(v1::TransactOp { op: Some(op) });
        self
    }

    fn writes(&self) -> bool {
        self.ops.iter().any(|op| !matches!(op.op, Some(Op::Get(_))))
    }
}

/// What a conditional transaction did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transacted {
    /// Whether all comparisons held, and so which branch was done.
    pub held: bool,
    /// One for each step of that branch: what a get read, or the 8 bytes that a counter holds now; `None` for puts,
    /// deletes and keys without a value. Empty although the branch has steps if an attempt whose answer was lost had
    /// done it: what it read is not kept.
    pub results: Vec<Option<Bytes>>,
    /// When.
    pub timestamp: Timestamp,
}

impl Client {
    /// Does a conditional transaction, all or nothing and at one timestamp. The cluster does it again until it passes,
    /// or the deadline has come.
    ///
    /// # Errors
    /// `RETRY_TXN` or `TXN_ABORTED` if others were in its way until the deadline; else see [`Error`].
    pub async fn transact(&self, transact: Transact) -> Result<Transacted, Error> {
        let id = self.request_id().await?;
        let (then_writes, otherwise_writes) = (transact.then.writes(), transact.otherwise.writes());
        let request = v1::TransactRequest {
            after: None,
            compare: transact.compare,
            then: transact.then.ops,
            otherwise: transact.otherwise.ops,
            request_id: Some(Bytes::copy_from_slice(&id.0)),
        };
        let method = |mut kv: KvClient<Channel>, r| async move { kv.transact(r).await };
        let Answer { answer, doubtful, .. } = self.kv_answer(Repeat::SameId(id), request, method).await?;
        let timestamp = self.learnt(answer.timestamp.as_ref());
        let (done, other) = if answer.held { (then_writes, otherwise_writes) } else { (otherwise_writes, then_writes) };
        if doubtful && other && !done {
            // A branch that only read leaves no record of the id: a former copy of the request that is still on its way
            // may meet other values, and write.
            let why = "an attempt was lost, and a later one did the branch that writes nothing".to_owned();
            return Err(Error::Ambiguous { request_id: Some(id), why });
        }
        let results = answer.results.into_iter().map(|result| result.value).collect();
        Ok(Transacted { held: answer.held, results, timestamp })
    }
}
