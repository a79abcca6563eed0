//! Reads. One range: at the leaseholder's clock, in one step. Several: at the gateway's.
//!
//! A gateway's clock may lag behind the clock that stamped a write which was acknowledged before the scan began, by at most
//! the largest offset. So until anything was returned, a version in that window restarts the scan above it. A scan that will
//! need more than one chunk cannot restart later: it waits until its clock has passed the whole window and reads above it,
//! where nothing is uncertain. That costs one wait of the largest offset per such scan. From its first chunk on a
//! scan reads the past at the chunk's timestamp.

use std::time::Duration;

use flotilla_types::{Command, Key, KeySpan, RangeDescriptor, Read, ReadAt, Reply, Row, ScanResult, Timestamp};

use crate::backoff::Backoff;
use crate::send::{Cut, Failed, Place};
use crate::{KvError, Router};

/// Restarts at a met version; then the whole window is waited out instead.
const RESTARTS_MAX: u32 = 3;

/// The answer to a get.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GetAnswer {
    /// The row, if the key has a value.
    pub row: Option<Row>,
    /// When it was read.
    pub timestamp: Timestamp,
}

/// What to scan.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanRequest {
    /// Which keys.
    pub span: KeySpan,
    /// From the end to the start.
    pub reverse: bool,
    /// At most so many rows in the chunk; 0 for no bound.
    pub rows_max: u64,
    /// At most so many bytes of keys and values in the chunk, unless its only row is larger.
    pub bytes_max: u64,
    /// The timestamp of the scan's first chunk. `None`: this is the first chunk.
    pub at: Option<Timestamp>,
}

/// A part of a scan's answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScanChunk {
    /// Rows in the order asked for. May be empty only if the span is done.
    pub rows: Vec<Row>,
    /// Where the next chunk begins, or for a reverse scan ends (excluded). `None` if the span is done.
    pub resume: Option<Key>,
    /// When it was read; give it to the next chunk.
    pub timestamp: Timestamp,
}

impl Router {
    /// Reads a key, linearizably.
    ///
    /// # Errors
    /// See `KvError`; a read is never ambiguous.
    pub async fn get(&self, key: Key, deadline: Duration) -> Result<GetAnswer, KvError> {
        let read = |_: &RangeDescriptor| {
            Cut::Ask(Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key: key.clone() } })
        };
        let (reply, _) = self.send(&Place::Of(key.clone()), deadline, read).await?;
        match reply.reply {
            Reply::Get(row) => Ok(GetAnswer { row, timestamp: reply.timestamp }),
            _ => Err(KvError::Unavailable { range: None, why: "a get was answered by something else".to_owned() }),
        }
    }

    /// Reads a key as it was at a timestamp.
    ///
    /// # Errors
    /// See `KvError`; `BelowGcThreshold` if that is no longer known.
    pub async fn get_at(&self, key: Key, at: Timestamp, deadline: Duration) -> Result<GetAnswer, KvError> {
        let window = ReadAt::Timestamp { timestamp: at, limit: at };
        let read = |_: &RangeDescriptor| Cut::Ask(Command::Read { at: window, read: Read::Get { key: key.clone() } });
        let (reply, _) = self.send(&Place::Of(key.clone()), deadline, read).await?;
        match reply.reply {
            Reply::Get(row) => Ok(GetAnswer { row, timestamp: reply.timestamp }),
            _ => Err(KvError::Unavailable { range: None, why: "a get was answered by something else".to_owned() }),
        }
    }

    /// Reads the next chunk of a span. All chunks of one scan, taken with the first one's timestamp, show one moment.
    ///
    /// # Errors
    /// See `KvError`; a read is never ambiguous.
    pub async fn scan(&self, request: ScanRequest, deadline: Duration) -> Result<ScanChunk, KvError> {
        if request.span.start >= request.span.end {
            let what = format!("{} is empty: its end must lie above its start", request.span);
            return Err(KvError::Invalid { what });
        }
        if let Some(at) = request.at {
            return self.chunk(&request, ReadAt::Timestamp { timestamp: at, limit: at }, deadline).await;
        }
        if let Some(chunk) = self.scan_one_range(&request, deadline).await? {
            return Ok(chunk);
        }
        let began = self.shared.clock.now()?;
        let limit = began.plus(self.shared.clock.max_offset());
        let mut timestamp = began;
        for _ in 0..=RESTARTS_MAX {
            match self.gather(&request, ReadAt::Timestamp { timestamp, limit }, deadline).await {
                Ok(chunk) if chunk.resume.is_none() => return Ok(chunk),
                Err(Failed::Uncertain(existing)) if existing <= limit => timestamp = existing.max(timestamp.next()),
                Ok(_) | Err(Failed::Uncertain(_)) => break,
                Err(failed) => return Err(failed.into()),
            }
        }
        self.wait_for(limit, deadline).await?;
        self.chunk(&request, ReadAt::Timestamp { timestamp: limit, limit }, deadline).await
    }

    /// The first chunk of a span that one range holds; `None` if more than one does.
    async fn scan_one_range(&self, request: &ScanRequest, deadline: Duration) -> Result<Option<ScanChunk>, KvError> {
        let mut crosses = false;
        let read = |owner: &RangeDescriptor| {
            crosses = !owner.span.covers(&request.span);
            let (bytes, rows) = (request.bytes_max, request.rows_max);
            if crosses {
                Cut::Refuse(crossed())
            } else {
                Cut::Ask(piece(request, &request.span, ReadAt::Leaseholder, rows, bytes))
            }
        };
        let answered = self.send(&begin(request, &request.span), deadline, read).await;
        if crosses {
            return Ok(None);
        }
        let (reply, _) = answered?;
        let result = scanned(reply.reply)?;
        let mut chunk = ScanChunk { rows: result.rows, resume: result.resume, timestamp: reply.timestamp };
        trim(&mut chunk, request);
        Ok(Some(chunk))
    }

    /// A chunk at a timestamp at which nothing is uncertain.
    async fn chunk(&self, request: &ScanRequest, at: ReadAt, deadline: Duration) -> Result<ScanChunk, KvError> {
        Ok(self.gather(request, at, deadline).await?)
    }

    /// Reads range after range until the chunk is full or the span is done.
    async fn gather(&self, request: &ScanRequest, at: ReadAt, deadline: Duration) -> Result<ScanChunk, Failed> {
        let timestamp = match at {
            ReadAt::Timestamp { timestamp, .. } => timestamp,
            ReadAt::Leaseholder => Timestamp::ZERO,
        };
        let mut chunk = ScanChunk { rows: Vec::new(), resume: None, timestamp };
        let (mut rest, mut bytes) = (request.span.clone(), 0u64);
        loop {
            let rows_max = match request.rows_max {
                0 => 0,
                most => most.saturating_sub(chunk.rows.len() as u64),
            };
            let bytes_max = request.bytes_max.saturating_sub(bytes).max(1);
            let (result, piece) = self.read_piece(request, &rest, at, (rows_max, bytes_max), deadline).await?;
            bytes += result.rows.iter().map(weight).sum::<u64>();
            chunk.rows.extend(result.rows);
            let next = result.resume.or_else(|| after(&piece, &rest, request.reverse));
            let full =
                bytes >= request.bytes_max || (request.rows_max > 0 && chunk.rows.len() as u64 >= request.rows_max);
            match next {
                Some(key) if full => {
                    chunk.resume = Some(key);
                    break;
                }
                Some(key) if request.reverse => rest.end = key,
                Some(key) => rest.start = key,
                None => break,
            }
        }
        trim(&mut chunk, request);
        Ok(chunk)
    }

    /// Reads the first range's part of the rest of a scan. A leaseholder whose clock lags behind the timestamp refuses it
    /// for a moment: its clock catches up with every message.
    async fn read_piece(
        &self,
        request: &ScanRequest,
        rest: &KeySpan,
        at: ReadAt,
        (rows_max, bytes_max): (u64, u64),
        deadline: Duration,
    ) -> Result<(ScanResult, KeySpan), Failed> {
        let patience = self.shared.clock.mono() + self.shared.clock.max_offset() * 2;
        let config = &self.shared.config;
        let mut backoff = Backoff::new(config.backoff_min, config.backoff_max);
        loop {
            let mut asked = rest.clone();
            let read = |owner: &RangeDescriptor| match owner.span.intersection(rest) {
                Some(part) => {
                    asked = part;
                    Cut::Ask(piece(request, &asked, at, rows_max, bytes_max))
                }
                None => Cut::Refuse(crossed()),
            };
            match self.send(&begin(request, rest), deadline, read).await {
                Ok((reply, _)) => return Ok((scanned(reply.reply)?, asked)),
                Err(Failed::Kv(KvError::FutureTimestamp { .. }))
                    if self.shared.clock.mono() < patience.min(deadline) =>
                {
                    self.pause(backoff.pause(&self.shared.dice), deadline).await;
                }
                Err(failed) => return Err(failed),
            }
        }
    }

    /// Waits until this node's clock has passed a timestamp.
    async fn wait_for(&self, timestamp: Timestamp, deadline: Duration) -> Result<(), KvError> {
        loop {
            let now = self.shared.clock.now()?;
            if now > timestamp {
                return Ok(());
            }
            if self.shared.clock.mono() >= deadline {
                return Err(KvError::DeadlineExceeded { why: "waiting for the clock".to_owned() });
            }
            // HAZARD: the wall clock may run slower than the monotonic one; so it is looked at again.
            self.pause(timestamp.since(now) + Duration::from_millis(1), deadline).await;
        }
    }
}

/// Where a scan of a span begins.
pub(crate) fn begin(request: &ScanRequest, span: &KeySpan) -> Place {
    if request.reverse { Place::Below(span.end.clone()) } else { Place::Of(span.start.clone()) }
}

fn piece(request: &ScanRequest, span: &KeySpan, at: ReadAt, rows_max: u64, bytes_max: u64) -> Command {
    let read = Read::Scan { span: span.clone(), reverse: request.reverse, rows_max, bytes_max };
    Command::Read { at, read }
}

/// Where a scan goes on after a piece that was read to its end.
pub(crate) fn after(piece: &KeySpan, rest: &KeySpan, reverse: bool) -> Option<Key> {
    if reverse {
        (piece.start > rest.start).then(|| piece.start.clone())
    } else {
        (piece.end < rest.end).then(|| piece.end.clone())
    }
}

fn weight(row: &Row) -> u64 {
    (row.key.as_bytes().len() + row.value.len()) as u64
}

/// Takes rows off the end until the chunk is within its bytes; the first row stays. A range stops *after* the row that
/// passes the bound.
pub(crate) fn trim(chunk: &mut ScanChunk, request: &ScanRequest) {
    let mut bytes: u64 = chunk.rows.iter().map(weight).sum();
    while bytes > request.bytes_max && chunk.rows.len() > 1 {
        let Some(row) = chunk.rows.pop() else { return };
        bytes -= weight(&row);
        chunk.resume = Some(if request.reverse { row.key.next() } else { row.key });
    }
}

fn scanned(reply: Reply) -> Result<ScanResult, KvError> {
    match reply {
        Reply::Scan(result) => Ok(result),
        _ => Err(KvError::Unavailable { range: None, why: "a scan was answered by something else".to_owned() }),
    }
}

fn crossed() -> KvError {
    KvError::Unavailable { range: None, why: "the span begins in another range".to_owned() }
}
