//! Reading and writing the small records of a store: a version byte, then fields of fixed or prefixed length, big-endian.

use thiserror::Error;

use crate::Timestamp;

/// A record that cannot be read. Below raft this stops the replica; it is never skipped.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("a {record} record cannot be read: {what}")]
pub struct RecordError {
    record: &'static str,
    what: &'static str,
}

/// Builds a record.
#[derive(Debug)]
pub struct RecordWriter(Vec<u8>);

impl RecordWriter {
    /// Starts with the version byte.
    #[must_use]
    pub fn new(version: u8) -> Self {
        Self(vec![version])
    }

    /// Adds a byte.
    #[must_use]
    pub fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a number.
    #[must_use]
    pub fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_be_bytes());
        self
    }

    /// Adds a timestamp.
    #[must_use]
    pub fn timestamp(self, value: Timestamp) -> Self {
        self.u64(value.wall).u32(value.logical)
    }

    /// Adds bytes behind their length.
    #[must_use]
    pub fn bytes(self, value: &[u8]) -> Self {
        let mut record = self.u32(u32::try_from(value.len()).unwrap_or(u32::MAX));
        record.0.extend_from_slice(value);
        record
    }

    /// The record's bytes.
    #[must_use]
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// Takes a record apart. Every method fails on a record that is cut short.
#[derive(Debug)]
pub struct RecordReader<'a> {
    record: &'static str,
    rest: &'a [u8],
}

impl<'a> RecordReader<'a> {
    /// Checks the version byte, of which only `version` is known.
    ///
    /// # Errors
    /// The record is empty or of another version.
    pub fn new(record: &'static str, version: u8, bytes: &'a [u8]) -> Result<Self, RecordError> {
        match bytes.split_first() {
            Some((found, rest)) if *found == version => Ok(Self { record, rest }),
            Some(_) => Err(RecordError { record, what: "it was written by another version" }),
            None => Err(RecordError { record, what: "it is empty" }),
        }
    }

    /// Refuses the record.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn refuse<T>(&self, what: &'static str) -> Result<T, RecordError> {
        Err(RecordError { record: self.record, what })
    }

    fn chunk<const N: usize>(&mut self) -> Result<[u8; N], RecordError> {
        let Some((chunk, rest)) = self.rest.split_first_chunk::<N>() else {
            return self.refuse("it is cut short");
        };
        self.rest = rest;
        Ok(*chunk)
    }

    /// Takes a byte.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn u8(&mut self) -> Result<u8, RecordError> {
        Ok(self.chunk::<1>()?[0])
    }

    /// Takes a number.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn u32(&mut self) -> Result<u32, RecordError> {
        Ok(u32::from_be_bytes(self.chunk()?))
    }

    /// Takes a number.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn u64(&mut self) -> Result<u64, RecordError> {
        Ok(u64::from_be_bytes(self.chunk()?))
    }

    /// Takes a flag.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn flag(&mut self) -> Result<bool, RecordError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            _ => self.refuse("a flag is neither 0 nor 1"),
        }
    }

    /// Takes a timestamp.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn timestamp(&mut self) -> Result<Timestamp, RecordError> {
        Ok(Timestamp { wall: self.u64()?, logical: self.u32()? })
    }

    /// Takes bytes behind their length.
    ///
    /// # Errors
    /// Always, or the record is damaged.
    pub fn bytes(&mut self) -> Result<&'a [u8], RecordError> {
        let length = self.u32()? as usize;
        let Some((bytes, rest)) = self.rest.split_at_checked(length) else {
            return self.refuse("it is cut short");
        };
        self.rest = rest;
        Ok(bytes)
    }

    /// The record must end here.
    ///
    /// # Errors
    /// Bytes follow.
    pub fn end(self) -> Result<(), RecordError> {
        if self.rest.is_empty() { Ok(()) } else { self.refuse("bytes follow its end") }
    }
}
