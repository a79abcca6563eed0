//! Reading and writing the small records of a store: a version byte, then fields of fixed or prefixed length, big-endian.

use flotilla_types::Timestamp;
use thiserror::Error;

/// A record that cannot be read. Below raft this stops the replica; it is never skipped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a {record} record cannot be read: {what}")]
pub struct RecordError {
    record: &'static str,
    what: &'static str,
}

/// Builds a record.
pub(crate) struct RecordWriter(Vec<u8>);

impl RecordWriter {
    pub(crate) fn new(version: u8) -> Self {
        Self(vec![version])
    }

    pub(crate) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    pub(crate) fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    pub(crate) fn timestamp(self, value: Timestamp) -> Self {
        self.u64(value.wall).u32(value.logical)
    }

    pub(crate) fn bytes(self, value: &[u8]) -> Self {
        let mut record = self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        record.0.extend_from_slice(value);
        record
    }

    pub(crate) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a record apart.
pub(crate) struct RecordReader<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> RecordReader<'a> {
    /// Checks the version byte, of which only `version` is known.
    pub(crate) fn new(record: &'static str, version: u8, bytes: &'a [u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            Some((found, rest)) if *found == version => Ok(Self { record, rest }),
            Some(_) => Err(RecordError { record, what: "it was written by another version" }),
            None => Err(RecordError { record, what: "it is empty" }),
        }
    }

    pub(crate) fn refuse<T>(&self, what: &'static str) -> Result<T, RecordError> {
        Err(RecordError { record: self.record, what })
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let Some((chunk, rest)) = self.rest.split_first_chunk::<N>() else {
            return self.refuse("it is cut short");
        };
        self.rest = rest;
        Ok(*chunk)
    }

    pub(crate) fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.chunk::<1>()?[0])
    }

    pub(crate) fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_be_bytes(self.chunk()?))
    }

    pub(crate) fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.refuse("a flag is neither 0 nor 1"),
        }
    }

    pub(crate) fn timestamp(&mut self) -> Result<Timestamp, RecordError> {
        Ok(Timestamp { wall: self.u64()?, logical: self.u32()? })
    }

    pub(crate) fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32()? as usize;
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return self.refuse("it is cut short");
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// The record must end here.
    pub(crate) fn end(self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { self.refuse("bytes follow its end") }
    }
}
