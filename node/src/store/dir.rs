//! The directory of one store: who may open it, and whether it is whole.
//!
//! ```text
//! LOCK    held while a process uses the directory
//! FORMAT  the version of this layout, as text
//! IDENT   who the store is; written last, so that a directory with it is whole
//! NEW     the uuid of a store that is about to be; gone once IDENT is there
//! kv/     the engine        log/    the raft log        reserve    room for hard times
//! ```
//! A directory is never repaired and nothing is made over something that lies there: every refusal says what was found
//! and what a person can do (docs/durability.md, "The directory, and a start").

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use flotilla_storage::engine::{Engine, EngineError};
use flotilla_storage::keys;
use flotilla_storage::log::{LogFatal, LogStore, MetaKey};
use thiserror::Error;

use super::files::{failed, lock, names, refuse_network, remove_file};
use super::fresh::FreshDir;
use super::ident::Identity;

pub(super) const FORMAT: &str = "flotilla store, format 1\n";
/// The name of the engine's copy of the identity.
pub(super) const IDENT_COPY: &str = "ident";

/// Why a directory is refused. Exit code 3.
#[derive(Debug, Error)]
pub enum DirError {
    /// Another process uses it.
    #[error("{dir} is in use by another process: stop that one first, or give this node a directory of its own")]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// It lies on another machine.
    #[error("{dir} lies on {kind}, a network file system, which does not keep what a store syncs: use a local disk")]
    Network {
        /// The directory.
        dir: PathBuf,
        /// Which file system.
        kind: &'static str,
    },
    /// It holds other things.
    #[error("{dir} is not empty and is no Flotilla store (it holds '{found}'): give an empty directory")]
    Foreign {
        /// The directory.
        dir: PathBuf,
        /// One thing that lies there.
        found: String,
    },
    /// A part of the store is gone.
    #[error(
        "{dir} is a Flotilla store whose '{part}' is missing, and must not start without it: put it back, or replace \
         the node: give it an empty directory and let it join again"
    )]
    Missing {
        /// The directory.
        dir: PathBuf,
        /// What is gone.
        part: &'static str,
    },
    /// Another version wrote it.
    #[error("{dir} has another layout than this version reads ('{found}'): start it with the version that wrote it")]
    Format {
        /// The directory.
        dir: PathBuf,
        /// What FORMAT says.
        found: String,
    },
    /// The identity is damaged, or not that of the parts.
    #[error(
        "{dir}: the identity in '{part}' does not fit ({what}): the directory was put together from several stores, or \
         is damaged; put its own parts back, or replace the node: give it an empty directory and let it join again"
    )]
    Identity {
        /// The directory.
        dir: PathBuf,
        /// Where the other identity was found.
        part: &'static str,
        /// What is wrong.
        what: String,
    },
    /// The disk failed.
    #[error("{action} {path}: {source}")]
    Io {
        /// What was being done, as a verb.
        action: &'static str,
        /// To what.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The engine failed.
    #[error(transparent)]
    Engine(#[from] EngineError),
    /// The log failed.
    #[error(transparent)]
    Log(#[from] LogFatal),
}

/// What a directory holds.
#[derive(Debug)]
pub enum Opened {
    /// Nothing yet: the node waits to be told to begin a cluster or to join one.
    Fresh(FreshDir),
    /// A store.
    Store(StoreDir),
}

/// The directory of a store, locked and whole as far as files tell.
#[derive(Debug)]
pub struct StoreDir {
    pub(super) place: Place,
    pub(super) identity: Identity,
}

/// A locked directory.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    _lock: File,
}

impl StoreDir {
    /// Opens a directory; makes it if it is not there.
    ///
    /// # Errors
    /// See [`DirError`]: nothing was changed.
    pub fn open(path: &Path) -> Result<Opened, DirError> {
        fs::create_dir_all(path).map_err(failed("make the directory", path))?;
        refuse_network(path)?;
        let found = names(path)?;
        let held = |part: &str| found.iter().any(|name| name == part);
        if !held("IDENT") && !held("NEW") {
            if held("FORMAT") || held("kv") || held("log") {
                return Err(DirError::Missing { dir: path.to_owned(), part: "IDENT" });
            }
            // A mounted disk brings `lost+found` along.
            if let Some(foreign) =
                found.iter().find(|name| *name != "LOCK" && *name != "lost+found" && *name != "NEW.tmp")
            {
                return Err(DirError::Foreign { dir: path.to_owned(), found: foreign.clone() });
            }
        }
        let place = Place::new(path, lock(path)?);
        if held("IDENT") {
            return Self::of_store(place).map(Opened::Store);
        }
        let fresh = if held("NEW") { FreshDir::again(place) } else { FreshDir::new(place) };
        fresh.map(Opened::Fresh)
    }

    fn of_store(place: Place) -> Result<Self, DirError> {
        let dir = &place.path;
        // An engine without CURRENT, or a log without files, would be made anew in silence.
        for part in ["FORMAT", "kv", "kv/CURRENT", "log", "log/sync.mark"] {
            if !dir.join(part).exists() {
                return Err(DirError::Missing { dir: dir.clone(), part });
            }
        }
        if !names(&dir.join("log"))?.iter().any(|name| name.ends_with(".raftlog")) {
            return Err(DirError::Missing { dir: dir.clone(), part: "log/*.raftlog" });
        }
        let format = fs::read(dir.join("FORMAT")).map_err(failed("read", &dir.join("FORMAT")))?;
        if format != FORMAT.as_bytes() {
            let found = String::from_utf8_lossy(&format[..format.len().min(80)]).trim().to_owned();
            return Err(DirError::Format { dir: dir.clone(), found });
        }
        let ident = fs::read(dir.join("IDENT")).map_err(failed("read", &dir.join("IDENT")))?;
        let refused = |what: String| DirError::Identity { dir: dir.clone(), part: "IDENT", what };
        let identity = Identity::decode(&ident).map_err(|error| refused(error.to_string()))?;
        // What is left of making the store, if a crash came right after IDENT.
        remove_file(&dir.join("NEW"))?;
        Ok(Self { place, identity })
    }

    /// Where it lies. Files of other rooms may lie there too, under names of their own.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.place.path
    }

    /// Who the store is.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// Holds the copies of the identity against it.
    pub(super) fn check_copies(&self, engine: &dyn Engine, log: &dyn LogStore) -> Result<(), DirError> {
        let in_engine = engine.get(&keys::store_local(IDENT_COPY))?;
        for (part, copy) in [("kv", in_engine), ("log", log.meta(MetaKey::Identity))] {
            let refused = |what: String| DirError::Identity { dir: self.path().to_owned(), part, what };
            let copy = copy.ok_or_else(|| refused("there is none".to_owned()))?;
            let found = Identity::decode(&copy).map_err(|error| refused(error.to_string()))?;
            if found != self.identity {
                let Identity { cluster, uuid, store } = found;
                return Err(refused(format!("it is that of {store}, uuid {uuid}, in cluster {cluster}")));
            }
        }
        Ok(())
    }
}

impl Place {
    pub(super) fn new(path: &Path, lock: File) -> Self {
        Self { path: path.to_owned(), _lock: lock }
    }
}
