//! Writes. One range each; a range delete goes piece by piece.

use std::time::Duration;

use flotilla_types::{Command, Key, KeySpan, RangeDescriptor, Reply, RequestId, Timestamp, Write, WriteResult};

use crate::send::{Cut, Failed, Place};
use crate::{KvError, Router};

/// Keys that one piece of a range delete removes: bounds the entry in the log.
const PIECE_KEYS: u64 = 1000;

/// How long one call of a range delete goes on: its pieces carry the birth of the whole, and ranges do not know ids for ever.
const PIECES_FOR: Duration = Duration::from_secs(30);

/// The answer to a range delete.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeleteAnswer {
    /// How many keys were removed; `None` if an earlier try with the same id had done it.
    pub keys: Option<u64>,
    /// Where to go on if the span is not done.
    pub resume: Option<Key>,
    /// When the last piece was removed.
    pub timestamp: Timestamp,
}

impl Router {
    /// Writes, all or nothing; a batch may touch several ranges. The same id on every retry, also by the caller after `Ambiguous`, makes it take effect once.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn write(
        &self,
        id: RequestId,
        write: Write,
        deadline: Duration,
    ) -> Result<(WriteResult, Timestamp), KvError> {
        let Some(span) = write.span() else {
            return Err(KvError::Invalid { what: "a batch is empty: write at least one key".to_owned() });
        };
        if let Write::Batch { ops } = &write
            && !self.is_one_range(&span, deadline).await?
        {
            return Ok((WriteResult::Done, self.batch_over_ranges(id, ops, deadline).await?));
        }
        let cut = |owner: &RangeDescriptor| {
            if owner.span.covers(&span) {
                Cut::Ask(Command::Write { id, write: write.clone() })
            } else {
                Cut::Refuse(KvError::CrossesRanges { boundary: owner.span.end.clone() })
            }
        };
        let sent = self.send(&Place::Of(span.start.clone()), deadline, cut).await;
        let crosses = matches!(sent, Err(Failed::Kv(KvError::CrossesRanges { .. })));
        if let Write::Batch { ops } = &write
            && crosses
        {
            return Ok((WriteResult::Done, self.batch_over_ranges(id, ops, deadline).await?));
        }
        let (reply, _) = sent?;
        Ok((written(reply.reply)?, reply.timestamp))
    }

    /// Removes the keys of a span, at most `keys_max` of them (0 for all), range by range and piece by piece. Not atomic:
    /// after an error some pieces are done. Each piece has an id made of `id` and its first key, so that a
    /// retry of the whole with the same id finds the pieces that were done and goes on behind them. After half a minute, or
    /// close to the deadline, it answers with what was done and where to go on.
    ///
    /// # Errors
    /// See `KvError`; what it says holds for the piece that failed.
    pub async fn delete_range(
        &self,
        id: RequestId,
        span: KeySpan,
        keys_max: u64,
        deadline: Duration,
    ) -> Result<DeleteAnswer, KvError> {
        if span.start >= span.end {
            return Err(KvError::Invalid { what: format!("{span} is empty: its end must lie above its start") });
        }
        let began = self.shared.clock.mono();
        let half = began + (deadline.saturating_sub(began) / 2).min(PIECES_FOR);
        let mut removed = 0;
        let mut answer = DeleteAnswer { keys: None, resume: Some(span.start.clone()), timestamp: Timestamp::ZERO };
        while let Some(start) = answer.resume.take() {
            let left = if keys_max == 0 { u64::MAX } else { keys_max - removed };
            let late = answer.timestamp > Timestamp::ZERO && self.shared.clock.mono() >= half;
            if left == 0 || late {
                answer.resume = Some(start);
                break;
            }
            let rest = KeySpan { start, end: span.end.clone() };
            let (keys, next, timestamp) = self.delete_piece(id, &rest, left.min(PIECE_KEYS), deadline).await?;
            removed += keys;
            answer.keys = Some(removed);
            answer.timestamp = timestamp;
            answer.resume = Some(next).filter(|next| *next < span.end);
        }
        Ok(answer)
    }

    /// One piece: how many keys it removed, and where the next begins.
    async fn delete_piece(
        &self,
        id: RequestId,
        rest: &KeySpan,
        keys_max: u64,
        deadline: Duration,
    ) -> Result<(u64, Key, Timestamp), KvError> {
        let id = piece_id(id, &rest.start);
        let mut end = rest.end.clone();
        let cut = |owner: &RangeDescriptor| {
            end = rest.end.clone().min(owner.span.end.clone());
            let span = KeySpan { start: rest.start.clone(), end: end.clone() };
            Cut::Ask(Command::Write { id, write: Write::DeleteRange { span, keys_max } })
        };
        let (reply, _) = self.send(&Place::Of(rest.start.clone()), deadline, cut).await?;
        match written(reply.reply)? {
            WriteResult::Deleted { keys, resume } => Ok((keys, resume.unwrap_or(end), reply.timestamp)),
            _ => Err(strange()),
        }
    }

    /// Makes the addressing record of a range true: called when a range has a new descriptor or a new leader.
    ///
    /// # Errors
    /// See `KvError`; doing it again does no harm.
    pub async fn keep_meta(&self, descriptor: RangeDescriptor, deadline: Duration) -> Result<(), KvError> {
        let Some(key) = flotilla_types::keys::meta_record(&descriptor.span.start, &descriptor.span.end) else {
            return Ok(());
        };
        let id = self.request_id()?;
        self.write(id, Write::PutMeta { key, descriptor }, deadline).await.map(drop)
    }
}

fn written(reply: Reply) -> Result<WriteResult, KvError> {
    match reply {
        Reply::Write(result) => Ok(result),
        _ => Err(strange()),
    }
}

fn strange() -> KvError {
    KvError::Ambiguous { why: "a write was answered by something else".to_owned() }
}

/// The id of the piece of a range delete that begins at `start`: the birth of the whole, then 80 bits of a hash (FNV-1a,
/// 128 bits wide) over the rest of its id and the key. Must never change: a retry may come through a node of
/// another version.
fn piece_id(whole: RequestId, start: &Key) -> RequestId {
    const OFFSET: u128 = 0x6c62_272e_07bb_0142_62b8_2175_6295_c58d;
    const PRIME: u128 = 0x0000_0000_0100_0000_0000_0000_0000_013b;
    let bytes = whole.0[6..].iter().chain(start.as_bytes());
    let hash = bytes.fold(OFFSET, |hash, byte| (hash ^ u128::from(*byte)).wrapping_mul(PRIME));
    let mut piece = whole.0;
    piece[6..].copy_from_slice(&hash.to_be_bytes()[6..]);
    RequestId(piece)
}

#[cfg(test)]
mod tests {
    use flotilla_types::keys;

    use super::*;

    #[test]
    fn pieces_have_ids_of_their_own_and_keep_the_birth() {
        let whole = RequestId::new(1_790_000_000_123, 42, 7);
        let (a, b) = (piece_id(whole, &keys::user(b"a")), piece_id(whole, &keys::user(b"b")));
        assert_ne!(a, b);
        assert_ne!(a, piece_id(RequestId::new(1_790_000_000_123, 42, 8), &keys::user(b"a")));
        assert_eq!(a.born_ms(), whole.born_ms());
        assert_eq!(a, piece_id(whole, &keys::user(b"a")));
        assert_eq!(a.to_string(), "01a0c4506c7b33811097e96122403901", "the same in all versions");
    }
}
