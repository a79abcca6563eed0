//! The door: what is checked before a request is looked at any further. Sizes and shapes, the caller's deadline, and
//! whether there is room.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use flotilla_kv::Router;
use flotilla_proto::reason::Reason;
use flotilla_types::{Key, KeySpan, Limits, RequestId, keys};
use metrics::{Gauge, Histogram};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::refusal::{overloaded, refusal};
use super::site::Site;

/// What is kept of a caller's deadline for the answer's way, at most.
const WAY_BACK: Duration = Duration::from_millis(250);
/// When a node that is full may be asked again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// The room of writes is counted in pieces of so many bytes.
const UNIT: usize = 1 << 10;

/// Settings of the door.
#[derive(Debug, Clone, Copy)]
pub struct DoorConfig {
    /// Sizes.
    pub limits: Limits,
    /// Requests that may be in flight.
    pub in_flight_max: usize,
    /// Bytes of keys and values that writes in flight may hold in memory together. At least the largest request.
    pub in_flight_bytes_max: usize,
    /// The deadline of a request that names none.
    pub timeout: Duration,
}

impl Default for DoorConfig {
    fn default() -> Self {
        Self {
            limits: Limits::default(),
            in_flight_max: 4096,
            in_flight_bytes_max: 256 << 20,
            timeout: Duration::from_secs(10),
        }
    }
}

/// See the module's page.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) site: Arc<dyn Site>,
    pub(crate) config: DoorConfig,
    room: Arc<Semaphore>,
    /// In units of `UNIT` bytes.
    bytes: Arc<Semaphore>,
    meters: Arc<Meters>,
}

/// A request that was let in. Its room is given back when it is dropped.
pub(crate) struct Entered {
    /// The way to the data.
    pub(crate) router: Router,
    /// In the monotonic time of the router's clock.
    pub(crate) deadline: Duration,
    _room: OwnedSemaphorePermit,
    _timed: Timed,
}

impl Door {
    pub(crate) fn new(site: Arc<dyn Site>, config: DoorConfig) -> Self {
        let units = config.in_flight_bytes_max.max(config.limits.request_bytes).div_ceil(UNIT);
        Self {
            site,
            config,
            room: Arc::new(Semaphore::new(config.in_flight_max)),
            bytes: Arc::new(Semaphore::new(units)),
            meters: Arc::new(Meters::new()),
        }
    }

    /// Lets a request in, if the node serves and has room.
    pub(crate) fn enter(&self, method: Method, metadata: &MetadataMap) -> Result<Entered, Status> {
        let Some(router) = self.site.router() else {
            return Err(match self.site.identity() {
                None => refusal(
                    Reason::NotInitialized,
                    "this node belongs to no cluster yet: run `flotilla init` once, on one node of a new cluster",
                ),
                Some(_) => not_serving(&self.site.not_serving().unwrap_or_else(|| "it is starting".to_owned())),
            });
        };
        let Ok(room) = Arc::clone(&self.room).try_acquire_owned() else {
            return Err(overloaded("the node's requests", RETRY_AFTER));
        };
        let deadline = router.clock().mono() + self.timeout(metadata);
        let timed = Timed::new(&self.meters, method);
        Ok(Entered { router, deadline, _room: room, _timed: timed })
    }

    /// The caller's deadline as gRPC sends it, or the node's. A little of it is kept for the way back: an error that says
    /// what is wrong is worth more than one that says that time is over.
    pub(crate) fn timeout(&self, metadata: &MetadataMap) -> Duration {
        let given = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
        given.map_or(self.config.timeout, |given| given - (given / 10).min(WAY_BACK))
    }

    /// An application's key.
    pub(crate) fn key(&self, body: &Bytes) -> Result<Key, Status> {
        let max = self.config.limits.key_bytes;
        if body.len() > max {
            let what = format!("the key has {} bytes and at most {max} are allowed", body.len());
            return Err(refusal(Reason::TooLarge, &what));
        }
        Ok(keys::user(body))
    }

    /// An application's value.
    pub(crate) fn value(&self, value: &Bytes) -> Result<(), Status> {
        let max = self.config.limits.value_bytes;
        if value.len() > max {
            let what = format!("the value has {} bytes and at most {max} are allowed", value.len());
            return Err(refusal(Reason::TooLarge, &what));
        }
        Ok(())
    }

    /// All keys and values of a write together. What it returns holds their room until the write is answered.
    pub(crate) fn request(&self, bytes: usize) -> Result<OwnedSemaphorePermit, Status> {
        let max = self.config.limits.request_bytes;
        if bytes > max {
            let what = format!("the request has {bytes} bytes of keys and values and at most {max} are allowed");
            return Err(refusal(Reason::TooLarge, &what));
        }
        let units = u32::try_from(bytes.div_ceil(UNIT)).unwrap_or(u32::MAX);
        Arc::clone(&self.bytes)
            .try_acquire_many_owned(units)
            .map_err(|_| overloaded("the node's memory for writes", RETRY_AFTER))
    }

    /// How many keys a request names that is done in one step.
    pub(crate) fn keys(&self, count: usize) -> Result<(), Status> {
        let max = self.config.limits.request_keys;
        if count <= max {
            return Ok(());
        }
        let what = format!("the request names {count} keys and at most {max} are allowed: several requests, or Kv.Txn");
        Err(refusal(Reason::TooLarge, &what))
    }

    /// A span of an application's keys; without an end it reaches to the last of them.
    pub(crate) fn span(&self, start: &Bytes, end: Option<&Bytes>) -> Result<KeySpan, Status> {
        let start = self.key(start)?;
        let end = end.map_or_else(|| Ok(keys::user_span().end), |end| self.key(end))?;
        KeySpan::new(start, end).map_err(|_| {
            refusal(
                Reason::Invalid,
                "the span is empty: its end must lie above its start; leave the end out for no bound",
            )
        })
    }
}

impl Entered {
    /// Waits until what comes now comes after the answer that had this timestamp, as seen from any node: every message between
    /// nodes carries the sender's clock.
    pub(crate) async fn after(&self, token: Option<flotilla_proto::v1::Timestamp>) -> Result<(), Status> {
        let Some(token) = token else { return Ok(()) };
        self.router.reach(token.into(), self.deadline).await.map_err(|error| super::refusal::of_kv(&error))
    }

    /// The caller's request id, or a fresh one.
    pub(crate) fn request_id(&self, given: Option<&Bytes>) -> Result<RequestId, Status> {
        match given {
            Some(bytes) => RequestId::try_from(&bytes[..])
                .map_err(|error| refusal(Reason::Invalid, &format!("request_id: {error}"))),
            None => self.router.request_id().map_err(|error| super::refusal::of_kv(&error)),
        }
    }
}

/// What is asked, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Method {
    Get,
    Put,
    Delete,
    DeleteRange,
    Scan,
    CompareAndSwap,
    Batch,
    Increment,
    Transact,
    Txn,
    Outcome,
    Admin,
}

impl Method {
    const ALL: [(Self, &'static str); 12] = [
        (Self::Get, "get"),
        (Self::Put, "put"),
        (Self::Delete, "delete"),
        (Self::DeleteRange, "delete_range"),
        (Self::Scan, "scan"),
        (Self::CompareAndSwap, "compare_and_swap"),
        (Self::Batch, "batch"),
        (Self::Increment, "increment"),
        (Self::Transact, "transact"),
        (Self::Txn, "txn"),
        (Self::Outcome, "outcome"),
        (Self::Admin, "admin"),
    ];
}

/// How long requests take from the door to the answer, by method; looked up once, since every request counts.
struct Meters {
    seconds: [Histogram; Method::ALL.len()],
    in_flight: Gauge,
}

impl Meters {
    fn new() -> Self {
        let seconds = Method::ALL.map(|(_, name)| metrics::histogram!("flotilla_request_seconds", "method" => name));
        Self { seconds, in_flight: metrics::gauge!("flotilla_requests_in_flight") }
    }
}

/// Counts a request while it lives.
struct Timed {
    meters: Arc<Meters>,
    method: Method,
    since: Instant,
}

impl Timed {
    fn new(meters: &Arc<Meters>, method: Method) -> Self {
        meters.in_flight.increment(1);
        Self { meters: Arc::clone(meters), method, since: Instant::now() }
    }
}

impl Drop for Timed {
    fn drop(&mut self) {
        self.meters.in_flight.decrement(1);
        self.meters.seconds[self.method as usize].record(self.since.elapsed().as_secs_f64());
    }
}

/// The node is there and does not serve.
pub(crate) fn not_serving(why: &str) -> Status {
    refusal(Reason::NodeNotServing, &format!("this node does not serve at this moment: {why}"))
}

/// `grpc-timeout`: up to eight digits and a unit.
fn parse_timeout(text: &str) -> Option<Duration> {
    let (digits, unit) = text.split_at_checked(text.len().checked_sub(1)?)?;
    if digits.is_empty() || digits.len() > 8 {
        return None;
    }
    let count: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(count * 3600),
        "M" => Duration::from_secs(count * 60),
        "S" => Duration::from_secs(count),
        "m" => Duration::from_millis(count),
        "u" => Duration::from_micros(count),
        "n" => Duration::from_nanos(count),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timeouts_are_read_as_grpc_writes_them() {
        assert_eq!(parse_timeout("250m"), Some(Duration::from_millis(250)));
        assert_eq!(parse_timeout("3S"), Some(Duration::from_secs(3)));
        assert_eq!(parse_timeout("99999999H"), Some(Duration::from_secs(99_999_999 * 3600)));
        for wrong in ["", "S", "12", "123456789S", "-1S", "1x", "ß"] {
            assert_eq!(parse_timeout(wrong), None, "{wrong}");
        }
    }
}
