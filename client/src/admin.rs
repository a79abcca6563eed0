//! For whoever runs a cluster. Answers are the messages of the API, whose fields are described in `flotilla_proto::v1`.
//!
//! Commands that change a range have no request id: if one is lost on the way its outcome is `Ambiguous`, and the way to
//! find out is to look at the range.

use std::time::Duration;

use flotilla_proto::v1;
use flotilla_types::{Key, KeySpan};
use tonic::Streaming;

use crate::call::Repeat;
use crate::client::admin_client;
use crate::error::Failure;
use crate::{Client, Error};

impl Client {
    /// Makes a cluster out of nodes that are none yet, through the first address that this client was given, and only
    /// through it. Answers the cluster's id.
    ///
    /// # Errors
    /// `ALREADY_INITIALIZED` if the node belongs to a cluster; else see [`Error`].
    pub async fn init(&self) -> Result<bytes::Bytes, Error> {
        let node = self.shared.pool.first();
        let mut admin = admin_client(node.channel(), self.shared.options.message_bytes_max);
        let mut request = tonic::Request::new(v1::InitRequest {});
        request.set_timeout(self.timeout());
        match admin.init(request).await {
            Ok(answer) => Ok(answer.into_inner().cluster_id),
            Err(status) => {
                let failure = Failure::of(&status, &node.address);
                let lost = failure.maybe_done;
                Err(if lost {
                    Error::Ambiguous { request_id: None, why: failure.error.to_string() }
                } else {
                    failure.error
                })
            }
        }
    }

    /// The cluster at a glance, as the answering node sees it.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn status(&self) -> Result<v1::StatusResponse, Error> {
        self.admin(Repeat::Read, v1::StatusRequest {}, |mut admin, r| async move { admin.status(r).await }).await
    }

    /// The nodes of the cluster.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn nodes(&self) -> Result<Vec<v1::Node>, Error> {
        let request = v1::NodesRequest {};
        let answer = self.admin(Repeat::Read, request, |mut admin, r| async move { admin.nodes(r).await }).await?;
        Ok(answer.nodes)
    }

    /// The ranges that overlap a span of logical keys, in key order; at most `ranges_max`, 0 for all.
    ///
    /// # Errors
    /// See [`Error`]. A break in the middle is not resumed: ranges move meanwhile, so ask again.
    pub async fn ranges(&self, span: &KeySpan, ranges_max: u64) -> Result<Vec<v1::Range>, Error> {
        let end = (span.end != Key::MAX).then(|| span.end.clone().into_bytes());
        let request = v1::RangesRequest { start: span.start.clone().into_bytes(), end, ranges_max };
        let stream = self.admin(Repeat::Read, request, |mut admin, r| async move { admin.ranges(r).await }).await?;
        let mut ranges = Vec::new();
        read_all(stream, self.timeout(), |page| ranges.extend(page.ranges)).await?;
        Ok(ranges)
    }

    /// What is open at a node: its transactions, at most `transactions_max` (0: as many as it thinks right), oldest first, and the
    /// waits for locks in ranges that it leads. `address` is its client address, as [`Client::nodes`] tells it.
    ///
    /// # Errors
    /// See [`Error`]. No other node is asked: none knows.
    pub async fn transactions(&self, address: &str, transactions_max: u64) -> Result<v1::TransactionsResponse, Error> {
        let node = self.shared.pool.at(address)?;
        let patience = self.timeout().min(self.shared.options.attempt_timeout);
        let mut admin = admin_client(node.channel(), self.shared.options.message_bytes_max);
        let mut request = tonic::Request::new(v1::TransactionsRequest { transactions_max });
        request.set_timeout(patience);
        match tokio::time::timeout(patience, admin.transactions(request)).await {
            Ok(Ok(answer)) => Ok(answer.into_inner()),
            Ok(Err(status)) => Err(Failure::of(&status, address).error),
            Err(_) => Err(Failure::silence(address, patience).error),
        }
    }

    /// Cuts the range that owns a logical key in two; the key becomes the first of the right half.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn split(&self, key: &Key) -> Result<v1::SplitResponse, Error> {
        let request = v1::SplitRequest { key: key.clone().into_bytes() };
        self.admin(Repeat::Never, request, |mut admin, r| async move { admin.split(r).await }).await
    }

    /// Makes another replica the leader, and so the leaseholder, of a range.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn transfer_leader(&self, range_id: u64, to_store: u64) -> Result<(), Error> {
        let request = v1::TransferLeaderRequest { range_id, to_store };
        self.admin(Repeat::Never, request, |mut admin, r| async move { admin.transfer_leader(r).await }).await?;
        Ok(())
    }

    /// Brings the replicas of a range to the given stores, and answers when it is done.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn change_replicas(
        &self,
        range_id: u64,
        voters: Vec<u64>,
        learners: Vec<u64>,
    ) -> Result<v1::ChangeReplicasResponse, Error> {
        let request = v1::ChangeReplicasRequest { range_id, voters, learners };
        self.admin(Repeat::Never, request, |mut admin, r| async move { admin.change_replicas(r).await }).await
    }

    /// Has all replicas of a range, or of all ranges, hash their state, and hands over each range's answer as it comes.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn checksum(&self, range_id: Option<u64>, answer: impl FnMut(v1::ChecksumResponse)) -> Result<(), Error> {
        let request = v1::ChecksumRequest { range_id };
        let stream = self.admin(Repeat::Read, request, |mut admin, r| async move { admin.checksum(r).await }).await?;
        read_all(stream, self.timeout(), answer).await
    }
}

/// Reads a stream to its end; the timeout bounds each pause in it.
async fn read_all<T>(mut stream: Streaming<T>, timeout: Duration, mut each: impl FnMut(T)) -> Result<(), Error> {
    loop {
        match tokio::time::timeout(timeout, stream.message()).await {
            Ok(Ok(Some(message))) => each(message),
            Ok(Ok(None)) => return Ok(()),
            Ok(Err(status)) => return Err(Failure::of(&status, "the node").error),
            Err(_) => return Err(Failure::silence("the node", timeout).error),
        }
    }
}
