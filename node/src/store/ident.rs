//! Who a store is: one record that lies in the directory, in the log and in the engine, and must be the same in all
//! three, so that a directory put together from parts of two stores does not start.

use bytes::Bytes;
use flotilla_types::{ClusterId, RecordError, RecordReader, RecordWriter, StoreId, StoreUuid};

const VERSION: u8 = 1;

/// Who a store is; never changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Its cluster.
    pub cluster: ClusterId,
    /// The directory, for ever.
    pub uuid: StoreUuid,
    /// Its number in the cluster.
    pub store: StoreId,
}

impl Identity {
    /// The record's bytes, checksum included.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let record = RecordWriter::new(VERSION).bytes(&self.cluster.0).bytes(&self.uuid.0).u64(self.store.0);
        let mut bytes = record.finish();
        let crc = crc32c::crc32c(&bytes);
        bytes.extend_from_slice(&crc.to_be_bytes());
        bytes.into()
    }

    /// Reads the record.
    ///
    /// # Errors
    /// It is damaged or of another version.
    pub fn decode(bytes: &[u8]) -> Result<Self, RecordError> {
        let (body, crc) = bytes.split_last_chunk::<4>().unwrap_or((&[], &[0; 4]));
        let mut record = RecordReader::new("identity", VERSION, body)?;
        if crc32c::crc32c(body).to_be_bytes() != *crc {
            return record.refuse("its checksum does not match");
        }
        let (cluster, uuid) = (record.bytes()?, record.bytes()?);
        let (Ok(cluster), Ok(uuid)) = (ClusterId::try_from(cluster), StoreUuid::try_from(uuid)) else {
            return record.refuse("an id in it has the wrong length");
        };
        let store = StoreId(record.u64()?);
        record.end()?;
        Ok(Self { cluster, uuid, store })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_reads_back_and_every_flipped_bit_is_refused() {
        let identity = Identity { cluster: ClusterId([7; 16]), uuid: StoreUuid([9; 16]), store: StoreId(3) };
        let bytes = identity.encode();
        assert_eq!(Identity::decode(&bytes), Ok(identity));
        for at in 0..bytes.len() {
            let mut flipped = bytes.to_vec();
            flipped[at] ^= 1;
            assert!(Identity::decode(&flipped).is_err(), "byte {at}");
            assert!(Identity::decode(&bytes[..at]).is_err(), "cut at {at}");
        }
    }
}
