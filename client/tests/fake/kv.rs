//! Keys and values of a cluster that is none.

use std::ops::Bound;

use bytes::Bytes;
use flotilla_client::messages as v1;
use flotilla_client::messages::kv_server::Kv;
use flotilla_client::messages::outcome_response::Outcome;
use flotilla_client::messages::transact_op::Op;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::{Chunks, Fault, Node, number, txn};

#[tonic::async_trait]
impl Kv for Node {
    async fn get(&self, request: Request<v1::GetRequest>) -> Result<Response<v1::GetResponse>, Status> {
        let key = request.into_inner().key;
        self.serve("get", None, |world| {
            let found = world.rows.get(&key).cloned();
            let written = found.as_ref().map(|(_, written)| *written);
            v1::GetResponse { value: found.map(|(value, _)| value), written, timestamp: Some(world.now()) }
        })
        .await
    }

    async fn put(&self, request: Request<v1::PutRequest>) -> Result<Response<v1::PutResponse>, Status> {
        let v1::PutRequest { key, value, request_id, .. } = request.into_inner();
        let id = request_id.clone();
        self.serve("put", id.as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, now| {
                world.rows.insert(key, (value, now));
            });
            v1::PutResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn delete(&self, request: Request<v1::DeleteRequest>) -> Result<Response<v1::DeleteResponse>, Status> {
        let v1::DeleteRequest { key, request_id, .. } = request.into_inner();
        let id = request_id.clone();
        self.serve("delete", id.as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, _| {
                world.rows.remove(&key);
            });
            v1::DeleteResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn delete_range(
        &self,
        request: Request<v1::DeleteRangeRequest>,
    ) -> Result<Response<v1::DeleteRangeResponse>, Status> {
        let v1::DeleteRangeRequest { start, end, keys_max, .. } = request.into_inner();
        self.serve("delete_range", None, |world| {
            let upper = end.map_or(Bound::Unbounded, Bound::Excluded);
            let span: Vec<Bytes> =
                world.rows.range((Bound::Included(start), upper)).map(|(key, _)| key.clone()).collect();
            // A small page, so that clients have to go on.
            let page = keys_max.min(3) as usize;
            span.iter().take(page).for_each(|key| {
                world.rows.remove(key);
            });
            let resume = span.get(page).cloned();
            let keys = span.len().min(page) as u64;
            v1::DeleteRangeResponse { keys: Some(keys), resume, timestamp: Some(world.now()) }
        })
        .await
    }

    type ScanStream = Chunks<v1::ScanResponse>;

    async fn scan(&self, request: Request<v1::ScanRequest>) -> Result<Response<Self::ScanStream>, Status> {
        let request = request.into_inner();
        let mut world = self.world.lock().unwrap();
        world.asked.push((self.number, "scan", Bytes::new()));
        let chunks_max = match world.faults.pop_front() {
            Some(Fault::BreakAfter(chunks)) => chunks,
            _ => usize::MAX,
        };
        let at = request.at.unwrap_or_else(|| world.now());
        let upper = request.end.map_or(Bound::Unbounded, Bound::Excluded);
        let mut rows: Vec<v1::Row> = world
            .rows
            .range((Bound::Included(request.start), upper))
            .filter(|(_, (_, written))| written.wall <= at.wall)
            .map(|(key, (value, written))| v1::Row {
                key: key.clone(),
                value: value.clone(),
                timestamp: Some(*written),
            })
            .collect();
        if request.reverse {
            rows.reverse();
        }
        if request.rows_max > 0 {
            rows.truncate(request.rows_max as usize);
        }
        let mut chunks: Vec<Result<v1::ScanResponse, Status>> = Vec::new();
        for (i, pair) in rows.chunks(2).enumerate() {
            if i == chunks_max {
                chunks.push(Err(Status::unavailable("connection reset")));
                break;
            }
            let last = pair.last().unwrap();
            let more = 2 * (i + 1) < rows.len();
            let next = if request.reverse { last.key.clone() } else { [&last.key[..], b"\0"].concat().into() };
            let resume = more.then_some(next);
            chunks.push(Ok(v1::ScanResponse { rows: pair.to_vec(), resume, timestamp: Some(at) }));
        }
        if rows.is_empty() {
            chunks.push(Ok(v1::ScanResponse { rows, resume: None, timestamp: Some(at) }));
        }
        Ok(Response::new(tokio_stream::iter(chunks)))
    }

    async fn compare_and_swap(
        &self,
        request: Request<v1::CompareAndSwapRequest>,
    ) -> Result<Response<v1::CompareAndSwapResponse>, Status> {
        let v1::CompareAndSwapRequest { key, expected, new, request_id, .. } = request.into_inner();
        self.serve("cas", request_id.clone().as_ref(), |world| {
            let actual = world.rows.get(&key).map(|(value, _)| value.clone());
            if actual != expected && !request_id.as_ref().is_some_and(|id| world.done.contains_key(id)) {
                return v1::CompareAndSwapResponse { swapped: false, actual, timestamp: Some(world.now()) };
            }
            let when = world.write(request_id.as_ref(), |world, now| {
                world.set(key, new, now);
            });
            v1::CompareAndSwapResponse { swapped: true, actual: None, timestamp: Some(when) }
        })
        .await
    }

    async fn batch(&self, request: Request<v1::BatchRequest>) -> Result<Response<v1::BatchResponse>, Status> {
        let v1::BatchRequest { ops, request_id, .. } = request.into_inner();
        self.serve("batch", request_id.clone().as_ref(), |world| {
            let when = world.write(request_id.as_ref(), |world, now| {
                for op in ops {
                    match op.op.unwrap() {
                        v1::batch_op::Op::Put(put) => world.set(put.key, Some(put.value), now),
                        v1::batch_op::Op::Delete(delete) => world.set(delete.key, None, now),
                    }
                }
            });
            v1::BatchResponse { timestamp: Some(when) }
        })
        .await
    }

    async fn increment(
        &self,
        request: Request<v1::IncrementRequest>,
    ) -> Result<Response<v1::IncrementResponse>, Status> {
        let v1::IncrementRequest { key, by, request_id, .. } = request.into_inner();
        let id = request_id.clone();
        let answer = self.serve("increment", id.as_ref(), |world| {
            let before = number(world.value(&key).as_ref())?;
            let when = world.write(request_id.as_ref(), |world, now| {
                world.set(key.clone(), Some(Bytes::copy_from_slice(&(before + by).to_be_bytes())), now);
            });
            Ok(v1::IncrementResponse { value: number(world.value(&key).as_ref())?, timestamp: Some(when) })
        });
        answer.await?.into_inner().map(Response::new)
    }

    async fn transact(&self, request: Request<v1::TransactRequest>) -> Result<Response<v1::TransactResponse>, Status> {
        let v1::TransactRequest { compare, then, otherwise, request_id, .. } = request.into_inner();
        let id = request_id.clone();
        let answer = self.serve("transact", id.as_ref(), |world| {
            if let Some((id, held)) = request_id.as_ref().and_then(|id| Some((id, *world.branches.get(id)?))) {
                return Ok(v1::TransactResponse { held, results: Vec::new(), timestamp: world.done.get(id).copied() });
            }
            let held = compare.iter().all(|compare| world.value(&compare.key) == compare.expected);
            let (now, mut results, mut wrote) = (world.now(), Vec::new(), false);
            for op in if held { then } else { otherwise } {
                let value = match op.op.unwrap() {
                    Op::Get(key) => world.value(&key),
                    Op::Put(put) => {
                        world.set(put.key, Some(put.value), now);
                        wrote = true;
                        None
                    }
                    Op::Delete(key) => {
                        world.set(key, None, now);
                        wrote = true;
                        None
                    }
                    Op::Increment(v1::TransactIncrement { key, by }) => {
                        let sum = number(world.value(&key).as_ref())? + by;
                        let value = Bytes::copy_from_slice(&sum.to_be_bytes());
                        world.set(key, Some(value.clone()), now);
                        wrote = true;
                        Some(value)
                    }
                };
                results.push(v1::TransactResult { value });
            }
            // As on a real node, a branch that wrote nothing leaves no trace.
            if let Some(id) = request_id.filter(|_| wrote) {
                world.done.insert(id.clone(), now);
                world.branches.insert(id, held);
            }
            Ok(v1::TransactResponse { held, results, timestamp: Some(now) })
        });
        answer.await?.into_inner().map(Response::new)
    }

    type TxnStream = ReceiverStream<Result<v1::TxnResponse, Status>>;

    async fn txn(
        &self,
        request: Request<tonic::Streaming<v1::TxnRequest>>,
    ) -> Result<Response<Self::TxnStream>, Status> {
        Ok(Response::new(txn::converse(self.clone(), request.into_inner())))
    }

    async fn outcome(&self, request: Request<v1::OutcomeRequest>) -> Result<Response<v1::OutcomeResponse>, Status> {
        let handle = request.into_inner().handle;
        self.serve("outcome", Some(&handle), |world| {
            // Whoever has not ended is rolled back by the question.
            let ended = *world.ended.entry(handle.clone()).or_default();
            let outcome = match ended {
                _ if world.forgetful => Outcome::Forgotten,
                Some(_) => Outcome::Committed,
                None => Outcome::Aborted,
            };
            v1::OutcomeResponse { outcome: outcome.into(), timestamp: ended }
        })
        .await
    }
}
