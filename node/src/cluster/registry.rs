//! The record that lists the nodes of the cluster. One key of the system keyspace, changed by compare-and-swap: so a
//! number is given once, by consensus, and whoever reads it sees all of it.

use bytes::Bytes;
use flotilla_kv::{KvError, Router};
use flotilla_proto::internal as wire;
use flotilla_types::{Key, RecordError, RecordReader, RecordWriter, StoreId, Write, WriteResult, keys};
use std::time::Duration;
use thiserror::Error;

use crate::peer::member::Member;

const VERSION: u8 = 1;

/// The nodes of the cluster.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Registry {
    /// Ascending by number.
    pub members: Vec<Member>,
    /// The number that the next node gets. Numbers are never used twice.
    pub next: u64,
}

/// The registry could not be read or changed.
#[derive(Debug, Error)]
pub enum RegistryError {
    /// The system range could not do it.
    #[error("the registry of nodes: {0}")]
    Kv(#[from] KvError),
    /// What lies there is no registry.
    #[error("the registry of nodes cannot be read: {0}")]
    Record(#[from] RecordError),
    /// A member in it is malformed.
    #[error("the registry of nodes cannot be read: {0}")]
    Member(String),
}

fn key() -> Key {
    keys::system("registry")
}

impl Registry {
    fn encode(&self) -> Bytes {
        use prost::Message as _;
        let mut record = RecordWriter::new(VERSION).u64(self.next).u32(self.members.len() as u32);
        for member in &self.members {
            record = record.bytes(&wire::Member::from(member).encode_to_vec());
        }
        record.finish().into()
    }

    fn decode(bytes: &[u8]) -> Result<Self, RegistryError> {
        use prost::Message as _;
        let mut record = RecordReader::new("registry", VERSION, bytes)?;
        let next = record.u64()?;
        let mut members = Vec::new();
        for _ in 0..record.u32()? {
            let member = wire::Member::decode(record.bytes()?);
            let member = member.map_err(|error| RegistryError::Member(error.to_string()))?;
            members.push(Member::try_from(member).map_err(|error| RegistryError::Member(error.to_string()))?);
        }
        record.end()?;
        Ok(Self { members, next })
    }

    /// The member with a number.
    #[must_use]
    pub fn member(&self, store: StoreId) -> Option<&Member> {
        self.members.iter().find(|member| member.store == store)
    }

    /// Enters a node, or its new addresses; the same directory gets the same number again. Says which.
    pub fn enter(&mut self, uuid: flotilla_types::StoreUuid, contact: &crate::peer::member::Contact) -> StoreId {
        if let Some(member) = self.members.iter_mut().find(|member| member.uuid == uuid) {
            member.contact = contact.clone();
            return member.store;
        }
        let store = StoreId(self.next.max(1));
        self.next = store.0 + 1;
        self.members.push(Member { store, uuid, contact: contact.clone() });
        store
    }

    /// Reads it.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn read(router: &Router, deadline: Duration) -> Result<Self, RegistryError> {
        Ok(read(router, deadline).await?.0)
    }

    /// Changes it, again and again until nobody else changed it meanwhile. `change` may be called more than once.
    ///
    /// # Errors
    /// See [`RegistryError`].
    pub async fn update<T>(
        router: &Router,
        deadline: Duration,
        mut change: impl FnMut(&mut Self) -> T,
    ) -> Result<(Self, T), RegistryError> {
        loop {
            let (mut registry, expected) = read(router, deadline).await?;
            let before = registry.clone();
            let outcome = change(&mut registry);
            if registry == before {
                return Ok((registry, outcome));
            }
            let write = Write::CompareAndSwap { key: key(), expected, new: Some(registry.encode()) };
            // If it is not known whether it was done, the next look at it tells: every change is idempotent.
            match router.write(router.request_id()?, write, deadline).await {
                Ok((WriteResult::Done, _)) => return Ok((registry, outcome)),
                Ok(_) | Err(KvError::Ambiguous { .. }) => {}
                Err(error) => return Err(error.into()),
            }
            if router.clock().mono() >= deadline {
                let why = "others keep changing the registry of nodes".to_owned();
                return Err(KvError::DeadlineExceeded { why }.into());
            }
        }
    }
}

async fn read(router: &Router, deadline: Duration) -> Result<(Registry, Option<Bytes>), RegistryError> {
    let row = router.get(key(), deadline).await?.row;
    match row {
        Some(row) => Ok((Registry::decode(&row.value)?, Some(row.value))),
        None => Ok((Registry::default(), None)),
    }
}

#[cfg(test)]
mod tests {
    use flotilla_types::{Locality, StoreUuid};

    use super::*;
    use crate::peer::member::Contact;

    fn contact(port: u16) -> Contact {
        let address = format!("10.0.0.1:{port}");
        Contact {
            peer_address: address.clone(),
            client_address: address.clone(),
            http_address: address,
            locality: Locality::default(),
            version: "1".to_owned(),
        }
    }

    #[test]
    fn a_directory_keeps_its_number_and_a_number_its_directory() {
        let mut registry = Registry::default();
        let first = registry.enter(StoreUuid([1; 16]), &contact(1));
        let second = registry.enter(StoreUuid([2; 16]), &contact(2));
        assert_eq!((first, second), (StoreId(1), StoreId(2)));
        assert_eq!(registry.enter(StoreUuid([1; 16]), &contact(9)), first);
        registry.members.retain(|member| member.store != second);
        assert_eq!(registry.enter(StoreUuid([3; 16]), &contact(3)), StoreId(3), "not that of the node that left");
        assert_eq!(Registry::decode(&registry.encode()).unwrap(), registry);
    }

    #[test]
    fn a_cut_record_is_refused() {
        let mut registry = Registry::default();
        registry.enter(StoreUuid([1; 16]), &contact(1));
        let bytes = registry.encode();
        assert!((0..bytes.len()).all(|cut| Registry::decode(&bytes[..cut]).is_err()));
    }
}
