//! Keys and values.

use bytes::Bytes;
use flotilla_proto::v1;
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_types::Timestamp;
use tonic::transport::Channel;

use crate::call::{Answer, Repeat};
use crate::{Client, Error, Span};

/// How many keys one request of a range delete removes, so that each ends within its deadline.
const DELETE_PAGE: u64 = 10_000;

/// A value and when it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Value {
    /// The value.
    pub value: Bytes,
    /// When it was written.
    pub written: Timestamp,
}

/// What a compare-and-swap did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Swap {
    /// The key had the expected value and has the new one now.
    Swapped(Timestamp),
    /// The key had another value, or none; nothing was written.
    Met(Option<Bytes>),
}

/// Several writes, done all or not at all. Their keys must differ. Those of one range are written at the price of one
/// write, those of several as a transaction.
#[derive(Debug, Clone, Default)]
pub struct Batch {
    ops: Vec<v1::BatchOp>,
}

impl Batch {
    /// No writes yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets a key.
    #[must_use]
    pub fn put(mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Self {
        let put = v1::BatchPut { key: key.into(), value: value.into() };
        self.ops.push(v1::BatchOp { op: Some(v1::batch_op::Op::Put(put)) });
        self
    }

    /// Removes a key.
    #[must_use]
    pub fn delete(mut self, key: impl Into<Bytes>) -> Self {
        let delete = v1::BatchDelete { key: key.into() };
        self.ops.push(v1::BatchOp { op: Some(v1::batch_op::Op::Delete(delete)) });
        self
    }
}

impl Client {
    /// Reads a key; linearizable.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl Into<Bytes>) -> Result<Option<Value>, Error> {
        self.read(key.into(), None).await
    }

    /// Reads a key as it was at a timestamp.
    ///
    /// # Errors
    /// `BELOW_GC_THRESHOLD` if its versions were collected, `FUTURE_TIMESTAMP` for one ahead of the cluster's clocks;
    /// else see [`Error`].
    pub async fn get_at(&self, key: impl Into<Bytes>, at: Timestamp) -> Result<Option<Value>, Error> {
        self.read(key.into(), Some(at)).await
    }

    async fn read(&self, key: Bytes, at: Option<Timestamp>) -> Result<Option<Value>, Error> {
        let request = v1::GetRequest { key, at: at.map(wire), after: None };
        let answer = self.kv(Repeat::Read, request, |mut kv, r| async move { kv.get(r).await }).await?;
        if at.is_none() {
            self.learnt(answer.timestamp.as_ref());
        }
        let written = timestamp(answer.written.as_ref());
        Ok(answer.value.map(|value| Value { value, written }))
    }

    /// Sets a key, and says when.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn put(&self, key: impl Into<Bytes>, value: impl Into<Bytes>) -> Result<Timestamp, Error> {
        let id = self.request_id().await?;
        let request_id = Some(Bytes::copy_from_slice(&id.0));
        let request = v1::PutRequest { key: key.into(), value: value.into(), request_id, after: None };
        let answer = self.kv(Repeat::SameId(id), request, |mut kv, r| async move { kv.put(r).await }).await?;
        Ok(self.learnt(answer.timestamp.as_ref()))
    }

    /// Removes a key, and says when. Removing an absent key succeeds.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: impl Into<Bytes>) -> Result<Timestamp, Error> {
        let id = self.request_id().await?;
        let request =
            v1::DeleteRequest { key: key.into(), request_id: Some(Bytes::copy_from_slice(&id.0)), after: None };
        let answer = self.kv(Repeat::SameId(id), request, |mut kv, r| async move { kv.delete(r).await }).await?;
        Ok(self.learnt(answer.timestamp.as_ref()))
    }

    /// Removes all keys of a span, and says how many. Not atomic: an error leaves some removed, and another call removes
    /// the rest.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete_range(&self, span: Span) -> Result<u64, Error> {
        let (mut start, end) = (span.start, span.end);
        let mut removed = 0;
        loop {
            let id = self.request_id().await?;
            let request = v1::DeleteRangeRequest {
                start: start.clone(),
                end: end.clone(),
                keys_max: DELETE_PAGE,
                request_id: Some(Bytes::copy_from_slice(&id.0)),
                after: None,
                resumable: true,
            };
            let answer =
                self.kv(Repeat::SameId(id), request, |mut kv, r| async move { kv.delete_range(r).await }).await?;
            self.learnt(answer.timestamp.as_ref());
            removed += answer.keys.unwrap_or_default();
            match answer.resume {
                Some(resume) if resume >= start => start = resume,
                Some(_) => return Err(Error::BadAnswer { what: "a range delete that goes on where it has been" }),
                None => return Ok(removed),
            }
        }
    }

    /// Sets a key, or with `new` absent removes it, if its value is the expected one (`None`: if it has none).
    ///
    /// # Errors
    /// See [`Error`]. That another value was met is an answer, not an error.
    pub async fn compare_and_swap(
        &self,
        key: impl Into<Bytes>,
        expected: Option<Bytes>,
        new: Option<Bytes>,
    ) -> Result<Swap, Error> {
        let id = self.request_id().await?;
        let request_id = Some(Bytes::copy_from_slice(&id.0));
        let request = v1::CompareAndSwapRequest { key: key.into(), expected, new, request_id, after: None };
        let method = |mut kv: KvClient<Channel>, r| async move { kv.compare_and_swap(r).await };
        let Answer { answer, doubtful, .. } = self.kv_answer(Repeat::SameId(id), request, method).await?;
        let when = self.learnt(answer.timestamp.as_ref());
        match answer.swapped {
            true => Ok(Swap::Swapped(when)),
            // A failed condition leaves no record of the id: a former copy of the request that is still on its way may
            // meet another value, and swap.
            false if doubtful => Err(Error::Ambiguous {
                request_id: Some(id),
                why: "an attempt was lost, and a later one met another value".to_owned(),
            }),
            false => Ok(Swap::Met(answer.actual)),
        }
    }

    /// Does all writes of a batch, or none, and says when.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn batch(&self, batch: Batch) -> Result<Timestamp, Error> {
        let id = self.request_id().await?;
        let request = v1::BatchRequest { ops: batch.ops, request_id: Some(Bytes::copy_from_slice(&id.0)), after: None };
        let answer = self.kv(Repeat::SameId(id), request, |mut kv, r| async move { kv.batch(r).await }).await?;
        Ok(self.learnt(answer.timestamp.as_ref()))
    }

    /// Adds to a counter, and says what it holds then. A counter is a value of 8 bytes, signed, big-endian; an absent key
    /// counts as 0.
    ///
    /// # Errors
    /// `INVALID` if the value is no counter, or would not fit; else see [`Error`].
    pub async fn increment(&self, key: impl Into<Bytes>, by: i64) -> Result<i64, Error> {
        let id = self.request_id().await?;
        let request_id = Some(Bytes::copy_from_slice(&id.0));
        let request = v1::IncrementRequest { key: key.into(), by, request_id, after: None };
        let answer = self.kv(Repeat::SameId(id), request, |mut kv, r| async move { kv.increment(r).await }).await?;
        self.learnt(answer.timestamp.as_ref());
        Ok(answer.value)
    }

    /// A timestamp of an answer, from which cluster time is learnt too.
    pub(crate) fn learnt(&self, answer: Option<&v1::Timestamp>) -> Timestamp {
        self.shared.births.learn(answer);
        timestamp(answer)
    }
}

/// A timestamp as the nouns have it; zero if it is absent.
pub(crate) fn timestamp(wire: Option<&v1::Timestamp>) -> Timestamp {
    wire.map(|t| Timestamp { wall: t.wall, logical: t.logical }).unwrap_or_default()
}

/// A timestamp as the wire has it.
pub(crate) const fn wire(timestamp: Timestamp) -> v1::Timestamp {
    v1::Timestamp { wall: timestamp.wall, logical: timestamp.logical }
}
