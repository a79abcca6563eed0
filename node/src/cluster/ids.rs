//! Range ids, taken from the system range in blocks. A block that was not used up at a restart is lost: ids are many.

use std::ops::Range;
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router};
use flotilla_types::{RangeId, Write, WriteResult, keys};
use tokio::sync::Mutex;

/// Ids taken at once: a split seldom waits for the system range, and a restart wastes little.
const BLOCK: u64 = 64;
/// The first ids belong to the ranges that a cluster begins with.
const FIRST: u64 = 16;

/// The ids that this node may give.
#[derive(Default)]
pub(super) struct RangeIds {
    /// Async, because whoever finds it empty fills it for all.
    block: Mutex<Range<u64>>,
}

impl RangeIds {
    /// An id that was never given.
    pub(super) async fn next(&self, router: &Router, deadline: Duration) -> Result<RangeId, KvError> {
        let mut block = self.block.lock().await;
        if block.is_empty() {
            *block = take(router, deadline).await?;
        }
        let id = block.start;
        block.start += 1;
        Ok(RangeId(id))
    }
}

async fn take(router: &Router, deadline: Duration) -> Result<Range<u64>, KvError> {
    let key = keys::system("range_ids");
    loop {
        let expected = router.get(key.clone(), deadline).await?.row.map(|row| row.value);
        let start = expected.as_ref().map_or(Some(FIRST), |bytes| bytes[..].try_into().ok().map(u64::from_be_bytes));
        let start = start.ok_or_else(|| KvError::Invalid { what: "the record of range ids is damaged".to_owned() })?;
        let new = Some(Bytes::copy_from_slice(&(start + BLOCK).to_be_bytes()));
        let write = Write::CompareAndSwap { key: key.clone(), expected, new };
        match router.write(router.request_id()?, write, deadline).await {
            Ok((WriteResult::Done, _)) => return Ok(start..start + BLOCK),
            // Taken by another node, or perhaps by us: a block that is in doubt is not used.
            Ok(_) | Err(KvError::Ambiguous { .. }) => {}
            Err(error) => return Err(error),
        }
    }
}
