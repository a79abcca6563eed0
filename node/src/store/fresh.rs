//! How a store comes to be: everything else first, durably, then IDENT, which makes it one.

use std::fs;
use std::path::Path;

use flotilla_range::boot::bootstrap;
use flotilla_storage::engine::{Engine, WriteBatch};
use flotilla_storage::keys;
use flotilla_storage::log::{LogBatch, LogOp, LogStore, MetaKey};
use flotilla_storage::raft_log::EngineLog;
use flotilla_storage::rocks::{RocksEngine, RocksOptions};
use flotilla_types::{ClusterId, IdError, StoreId, StoreUuid};

use super::dir::{DirError, FORMAT, IDENT_COPY, Place, StoreDir};
use super::files::{failed, remove_dir, remove_file, sync_dir, write_synced};
use super::ident::Identity;

/// Enough to make an engine that holds five empty ranges.
const SMALL: RocksOptions = RocksOptions { cache_bytes: 8 << 20, background_jobs: 2 };

/// A directory without a store, locked. Its uuid stays the same over restarts, so that joining twice is joining once.
#[derive(Debug)]
pub struct FreshDir {
    place: Place,
    uuid: StoreUuid,
}

impl FreshDir {
    pub(super) fn new(place: Place) -> Result<Self, DirError> {
        let uuid = StoreUuid(rand::random());
        write_synced(&place.path, "NEW", format!("{uuid}\n").as_bytes())?;
        Ok(Self { place, uuid })
    }

    /// A process ended between NEW and IDENT.
    pub(super) fn again(place: Place) -> Result<Self, DirError> {
        let path = place.path.join("NEW");
        let text = fs::read_to_string(&path).map_err(failed("read", &path))?;
        let refused =
            |error: IdError| DirError::Identity { dir: place.path.clone(), part: "NEW", what: error.to_string() };
        let uuid = text.trim().parse().map_err(refused)?;
        Ok(Self { place, uuid })
    }

    /// Where it lies. Files of other rooms may lie there too, under names of their own.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// The uuid that the store will have.
    #[must_use]
    pub const fn uuid(&self) -> StoreUuid {
        self.uuid
    }

    /// Makes one of the stores that a cluster begins on; it holds the whole keyspace. A cluster that begins on several
    /// makes each store with the same list.
    ///
    /// # Errors
    /// The disk failed; opened again, the directory is fresh again.
    pub fn begin_cluster(self, cluster: ClusterId, stores: &[StoreId], here: StoreId) -> Result<StoreDir, DirError> {
        let (batch, ops) = bootstrap(stores, here);
        let identity = Identity { cluster, uuid: self.uuid, store: here };
        self.create(identity, batch, ops)
    }

    /// Makes an empty store of a cluster that gave it this number.
    ///
    /// # Errors
    /// The disk failed; opened again, the directory is fresh again.
    pub fn join_cluster(self, cluster: ClusterId, store: StoreId) -> Result<StoreDir, DirError> {
        let identity = Identity { cluster, uuid: self.uuid, store };
        self.create(identity, WriteBatch::default(), Vec::new())
    }

    fn create(self, identity: Identity, mut batch: WriteBatch, mut ops: Vec<LogOp>) -> Result<StoreDir, DirError> {
        let dir = self.place.path.clone();
        let (kv, raft_log) = (dir.join("kv"), dir.join("log"));
        for part in [&kv, &raft_log] {
            // What an earlier try left: nobody was promised anything before IDENT was there.
            remove_dir(part)?;
            fs::create_dir(part).map_err(failed("make the directory", part))?;
        }
        batch.put(keys::store_local(IDENT_COPY), identity.encode());
        let engine = RocksEngine::open(&kv, SMALL)?;
        engine.write(&batch)?;
        engine.flush()?;
        drop(engine);
        ops.push(LogOp::Meta { key: MetaKey::Identity, value: identity.encode() });
        let (log, _) = EngineLog::open(&raft_log, self.uuid)?;
        log.write(&LogBatch { ops })?;
        drop(log);
        sync_dir(&kv)?;
        sync_dir(&raft_log)?;
        write_synced(&dir, "FORMAT", FORMAT.as_bytes())?;
        write_synced(&dir, "IDENT", &identity.encode())?;
        remove_file(&dir.join("NEW"))?;
        sync_dir(&dir)?;
        Ok(StoreDir { place: self.place, identity })
    }
}
