//! A snapshot on its way: the replicated content of one range, cut into checked frames.
//!
//! The sender walks the four spans of the range in key order on an engine snapshot ([`FrameWriter`]); the receiver
//! checks every frame as it comes and cuts the pairs into sorted files ([`Collector`]). A file never reaches over two
//! spans, so that ingesting it overlaps nothing in between, and the files of a span together cover all of it, so that
//! whatever the receiver held there before is hidden (docs/durability.md, "Snapshots").
//!
//! ```text
//!  frame   = version 1, id (store 8, number 8), frame number 4, span 1, pairs 4, crc 4, lz4(pairs)
//!  pair    = key length 4, key, value length 4, value
//!  trailer = a frame of span 255 whose body is: pairs of the whole 8, checksum of the whole 4
//! ```
//! All numbers are big-endian. The checksum of a frame covers everything else in it. Left out: resuming. A broken
//! transfer starts again, since a range is small.

use bytes::{BufMut, Bytes, BytesMut};
use flotilla_storage::SstFile;
use flotilla_storage::engine::{EngineError, Reader};
use flotilla_types::StoreId;
use thiserror::Error;

use crate::message::SnapshotId;

/// Start and end of one of the four spans, in physical keys.
pub type PhysicalSpan = (Vec<u8>, Vec<u8>);

const VERSION: u8 = 1;
const HEADER: usize = 1 + 16 + 4 + 1 + 4 + 4;
const TRAILER_SPAN: u8 = 255;
/// Pairs are gathered up to this size before they are packed: small enough to pace, large enough to compress.
const FRAME_BYTES: usize = 1 << 20;
/// No frame unpacks to more than this: one value of 8 MiB, its key, and a frame's worth of others.
const FRAME_BYTES_MAX: usize = 32 << 20;
/// A sorted file is cut when it holds this much, which bounds the receiver's memory.
const FILE_BYTES: usize = 16 << 20;

/// Why a frame was refused. The transfer ends; the leader starts another.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FrameError {
    /// Too short, of an unknown version, or inconsistent in itself.
    #[error("the snapshot frame is malformed: {0}")]
    Malformed(&'static str),
    /// Damaged on its way.
    #[error("the checksum of snapshot frame {0} does not match")]
    Checksum(u32),
    /// Of another transfer, or out of order.
    #[error("expected snapshot frame {expected} but got {got}")]
    Order {
        /// The number that was due.
        expected: u32,
        /// The number that came.
        got: u32,
    },
    /// A key outside its span, or not above the one before.
    #[error("a snapshot key lies outside its span or out of order")]
    Key,
    /// The trailer tells of another content.
    #[error("the snapshot's trailer does not match its frames")]
    Trailer,
}

/// Cuts the content of a range into frames.
pub struct FrameWriter<'a> {
    reader: &'a dyn Reader,
    id: SnapshotId,
    spans: [PhysicalSpan; 4],
    span: usize,
    /// Where the next frame begins in the present span.
    from: Vec<u8>,
    number: u32,
    pairs: u64,
    checksum: u32,
    done: bool,
}

impl<'a> FrameWriter<'a> {
    /// Frames of what `reader`, an engine snapshot, holds in the spans. Replica-local records stay behind.
    pub fn new(reader: &'a dyn Reader, id: SnapshotId, spans: [PhysicalSpan; 4]) -> Self {
        let from = spans[0].0.clone();
        Self { reader, id, spans, span: 0, from, number: 0, pairs: 0, checksum: 0, done: false }
    }

    /// The next frame, the trailer last, then `None`.
    ///
    /// # Errors
    /// The engine could not be read: end the transfer.
    pub fn next_frame(&mut self) -> Result<Option<Bytes>, EngineError> {
        while self.span < self.spans.len() {
            let (body, count) = self.fill()?;
            if count > 0 {
                self.pairs += u64::from(count);
                self.checksum = crc32c::crc32c_append(self.checksum, &body);
                return Ok(Some(self.seal(self.span as u8, count, &body)));
            }
            self.span += 1;
            if let Some((start, _)) = self.spans.get(self.span) {
                self.from.clone_from(start);
            }
        }
        if self.done {
            return Ok(None);
        }
        self.done = true;
        let mut body = self.pairs.to_be_bytes().to_vec();
        body.extend_from_slice(&self.checksum.to_be_bytes());
        Ok(Some(self.seal(TRAILER_SPAN, 0, &body)))
    }

    /// Gathers pairs of the present span from `from` on and moves `from` behind them.
    fn fill(&mut self) -> Result<(Vec<u8>, u32), EngineError> {
        let (_, end) = &self.spans[self.span];
        let mut cursor = self.reader.cursor(&self.from, end);
        let (mut body, mut count) = (Vec::new(), 0);
        let mut there = cursor.seek(&self.from)?;
        let mut next = end.clone();
        while there {
            if body.len() >= FRAME_BYTES {
                next = cursor.key().to_vec();
                break;
            }
            if !is_replica_local(cursor.key()) {
                put_part(&mut body, cursor.key());
                put_part(&mut body, cursor.value());
                count += 1;
            }
            there = cursor.next()?;
        }
        drop(cursor);
        self.from = next;
        Ok((body, count))
    }

    fn seal(&mut self, span: u8, pairs: u32, body: &[u8]) -> Bytes {
        let packed = lz4_flex::compress_prepend_size(body);
        let mut frame = BytesMut::with_capacity(HEADER + packed.len());
        frame.put_u8(VERSION);
        frame.put_u64(self.id.from.0);
        frame.put_u64(self.id.number);
        frame.put_u32(self.number);
        frame.put_u8(span);
        frame.put_u32(pairs);
        let crc = crc32c::crc32c_append(crc32c::crc32c(&frame), &packed);
        frame.put_u32(crc);
        frame.extend_from_slice(&packed);
        self.number += 1;
        frame.freeze()
    }
}

/// Keys of region 01 whose kind starts with `z` are the replica's own and never travel.
fn is_replica_local(key: &[u8]) -> bool {
    key.first() == Some(&0x01) && key.get(9) == Some(&b'z')
}

fn put_part(body: &mut Vec<u8>, part: &[u8]) {
    body.put_u32(part.len() as u32);
    body.extend_from_slice(part);
}

/// One frame, checked by itself.
struct Frame {
    id: SnapshotId,
    number: u32,
    span: u8,
    pairs: u32,
    body: Vec<u8>,
}

impl Frame {
    fn decode(bytes: &[u8]) -> Result<Self, FrameError> {
        if bytes.len() < HEADER + 4 || bytes[0] != VERSION {
            return Err(FrameError::Malformed("too short, or of an unknown version"));
        }
        let u64_at = |at: usize| bytes[at..at + 8].iter().fold(0, |n, b| n << 8 | u64::from(*b));
        let u32_at = |at: usize| bytes[at..at + 4].iter().fold(0, |n, b| n << 8 | u32::from(*b));
        let number = u32_at(17);
        let packed = &bytes[HEADER..];
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..HEADER - 4]), packed);
        if crc != u32_at(HEADER - 4) {
            return Err(FrameError::Checksum(number));
        }
        let unpacked = u32::from_le_bytes([packed[0], packed[1], packed[2], packed[3]]);
        if unpacked as usize > FRAME_BYTES_MAX {
            return Err(FrameError::Malformed("it unpacks to more than a frame may hold"));
        }
        let body = lz4_flex::decompress_size_prepended(packed)
            .map_err(|_| FrameError::Malformed("its content cannot be unpacked"))?;
        let id = SnapshotId { from: StoreId(u64_at(1)), number: u64_at(9) };
        Ok(Self { id, number, span: bytes[21], pairs: u32_at(22), body })
    }
}

/// Takes the first length-prefixed part off a frame's body.
fn take_part<'a>(body: &mut &'a [u8]) -> Result<&'a [u8], FrameError> {
    let short = FrameError::Malformed("a pair is cut short");
    let (length, rest) = body.split_first_chunk::<4>().ok_or_else(|| short.clone())?;
    let length = u32::from_be_bytes(*length) as usize;
    let (part, rest) = rest.split_at_checked(length).ok_or(short)?;
    *body = rest;
    Ok(part)
}

/// What a frame brought.
#[derive(Debug, PartialEq, Eq)]
pub enum Progress {
    /// These files are full: build them. More frames follow.
    More(Vec<SstFile>),
    /// The trailer matched: build these, and the snapshot is whole.
    Whole(Vec<SstFile>),
}

/// Checks the frames of one transfer and cuts their pairs into sorted files.
#[derive(Debug)]
pub struct Collector {
    id: SnapshotId,
    spans: [PhysicalSpan; 4],
    span: usize,
    open: SstFile,
    open_bytes: usize,
    number: u32,
    pairs: u64,
    checksum: u32,
}

impl Collector {
    /// Waits for the first frame of a transfer. The spans are those of the announced descriptor.
    #[must_use]
    pub fn new(id: SnapshotId, spans: [PhysicalSpan; 4]) -> Self {
        let open = SstFile { start: spans[0].0.clone(), end: Vec::new(), pairs: Vec::new() };
        Self { id, spans, span: 0, open, open_bytes: 0, number: 0, pairs: 0, checksum: 0 }
    }

    /// Takes the next frame.
    ///
    /// # Errors
    /// The transfer is broken: delete the files that were built, and report the failure.
    pub fn accept(&mut self, bytes: &[u8]) -> Result<Progress, FrameError> {
        let frame = Frame::decode(bytes)?;
        if frame.id != self.id || frame.number != self.number {
            return Err(FrameError::Order { expected: self.number, got: frame.number });
        }
        self.number += 1;
        let mut files = Vec::new();
        if frame.span == TRAILER_SPAN {
            self.check_trailer(&frame.body)?;
            self.enter(self.spans.len(), &mut files);
            return Ok(Progress::Whole(files));
        }
        let span = usize::from(frame.span);
        if span < self.span || span >= self.spans.len() {
            return Err(FrameError::Malformed("its span is out of order"));
        }
        self.enter(span, &mut files);
        self.checksum = crc32c::crc32c_append(self.checksum, &frame.body);
        self.pairs += u64::from(frame.pairs);
        self.take_pairs(&frame, &mut files)?;
        Ok(Progress::More(files))
    }

    fn take_pairs(&mut self, frame: &Frame, files: &mut Vec<SstFile>) -> Result<(), FrameError> {
        let mut body = &frame.body[..];
        let mut count = 0;
        while !body.is_empty() {
            let key = take_part(&mut body)?.to_vec();
            let value = Bytes::copy_from_slice(take_part(&mut body)?);
            let above = self.open.pairs.last().is_none_or(|(last, _)| *last < key);
            if !above || key < self.open.start || key >= self.spans[self.span].1 || is_replica_local(&key) {
                return Err(FrameError::Key);
            }
            if self.open_bytes >= FILE_BYTES {
                self.close(key.clone(), files);
            }
            self.open_bytes += key.len() + value.len();
            self.open.pairs.push((key, value));
            count += 1;
        }
        if count == frame.pairs { Ok(()) } else { Err(FrameError::Malformed("its count of pairs is wrong")) }
    }

    fn check_trailer(&self, body: &[u8]) -> Result<(), FrameError> {
        let mut expected = self.pairs.to_be_bytes().to_vec();
        expected.extend_from_slice(&self.checksum.to_be_bytes());
        if body == expected { Ok(()) } else { Err(FrameError::Trailer) }
    }

    /// Closes files until `span` is the present one; spans without pairs get an empty file, which empties them.
    fn enter(&mut self, span: usize, files: &mut Vec<SstFile>) {
        while self.span < span {
            self.close(self.spans[self.span].1.clone(), files);
            self.span += 1;
            if let Some((start, _)) = self.spans.get(self.span) {
                self.open.start.clone_from(start);
            }
        }
    }

    /// Ends the open file at `end` and opens the next one there.
    fn close(&mut self, end: Vec<u8>, files: &mut Vec<SstFile>) {
        let next = SstFile { start: end.clone(), end: Vec::new(), pairs: Vec::new() };
        let mut full = std::mem::replace(&mut self.open, next);
        full.end = end;
        self.open_bytes = 0;
        files.push(full);
    }
}

#[cfg(test)]
mod tests {
    use flotilla_storage::engine::{Engine, WriteBatch};
    use flotilla_storage::keys::{self, RangeRecord};
    use flotilla_storage::memory::MemoryEngine;
    use flotilla_types::{KeySpan, RangeId, Timestamp};

    use super::*;

    const RANGE: RangeId = RangeId(7);
    const ID: SnapshotId = SnapshotId { from: StoreId(1), number: 9 };

    fn span() -> KeySpan {
        KeySpan::new(flotilla_types::keys::user(b"b"), flotilla_types::keys::user(b"y")).unwrap()
    }

    fn spans() -> [PhysicalSpan; 4] {
        keys::spans(RANGE, &span())
    }

    /// A range with records, and with values of which some are as large as a frame.
    fn full_engine() -> MemoryEngine {
        let engine = MemoryEngine::new();
        let mut batch = WriteBatch::default();
        batch.put(keys::range_record(RANGE, RangeRecord::Applied), Bytes::from_static(b"applied"));
        batch.put(keys::range_record(RANGE, RangeRecord::ReplicaId), Bytes::from_static(b"my own"));
        for n in 0..40u32 {
            let key = flotilla_types::keys::user(format!("k{n:03}").as_bytes());
            let size = if n % 10 == 0 { FRAME_BYTES } else { 100_000 };
            batch.put(keys::version(&key, Timestamp::from_wall(u64::from(n))), vec![n as u8; size]);
        }
        batch.put(keys::version(&flotilla_types::keys::user(b"a"), Timestamp::ZERO), Bytes::from_static(b"not mine"));
        engine.write(&batch).unwrap();
        engine
    }

    fn frames(engine: &MemoryEngine) -> Vec<Bytes> {
        let snapshot = engine.snapshot();
        let mut writer = FrameWriter::new(snapshot.as_ref(), ID, spans());
        std::iter::from_fn(|| writer.next_frame().unwrap()).collect()
    }

    fn content(engine: &MemoryEngine) -> Vec<(Vec<u8>, Bytes)> {
        let mut pairs = Vec::new();
        for (start, end) in spans() {
            let mut cursor = engine.cursor(&start, &end);
            let mut there = cursor.seek(&start).unwrap();
            while there {
                pairs.push((cursor.key().to_vec(), Bytes::copy_from_slice(cursor.value())));
                there = cursor.next().unwrap();
            }
        }
        pairs
    }

    #[test]
    fn what_is_sent_replaces_all_that_the_receiver_held_and_nothing_else() {
        let sender = full_engine();
        let receiver = MemoryEngine::new();
        let mut old = WriteBatch::default();
        let outside = keys::version(&flotilla_types::keys::user(b"z"), Timestamp::ZERO);
        old.put(keys::version(&flotilla_types::keys::user(b"stale"), Timestamp::ZERO), Bytes::from_static(b"old"));
        old.put(outside.clone(), Bytes::from_static(b"a neighbour's"));
        receiver.write(&old).unwrap();

        let mut collector = Collector::new(ID, spans());
        let mut files = Vec::new();
        let mut whole = false;
        for frame in frames(&sender) {
            assert!(!whole, "nothing follows the trailer");
            match collector.accept(&frame).unwrap() {
                Progress::More(more) => files.extend(more),
                Progress::Whole(last) => {
                    files.extend(last);
                    whole = true;
                }
            }
        }
        assert!(whole);
        let names: Vec<_> = (0..files.len()).map(|n| format!("f{n}")).collect();
        files.iter().zip(&names).for_each(|(file, name)| receiver.build_sst(name, file).unwrap());
        receiver.flush().unwrap();
        receiver.ingest(&names).unwrap();

        let mut expected = content(&sender);
        expected.retain(|(key, _)| *key != keys::range_record(RANGE, RangeRecord::ReplicaId));
        assert_eq!(content(&receiver), expected);
        assert!(receiver.get(&outside).unwrap().is_some());
        let regions = |file: &SstFile| (file.start[0], file.pairs.iter().all(|(key, _)| key[0] == file.start[0]));
        assert!(files.iter().all(|file| regions(file).1), "no file reaches over two regions");
    }

    #[test]
    fn damaged_lost_doubled_and_foreign_frames_are_refused() {
        let all = frames(&full_engine());
        assert!(all.len() > 4);
        let fresh = || Collector::new(ID, spans());
        assert!(matches!(fresh().accept(&all[1]), Err(FrameError::Order { expected: 0, got: 1 })));
        let mut collector = fresh();
        collector.accept(&all[0]).unwrap();
        assert!(matches!(collector.accept(&all[0]), Err(FrameError::Order { .. })));
        let other = SnapshotId { number: 10, ..ID };
        assert!(matches!(Collector::new(other, spans()).accept(&all[0]), Err(FrameError::Order { .. })));
        for at in [0, 5, 20, 22, 26, 40] {
            let mut flipped = all[0].to_vec();
            flipped[at] ^= 1;
            assert!(fresh().accept(&flipped).is_err(), "byte {at}");
        }
        assert!((0..40).all(|cut| fresh().accept(&all[0][..cut]).is_err()));
    }

    #[test]
    fn a_trailer_that_comes_early_is_refused() {
        let all = frames(&full_engine());
        let empty = MemoryEngine::new();
        let snapshot = empty.snapshot();
        let mut writer = FrameWriter::new(snapshot.as_ref(), ID, spans());
        writer.number = 1;
        let early = writer.next_frame().unwrap().unwrap();
        let mut collector = Collector::new(ID, spans());
        collector.accept(&all[0]).unwrap();
        assert_eq!(collector.accept(&early), Err(FrameError::Trailer));
    }
}
