//! The door: what is checked before a request is looked at any further. Sizes and shapes, the caller's deadline, and
//! whether there is room.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::Router;
use flotilla_proto::reason::Reason;
use flotilla_types::{Key, KeySpan, Limits, RequestId, keys};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tonic::Status;
use tonic::metadata::MetadataMap;

use super::refusal::{overloaded, refusal};
use super::site::Site;

/// When a node that is full may be asked again.
const RETRY_AFTER: Duration = Duration::from_millis(100);

/// Settings of the door.
#[derive(Debug, Clone, Copy)]
pub struct DoorConfig {
    /// Sizes.
    pub limits: Limits,
    /// Requests that may be in flight: each holds its message in memory until it is answered.
    pub in_flight_max: usize,
    /// The deadline of a request that names none.
    pub timeout: Duration,
}

impl Default for DoorConfig {
    fn default() -> Self {
        Self { limits: Limits::default(), in_flight_max: 4096, timeout: Duration::from_secs(10) }
    }
}

/// See the module's page.
#[derive(Clone)]
pub(crate) struct Door {
    pub(crate) site: Arc<dyn Site>,
    pub(crate) config: DoorConfig,
    room: Arc<Semaphore>,
}

/// A request that was let in. Its room is given back when it is dropped.
pub(crate) struct Entered {
    /// The way to the data.
    pub(crate) router: Router,
    /// In the monotonic time of the router's clock.
    pub(crate) deadline: Duration,
    _room: OwnedSemaphorePermit,
}

impl Door {
    pub(crate) fn new(site: Arc<dyn Site>, config: DoorConfig) -> Self {
        Self { site, config, room: Arc::new(Semaphore::new(config.in_flight_max)) }
    }

    /// Lets a request in, if the node serves and has room.
    pub(crate) fn enter(&self, metadata: &MetadataMap) -> Result<Entered, Status> {
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
            metrics::counter!("flotilla_requests_refused_total").increment(1);
            return Err(overloaded("the node's requests", RETRY_AFTER));
        };
        let deadline = router.clock().mono() + self.timeout(metadata);
        Ok(Entered { router, deadline, _room: room })
    }

    /// The caller's deadline as gRPC sends it, or the node's.
    pub(crate) fn timeout(&self, metadata: &MetadataMap) -> Duration {
        let given = metadata.get("grpc-timeout").and_then(|value| value.to_str().ok()).and_then(parse_timeout);
        given.unwrap_or(self.config.timeout)
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

    /// All keys and values of a request together.
    pub(crate) fn request(&self, bytes: usize) -> Result<(), Status> {
        let max = self.config.limits.request_bytes;
        if bytes > max {
            let what = format!("the request has {bytes} bytes of keys and values and at most {max} are allowed");
            return Err(refusal(Reason::TooLarge, &what));
        }
        Ok(())
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
    /// The caller's request id, or a fresh one.
    pub(crate) fn request_id(&self, given: Option<&Bytes>) -> Result<RequestId, Status> {
        match given {
            Some(bytes) => RequestId::try_from(&bytes[..])
                .map_err(|error| refusal(Reason::Invalid, &format!("request_id: {error}"))),
            None => self.router.request_id().map_err(|error| super::refusal::of_kv(&error)),
        }
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
