//! How nodes present themselves, and why one is turned away. Every stream begins with it.

use std::time::Duration;

use flotilla_proto::gate::WireError;
use flotilla_proto::internal as wire;
use flotilla_storage::log::LogSeq;
use flotilla_types::{ClusterId, StoreId, StoreUuid, nanoseconds};
use tonic::{Code, Status};

use super::directory::{Directory, Stranger};
use super::member::{Contact, Member};
use crate::store::Identity;

/// Marks a refusal that ends the process that is refused: another process uses its store's identity.
const FENCED: &str = "flotilla-fenced";

/// This node, as it presents itself.
#[derive(Debug, Clone)]
pub(super) struct Me {
    pub(super) identity: Identity,
    pub(super) boot: u32,
    /// Drawn at the start of the process.
    pub(super) nonce: u64,
    /// How far its log was synced when it started.
    pub(super) recovered: LogSeq,
    pub(super) contact: Contact,
    pub(super) max_offset: Duration,
}

/// A node that presented itself and was believed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caller {
    pub(super) store: StoreId,
    pub(super) boot: u32,
}

impl Me {
    /// For the node that is meant to be reached.
    pub(super) fn hello(&self, called: StoreId) -> wire::Hello {
        wire::Hello {
            cluster_id: self.identity.cluster.0.to_vec().into(),
            store_uuid: self.identity.uuid.0.to_vec().into(),
            store_id: self.identity.store.0,
            boot: self.boot,
            nonce: self.nonce,
            contact: Some((&self.contact).into()),
            max_offset_ns: nanoseconds(self.max_offset),
            called_store_id: called.0,
            recovered: self.recovered.0,
        }
    }

    pub(super) fn member(&self) -> Member {
        Member { store: self.identity.store, uuid: self.identity.uuid, contact: self.contact.clone() }
    }

    /// Believes a caller or says why not.
    pub(super) fn admit(&self, hello: Option<wire::Hello>, directory: &Directory) -> Result<Caller, Status> {
        let hello = hello.ok_or_else(|| malformed(&WireError::new("the first frame presents nobody")))?;
        let cluster = ClusterId::try_from(&hello.cluster_id[..]).map_err(|error| malformed(&error))?;
        let uuid = StoreUuid::try_from(&hello.store_uuid[..]).map_err(|error| malformed(&error))?;
        let contact = hello.contact.ok_or_else(|| malformed(&WireError::new("the caller's contact is missing")))?;
        let contact = Contact::try_from(contact).map_err(|error| malformed(&error))?;
        if cluster != self.identity.cluster {
            return Err(Status::failed_precondition(format!(
                "this node belongs to cluster {}, the caller to cluster {cluster}: --join must name nodes of its own cluster",
                self.identity.cluster
            )));
        }
        check_offset(hello.max_offset_ns, self.max_offset)?;
        let store = StoreId(hello.store_id);
        if store == self.identity.store && uuid == self.identity.uuid {
            return Err(Status::already_exists(format!(
                "the caller presents itself as {store}, which is this node: it runs on a copy of this node's directory, or \
                 an address of another node leads here"
            )));
        }
        let called = StoreId(hello.called_store_id);
        if called != self.identity.store {
            return Err(Status::unavailable(format!(
                "{store} calls {called}, and this node is {}: it listens on an address that {called} had",
                self.identity.store
            )));
        }
        match directory.present(Member { store, uuid, contact }, hello.boot, hello.nonce, LogSeq(hello.recovered)) {
            Ok(()) => Ok(Caller { store, boot: hello.boot }),
            Err(stranger) => Err(refusal(&stranger)),
        }
    }
}

/// All nodes of a cluster must be bound alike: uncertainty and leases rest on it.
pub(crate) fn check_offset(theirs_ns: u64, ours: Duration) -> Result<(), Status> {
    if theirs_ns == nanoseconds(ours) {
        return Ok(());
    }
    let theirs = Duration::from_nanos(theirs_ns);
    Err(Status::failed_precondition(format!(
        "this node runs with --max-offset {ours:?}, the caller with {theirs:?}: it must be the same on all nodes"
    )))
}

/// Why a stranger is turned away.
pub(super) fn refusal(stranger: &Stranger) -> Status {
    let code = match stranger {
        Stranger::Unknown(_) => Code::Unavailable,
        Stranger::OtherDirectory { .. } | Stranger::Copy { .. } | Stranger::Rewound { .. } => Code::FailedPrecondition,
    };
    let mut status = Status::new(code, stranger.to_string());
    if code == Code::FailedPrecondition {
        status.metadata_mut().insert(FENCED, tonic::metadata::MetadataValue::from_static("1"));
    }
    status
}

/// Whether a refusal says that this process must not go on.
pub(super) fn fences(status: &Status) -> bool {
    status.code() == Code::FailedPrecondition && status.metadata().contains_key(FENCED)
}

pub(crate) fn malformed(error: &dyn std::fmt::Display) -> Status {
    Status::invalid_argument(error.to_string())
}
