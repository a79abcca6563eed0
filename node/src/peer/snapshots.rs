//! Snapshots on their way to a peer: a connection and a stream of their own for each, so that they hold up nothing else.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_proto::internal::{self as wire, snapshot_part::Part};
use flotilla_range::message::SnapshotHeader;
use flotilla_types::StoreId;
use tokio::runtime::Handle;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::link::Link;
use super::meters::PeerMeters;
use super::{Peers, convert, lanes};
use crate::ports::{Broken, SnapshotOutlet};

/// Frames between the reading thread and the socket: one under way, one being read.
const FRAMES: usize = 2;
/// A frame holds 1 MiB, so this is slower than any link that is worth it.
const FRAME_TIMEOUT: Duration = Duration::from_secs(30);
/// The receiver has written all frames when the last one was taken; what is left is to look at its map.
const RESULT_TIMEOUT: Duration = Duration::from_secs(60);

/// See the module's page.
pub(super) struct Outlet {
    runtime: Handle,
    meters: Arc<PeerMeters>,
    frames: mpsc::Sender<wire::SnapshotPart>,
    result: oneshot::Receiver<Result<(), Status>>,
}

impl Outlet {
    pub(super) fn open(peers: &Arc<Peers>, to: StoreId, header: SnapshotHeader) -> Self {
        let (frames, parts) = mpsc::channel(FRAMES);
        let (done, result) = oneshot::channel();
        let (peers, runtime, meters) = (Arc::clone(peers), peers.runtime.clone(), peers.meters(to));
        peers.tasks.clone().spawn_on(
            async move {
                let sent = tokio::select! {
                    sent = send(&peers, to, header, parts) => sent,
                    () = peers.stop.cancelled() => Err(Status::cancelled("this node stops")),
                };
                // Nobody listens any more if the sending thread gave up.
                let _ = done.send(sent);
            },
            &runtime,
        );
        Self { runtime, meters, frames, result }
    }
}

async fn send(
    peers: &Peers,
    to: StoreId,
    header: SnapshotHeader,
    parts: mpsc::Receiver<wire::SnapshotPart>,
) -> Result<(), Status> {
    let me = peers.me().ok_or_else(|| Status::unavailable("this node is not a member yet"))?;
    let now = peers.clock.now().map_err(|error| Status::unavailable(error.to_string()))?;
    let first = wire::SnapshotPart {
        part: Some(Part::Header(wire::SnapshotHeader {
            hello: Some(me.hello(to)),
            now: Some(now.into()),
            number: header.id.number,
            descriptor: Some((&header.descriptor).into()),
            envelope: Some(convert::envelope_out(header.envelope)),
        })),
    };
    let mut client = lanes::client(peers, &Link::new(to)).await?;
    let frames = futures::StreamExt::chain(futures::stream::iter([first]), ReceiverStream::new(parts));
    client.snapshot(frames).await.map(|_| ())
}

impl SnapshotOutlet for Outlet {
    fn frame(&mut self, frame: Bytes) -> Result<(), Broken> {
        self.meters.snapshot_bytes.increment(frame.len() as u64);
        let part = wire::SnapshotPart { part: Some(Part::Frame(frame)) };
        let sent = self.runtime.block_on(async { tokio::time::timeout(FRAME_TIMEOUT, self.frames.send(part)).await });
        match sent {
            Ok(Ok(())) => Ok(()),
            Ok(Err(_)) => Err(Broken(self.why())),
            Err(_) => Err(Broken(format!("the peer took no frame for {FRAME_TIMEOUT:?}"))),
        }
    }

    fn finish(self: Box<Self>) -> bool {
        let Self { runtime, frames, result, .. } = *self;
        drop(frames);
        let result = runtime.block_on(async { tokio::time::timeout(RESULT_TIMEOUT, result).await });
        match result {
            Ok(Ok(Ok(()))) => true,
            Ok(Ok(Err(status))) => {
                tracing::info!(why = status.message(), "a snapshot was not taken");
                false
            }
            Ok(Err(_)) | Err(_) => false,
        }
    }
}

impl Outlet {
    /// Why the stream ended, if it said so.
    fn why(&mut self) -> String {
        match self.result.try_recv() {
            Ok(Err(status)) => status.message().to_owned(),
            _ => "the stream ended".to_owned(),
        }
    }
}
