//! From a key to its range: cache, then the record in meta2 (by way of meta1 and the root), which goes into the cache.

use std::sync::Arc;
use std::time::Duration;

use flotilla_types::{Command, Generation, Key, KeySpan, RangeDescriptor, RangeId, Read, ReadAt, Reply, Row, keys};
use futures::FutureExt;
use futures::future::BoxFuture;

use crate::send::{Cut, Place};
use crate::{KvError, Router};

/// Records read in one piece when many ranges are listed.
const PAGE: u64 = 512;
/// How long a hole in a listing is waited for: by then the leader of what is missing has written its record, if it can.
const HOLE_PATIENCE: Duration = Duration::from_secs(2);
const HOLE_PAUSE: Duration = Duration::from_millis(50);

impl Router {
    /// The range at a place, from the cache or the records.
    pub(crate) async fn find(&self, place: &Place, deadline: Duration) -> Result<Arc<RangeDescriptor>, KvError> {
        let cached = match place {
            Place::Of(key) => self.shared.cache.owner(key),
            Place::Below(end) => self.shared.cache.owner_below(end),
        };
        match cached {
            Some(found) => Ok(found),
            None => Ok(self.shared.cache.insert(self.read_record(place.clone(), deadline).await?)),
        }
    }

    /// The owner of a key as its addressing record says now, read where the record lives. Records may lag behind a
    /// split; they never run ahead.
    ///
    /// # Errors
    /// The record cannot be read.
    pub async fn owner(&self, key: &Key, deadline: Duration) -> Result<RangeDescriptor, KvError> {
        self.read_record(Place::Of(key.clone()), deadline).await
    }

    /// The ranges that overlap a span, in key order, as their records say now. Records lag a moment behind a split: a
    /// listing with a hole is read again, and given as it is if the hole stays.
    ///
    /// # Errors
    /// A record cannot be read.
    pub async fn ranges(&self, span: &KeySpan, deadline: Duration) -> Result<Vec<RangeDescriptor>, KvError> {
        let patience = deadline.min(self.shared.clock.mono() + HOLE_PATIENCE);
        loop {
            let found = self.list(span, deadline).await?;
            if is_whole(&found, span) || self.shared.clock.mono() >= patience {
                return Ok(found);
            }
            self.pause(HOLE_PAUSE, patience).await;
        }
    }

    async fn list(&self, span: &KeySpan, deadline: Duration) -> Result<Vec<RangeDescriptor>, KvError> {
        let mut found: Vec<RangeDescriptor> = Vec::new();
        let mut at = span.start.clone();
        while at < span.end {
            let page = match keys::meta_lookup(&at) {
                None => vec![self.root(None).await?],
                Some(records) => self.page(&records, PAGE, deadline).await?,
            };
            let before = at.clone();
            for descriptor in page {
                at = at.max(descriptor.span.end.clone());
                if descriptor.span.start >= span.end {
                    continue;
                }
                match found.last_mut() {
                    // The record of a parent that was cut, not overwritten yet, behind those of its parts.
                    Some(last) if last.span.overlaps(&descriptor.span) && last.generation > descriptor.generation => {}
                    Some(last) if last.span.overlaps(&descriptor.span) => *last = descriptor,
                    _ => found.push(descriptor),
                }
            }
            if at == before {
                let why = format!("no record names the owner of {at}");
                return Err(KvError::Unavailable { range: None, why });
            }
        }
        Ok(found)
    }

    /// The range with an id.
    ///
    /// # Errors
    /// There is none, or the records cannot be read.
    pub async fn range(&self, range: RangeId, deadline: Duration) -> Result<RangeDescriptor, KvError> {
        if let Some(found) = self.shared.cache.by_id(range) {
            return self.owner(&found.span.start, deadline).await;
        }
        let all = self.ranges(&KeySpan::ALL, deadline).await?;
        all.into_iter().find(|found| found.range == range).ok_or(KvError::NoSuchRange { range })
    }

    /// Boxed, since the records are found by the loop that looks for records.
    fn read_record(&self, place: Place, deadline: Duration) -> BoxFuture<'_, Result<RangeDescriptor, KvError>> {
        async move {
            let records = match &place {
                Place::Of(key) => keys::meta_lookup(key),
                Place::Below(end) => lookup_below(end),
            };
            let Some(records) = records else { return self.root(self.shared.cache.stale_root()).await };
            let found = self.page(&records, 1, deadline).await?.into_iter().next();
            let holds = |found: &RangeDescriptor| match &place {
                Place::Of(key) => found.span.contains(key),
                Place::Below(end) => found.span.start < *end && *end <= found.span.end,
            };
            found.filter(holds).ok_or_else(|| KvError::Unavailable {
                range: None,
                why: format!("no record names the owner of {place:?}"),
            })
        }
        .boxed()
    }

    /// The next records of a span: at least one unless there is none.
    async fn page(&self, records: &KeySpan, max: u64, deadline: Duration) -> Result<Vec<RangeDescriptor>, KvError> {
        let mut start = records.start.clone();
        loop {
            let place = Place::Of(start.clone());
            let read = |owner: &RangeDescriptor| {
                let span = KeySpan { start: start.clone(), end: records.end.clone().min(owner.span.end.clone()) };
                let read = Read::Scan { span, reverse: false, rows_max: max, bytes_max: 1 << 20 };
                Cut::Ask(Command::Read { at: ReadAt::Leaseholder, read })
            };
            let (reply, owner) = self.send(&place, deadline, read).await?;
            let Reply::Scan(result) = reply.reply else {
                return Err(KvError::Unavailable { range: None, why: "a scan was answered by something else".into() });
            };
            if !result.rows.is_empty() {
                return result.rows.iter().map(decode).collect();
            }
            start = owner.span.end.clone();
            if start >= records.end {
                return Ok(Vec::new());
            }
        }
    }

    async fn root(&self, stale: Option<Generation>) -> Result<RangeDescriptor, KvError> {
        let found = self.shared.transport.root(stale).await;
        found.map_err(|why| KvError::Unavailable { range: None, why: format!("the first range is not known: {why}") })
    }
}

/// Where the record of the owner of the keys right below `end` lies. `None` if that is the range of meta1 itself.
fn lookup_below(end: &Key) -> Option<KeySpan> {
    let level = match end {
        end if *end <= keys::META2 => return None,
        end if *end <= keys::SYSTEM => 0x01,
        _ => 0x02,
    };
    let start = Key::new([&[level], end.as_bytes()].concat());
    Some(KeySpan { start, end: Key::new(vec![level + 1]) })
}

fn decode(row: &Row) -> Result<RangeDescriptor, KvError> {
    let decoded = RangeDescriptor::decode(&row.value);
    decoded.map_err(|error| KvError::Unavailable { range: None, why: format!("the record {}: {error}", row.key) })
}

/// Whether descriptors in key order leave nothing of a span out.
fn is_whole(found: &[RangeDescriptor], span: &KeySpan) -> bool {
    let starts = found.first().is_some_and(|first| first.span.start <= span.start);
    let ends = found.last().is_some_and(|last| last.span.end >= span.end);
    starts && ends && found.windows(2).all(|pair| pair[0].span.end == pair[1].span.start)
}
