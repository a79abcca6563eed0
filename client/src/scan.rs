//! Reading many rows as of one moment.
//!
//! A scan is a stream that breaks with the node that serves it. The client then goes on at another node, behind the last
//! chunk it received and at the timestamp of the first, so that the reader sees one moment from beginning to end.

use std::time::Instant;

use bytes::Bytes;
use flotilla_proto::v1;
use flotilla_types::Timestamp;
use tonic::Streaming;

use crate::call::{Backoff, Repeat};
use crate::error::{Failure, Next};
use crate::kv::{timestamp, wire};
use crate::{Client, Error};

/// A span of keys: from `start`, included, to `end`, excluded; without end to the last key of all.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Span {
    /// First key.
    pub start: Bytes,
    /// First key that does not belong to it any more.
    pub end: Option<Bytes>,
}

impl Span {
    /// All keys.
    #[must_use]
    pub fn all() -> Self {
        Self::default()
    }

    /// All keys that begin with these bytes.
    #[must_use]
    pub fn prefix(prefix: impl Into<Bytes>) -> Self {
        let start: Bytes = prefix.into();
        let mut end = start.to_vec();
        while end.pop_if(|last| *last == 0xff).is_some() {}
        let end = end.last().is_some().then(|| {
            if let Some(last) = end.last_mut() {
                *last += 1;
            }
            end.into()
        });
        Self { start, end }
    }
}

/// How to scan; the default reads all rows of the span in key order as of now.
#[derive(Debug, Clone, Copy, Default)]
pub struct ScanOptions {
    /// From the end to the start.
    pub reverse: bool,
    /// At most so many rows; 0 for all.
    pub rows_max: u64,
    /// The past as of this timestamp.
    pub at: Option<Timestamp>,
}

/// One key and its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    /// The key.
    pub key: Bytes,
    /// The value.
    pub value: Bytes,
    /// When it was written.
    pub written: Timestamp,
}

/// A scan under way. Drop it to end it early.
pub struct Scan {
    client: Client,
    rest: Span,
    options: ScanOptions,
    rows_left: u64,
    stream: Option<Streaming<v1::ScanResponse>>,
    rows: std::vec::IntoIter<v1::Row>,
    done: bool,
}

impl Client {
    /// Reads the rows of a span as of one moment. Nothing is asked before the first row is.
    #[must_use]
    pub fn scan(&self, span: Span, options: ScanOptions) -> Scan {
        let rows_left = if options.rows_max == 0 { u64::MAX } else { options.rows_max };
        let rows = Vec::new().into_iter();
        Scan { client: self.clone(), rest: span, options, rows_left, stream: None, rows, done: false }
    }
}

impl Scan {
    /// The next row; `None` after the last.
    ///
    /// # Errors
    /// See [`Error`]. The client's timeout bounds the time without progress, not the whole scan. The scan may be asked
    /// again after an error: it goes on where it was.
    pub async fn next(&mut self) -> Result<Option<Row>, Error> {
        loop {
            if let Some(row) = self.rows.next() {
                let written = timestamp(row.timestamp.as_ref());
                return Ok(Some(Row { key: row.key, value: row.value, written }));
            }
            if self.done {
                return Ok(None);
            }
            self.more().await?;
        }
    }

    /// All rows that are left.
    ///
    /// # Errors
    /// As `next`.
    pub async fn collect(mut self) -> Result<Vec<Row>, Error> {
        let mut rows = Vec::new();
        while let Some(row) = self.next().await? {
            rows.push(row);
        }
        Ok(rows)
    }

    /// The timestamp of the read, once the first rows came.
    #[must_use]
    pub const fn timestamp(&self) -> Option<Timestamp> {
        self.options.at
    }

    /// Fetches the next chunk, or finds that there is none.
    async fn more(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.client.timeout();
        let mut backoff = Backoff::new(&self.client.shared.options);
        loop {
            let mut stream = match self.stream.take() {
                Some(stream) => stream,
                None => self.open().await?,
            };
            let patience = self.client.shared.options.attempt_timeout;
            let failure = match tokio::time::timeout(patience, stream.message()).await {
                Ok(Ok(Some(chunk))) => {
                    self.stream = Some(stream);
                    return self.take(chunk);
                }
                // The stream ended before the span: the node stops, or it bounds its streams. Go on with a new one.
                Ok(Ok(None)) => None,
                Ok(Err(status)) => Some(Failure::of(&status, "the node that was read from")),
                Err(_) => Some(Failure::silence("the node that was read from", patience)),
            };
            let asked = match failure.as_ref().map(|failure| failure.next) {
                Some(Next::Later(after)) => after,
                _ => None,
            };
            let pause = backoff.pause(asked);
            match failure {
                Some(Failure { error, next: Next::GiveUp, .. }) => return Err(error),
                Some(Failure { error, .. }) if Instant::now() + pause >= deadline => return Err(error),
                None if Instant::now() + pause >= deadline => {
                    return Err(Error::BadAnswer { what: "a scan that ends again and again without a row" });
                }
                _ => tokio::time::sleep(pause).await,
            }
        }
    }

    async fn open(&self) -> Result<Streaming<v1::ScanResponse>, Error> {
        let request = v1::ScanRequest {
            after: None,
            start: self.rest.start.clone(),
            end: self.rest.end.clone(),
            reverse: self.options.reverse,
            rows_max: if self.rows_left == u64::MAX { 0 } else { self.rows_left },
            chunk_bytes: 0,
            at: self.options.at.map(wire),
        };
        self.client.kv(Repeat::Read, request, |mut kv, r| async move { kv.scan(r).await }).await
    }

    /// Takes a chunk in, and remembers where the rest begins.
    fn take(&mut self, chunk: v1::ScanResponse) -> Result<(), Error> {
        if let Some(at) = &chunk.timestamp {
            self.client.shared.births.learn(Some(at));
            self.options.at = Some(timestamp(Some(at)));
        }
        let count = chunk.rows.len() as u64;
        if count > self.rows_left {
            return Err(Error::BadAnswer { what: "a scan with more rows than asked for" });
        }
        if self.rows_left != u64::MAX {
            self.rows_left -= count;
        }
        match chunk.resume {
            Some(resume) if self.options.reverse => self.rest.end = Some(resume),
            Some(resume) => self.rest.start = resume,
            None => self.done = true,
        }
        self.done |= self.rows_left == 0;
        if self.done {
            self.stream = None;
        }
        self.rows = chunk.rows.into_iter();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_span_of_a_prefix_ends_where_the_prefix_does() {
        assert_eq!(Span::prefix("ab").end, Some("ac".into()));
        assert_eq!(Span::prefix(&b"a\xff\xff"[..]).end, Some("b".into()));
        assert_eq!(Span::prefix(&b"\xff\xff"[..]).end, None);
        assert_eq!(Span::prefix(""), Span::all());
    }
}
