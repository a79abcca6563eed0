//! `flotilla.v1.Kv`: each method checks what came, asks the router, and puts the answer into a message.

use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{ScanChunk, ScanRequest};
use flotilla_proto::reason::Reason;
use flotilla_proto::v1::{self, kv_server::Kv};
use flotilla_types::{BatchOp, Increment, Key, KeySpan, Timestamp, Write, WriteResult, keys};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::door::{Door, Entered, Method};
use super::refusal::{internal, of_kv, refusal};
use super::txn;

/// Chunks of a scan that wait for a slow reader.
const CHUNKS_AHEAD: usize = 2;

/// The service.
#[derive(Clone)]
pub(crate) struct KvService {
    pub(crate) door: Door,
}

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl Kv for KvService {
    async fn get(&self, request: Request<v1::GetRequest>) -> Answer<v1::GetResponse> {
        let entered = self.door.enter(Method::Get, request.metadata())?;
        let key = self.door.key(&request.get_ref().key)?;
        entered.after(request.get_ref().after).await?;
        let answer = match request.get_ref().at {
            None => entered.router.get(key, entered.deadline).await,
            Some(at) => entered.router.get_at(key, at.into(), entered.deadline).await,
        };
        let answer = answer.map_err(|error| of_kv(&error))?;
        let (value, written) = answer.row.map(|row| (row.value, wire(row.timestamp))).unzip();
        Ok(Response::new(v1::GetResponse { value, written, timestamp: Some(wire(answer.timestamp)) }))
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Answer<v1::PutResponse> {
        let entered = self.door.enter(Method::Put, request.metadata())?;
        let put = request.into_inner();
        entered.after(put.after).await?;
        let key = self.door.key(&put.key)?;
        self.door.value(&put.value)?;
        let _bytes = self.door.request(put.key.len() + put.value.len())?;
        let (_, timestamp) = write(&entered, put.request_id.as_ref(), Write::Put { key, value: put.value }).await?;
        Ok(Response::new(v1::PutResponse { timestamp }))
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Answer<v1::DeleteResponse> {
        let entered = self.door.enter(Method::Delete, request.metadata())?;
        let delete = request.into_inner();
        entered.after(delete.after).await?;
        let key = self.door.key(&delete.key)?;
        let (_, timestamp) = write(&entered, delete.request_id.as_ref(), Write::Delete { key }).await?;
        Ok(Response::new(v1::DeleteResponse { timestamp }))
    }

    async fn delete_range(&self, request: Request<v1::DeleteRangeRequest>) -> Answer<v1::DeleteRangeResponse> {
        let entered = self.door.enter(Method::DeleteRange, request.metadata())?;
        let delete = request.into_inner();
        entered.after(delete.after).await?;
        let span = self.door.span(&delete.start, delete.end.as_ref())?;
        let id = entered.request_id(delete.request_id.as_ref())?;
        let deleted = if delete.resumable {
            entered.router.delete_range(id, span, delete.keys_max, entered.deadline).await
        } else {
            entered.router.delete_at_once(id, span, delete.keys_max, entered.deadline).await
        };
        let deleted = deleted.map_err(|error| of_kv(&error))?;
        let resume = deleted.resume.as_ref().map(body).transpose()?;
        let timestamp = Some(wire(deleted.timestamp));
        Ok(Response::new(v1::DeleteRangeResponse { keys: deleted.keys, resume, timestamp }))
    }

    type ScanStream = ReceiverStream<Result<v1::ScanResponse, Status>>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Answer<Self::ScanStream> {
        let entered = self.door.enter(Method::Scan, request.metadata())?;
        let scan = request.into_inner();
        entered.after(scan.after).await?;
        let span = self.door.span(&scan.start, scan.end.as_ref())?;
        let default = self.door.config.limits.scan_chunk_bytes as u64;
        let bytes_max = if scan.chunk_bytes == 0 { default } else { scan.chunk_bytes.min(default) };
        let at = scan.at.as_ref().map(|at| Timestamp { wall: at.wall, logical: at.logical });
        let first = ScanRequest { span, reverse: scan.reverse, rows_max: scan.rows_max, bytes_max, at };
        let (to, chunks) = mpsc::channel(CHUNKS_AHEAD);
        // Ends when it is done or when the reader has gone.
        tokio::spawn(stream(entered, first, to));
        Ok(Response::new(ReceiverStream::new(chunks)))
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Answer<v1::CompareAndSwapResponse> {
        let entered = self.door.enter(Method::CompareAndSwap, request.metadata())?;
        let swap = request.into_inner();
        entered.after(swap.after).await?;
        let key = self.door.key(&swap.key)?;
        let values = [swap.expected.as_ref(), swap.new.as_ref()];
        values.iter().flatten().try_for_each(|value| self.door.value(value))?;
        let _bytes =
            self.door.request(swap.key.len() + values.iter().flatten().map(|value| value.len()).sum::<usize>())?;
        let command = Write::CompareAndSwap { key, expected: swap.expected, new: swap.new };
        let (result, timestamp) = write(&entered, swap.request_id.as_ref(), command).await?;
        let (swapped, actual) = match result {
            WriteResult::Done => (true, None),
            WriteResult::ConditionFailed { actual } => (false, actual),
            WriteResult::Deleted { .. } | WriteResult::Number(_) | WriteResult::Whole { .. } => {
                return Err(internal("a compare-and-swap was answered by something else"));
            }
        };
        Ok(Response::new(v1::CompareAndSwapResponse { swapped, actual, timestamp }))
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Answer<v1::BatchResponse> {
        let entered = self.door.enter(Method::Batch, request.metadata())?;
        let batch = request.into_inner();
        entered.after(batch.after).await?;
        let (ops, _bytes) = self.ops(batch.ops)?;
        let (_, timestamp) = write(&entered, batch.request_id.as_ref(), Write::Batch { ops }).await?;
        Ok(Response::new(v1::BatchResponse { timestamp }))
    }

    async fn increment(&self, request: Request<v1::IncrementRequest>) -> Answer<v1::IncrementResponse> {
        let entered = self.door.enter(Method::Increment, request.metadata())?;
        let v1::IncrementRequest { key, by, request_id, after } = request.into_inner();
        entered.after(after).await?;
        let write_it = Write::Increment(Increment { key: self.door.key(&key)?, by });
        let (result, timestamp) = write(&entered, request_id.as_ref(), write_it).await?;
        let WriteResult::Number(value) = result else {
            return Err(internal("an increment was answered by something else"));
        };
        Ok(Response::new(v1::IncrementResponse { value, timestamp }))
    }

    async fn transact(&self, request: Request<v1::TransactRequest>) -> Answer<v1::TransactResponse> {
        let entered = self.door.enter(Method::Transact, request.metadata())?;
        txn::transact(&self.door, &entered, request.into_inner()).await.map(Response::new)
    }

    type TxnStream = ReceiverStream<Result<v1::TxnResponse, Status>>;

    async fn txn(&self, request: Request<tonic::Streaming<v1::TxnRequest>>) -> Answer<Self::TxnStream> {
        let entered = self.door.enter(Method::Txn, request.metadata())?;
        let (to, answers) = mpsc::channel(CHUNKS_AHEAD);
        // Ends with the client's stream, or with the transaction.
        tokio::spawn(txn::converse(self.door.clone(), entered, request.into_inner(), to));
        Ok(Response::new(ReceiverStream::new(answers)))
    }

    async fn outcome(&self, request: Request<v1::OutcomeRequest>) -> Answer<v1::OutcomeResponse> {
        let entered = self.door.enter(Method::Outcome, request.metadata())?;
        txn::outcome(&entered, &request.get_ref().handle).await.map(Response::new)
    }
}

impl KvService {
    fn ops(&self, ops: Vec<v1::BatchOp>) -> Result<(Vec<BatchOp>, OwnedSemaphorePermit), Status> {
        self.door.keys(ops.len())?;
        let (mut checked, mut bytes) = (Vec::with_capacity(ops.len()), 0);
        for op in ops {
            checked.push(match op.op {
                Some(v1::batch_op::Op::Put(put)) => {
                    self.door.value(&put.value)?;
                    bytes += put.key.len() + put.value.len();
                    BatchOp::Put { key: self.door.key(&put.key)?, value: put.value }
                }
                Some(v1::batch_op::Op::Delete(delete)) => {
                    bytes += delete.key.len();
                    BatchOp::Delete { key: self.door.key(&delete.key)? }
                }
                None => return Err(refusal(Reason::Invalid, "a write of the batch is neither put nor delete")),
            });
        }
        let room = self.door.request(bytes)?;
        if checked.is_empty() {
            return Err(refusal(Reason::Invalid, "a batch is empty: write at least one key"));
        }
        let mut named: Vec<&Key> = checked.iter().map(BatchOp::key).collect();
        named.sort_unstable();
        if named.windows(2).any(|pair| pair[0] == pair[1]) {
            return Err(refusal(Reason::Invalid, "a batch names a key twice: write each key once"));
        }
        Ok((checked, room))
    }
}

async fn write(
    entered: &Entered,
    id: Option<&Bytes>,
    write: Write,
) -> Result<(WriteResult, Option<v1::Timestamp>), Status> {
    let id = entered.request_id(id)?;
    let answered = entered.router.write(id, write, entered.deadline).await;
    let (result, timestamp) = answered.map_err(|error| of_kv(&error))?;
    Ok((result, Some(wire(timestamp))))
}

/// Sends chunk after chunk. Each gets the time that the whole scan had at its start, so that a long scan is not cut off
/// while it makes progress; a reader that goes away ends it.
async fn stream(entered: Entered, mut next: ScanRequest, to: mpsc::Sender<Result<v1::ScanResponse, Status>>) {
    let rows_max = next.rows_max;
    let patience: Duration = entered.deadline.saturating_sub(entered.router.clock().mono());
    let mut rows: u64 = 0;
    loop {
        let deadline = entered.router.clock().mono() + patience;
        let chunk = tokio::select! {
            chunk = entered.router.scan(next.clone(), deadline) => chunk,
            () = to.closed() => return,
        };
        let chunk = match chunk {
            Ok(chunk) => chunk,
            Err(error) => return drop(to.send(Err(of_kv(&error))).await),
        };
        rows += chunk.rows.len() as u64;
        let ended = rows_max > 0 && rows >= rows_max;
        let rest = chunk.resume.clone().filter(|_| !ended);
        next.at = Some(chunk.timestamp);
        next.rows_max = if rows_max == 0 { 0 } else { rows_max - rows.min(rows_max) };
        if to.send(message(chunk)).await.is_err() {
            return;
        }
        match rest {
            Some(key) if next.reverse => next.span = KeySpan { end: key, ..next.span },
            Some(key) => next.span = KeySpan { start: key, ..next.span },
            None => return,
        }
    }
}

pub(super) fn message(chunk: ScanChunk) -> Result<v1::ScanResponse, Status> {
    let row = |row: flotilla_types::Row| {
        Ok(v1::Row { key: body(&row.key)?, value: row.value, timestamp: Some(wire(row.timestamp)) })
    };
    let rows = chunk.rows.into_iter().map(row).collect::<Result<_, Status>>()?;
    let resume = chunk.resume.as_ref().map(body).transpose()?;
    Ok(v1::ScanResponse { rows, resume, timestamp: Some(wire(chunk.timestamp)) })
}

/// The application's part of a key.
fn body(key: &Key) -> Result<Bytes, Status> {
    keys::user_body(key).ok_or_else(|| internal("a key of another keyspace in an application's answer"))
}

pub(crate) fn wire(timestamp: Timestamp) -> v1::Timestamp {
    v1::Timestamp { wall: timestamp.wall, logical: timestamp.logical }
}
