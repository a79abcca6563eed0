//! The nodes that a client knows, and which of them to ask.
//!
//! Any node answers any request, so load is spread in turn over all that work. A node that failed is passed over for a
//! while that doubles with each failure; when all failed, the one whose while ends first is asked.

use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::{Duration, Instant};

use tonic::transport::{Channel, Endpoint};

use crate::{Error, Options};

/// First while in which a failed node is passed over. A node that comes back is found again soon.
const PASS_OVER_MIN: Duration = Duration::from_millis(100);
/// Longest while.
const PASS_OVER_MAX: Duration = Duration::from_secs(3);
/// A silent connection is pinged after this, and given up after the same again.
const KEEPALIVE: Duration = Duration::from_secs(3);
/// Room for some large values under way on one stream, and on one connection.
const WINDOW_STREAM: u32 = 4 << 20;
const WINDOW_CONNECTION: u32 = 32 << 20;

/// One node and the connections to it.
pub(crate) struct Node {
    /// host:port.
    pub(crate) address: String,
    channels: Vec<Channel>,
    turn: AtomicUsize,
    failures: AtomicU32,
    /// Milliseconds since the pool began, before which the node is passed over.
    passed_over_until: AtomicU64,
}

impl Node {
    fn new(address: &str, options: &Options) -> Result<Self, Error> {
        let refused = || Error::BadEndpoint { endpoint: address.to_owned() };
        let bare = address.strip_prefix("http://").unwrap_or(address).trim_end_matches('/');
        let port = bare.rsplit_once(':').filter(|(host, _)| !host.is_empty()).map(|(_, port)| port);
        if port.is_none_or(|port| port.parse::<u16>().is_err()) {
            return Err(refused());
        }
        let endpoint = Endpoint::from_shared(format!("http://{bare}"))
            .map_err(|_| refused())?
            .connect_timeout(options.connect_timeout)
            .tcp_nodelay(true)
            .initial_stream_window_size(WINDOW_STREAM)
            .initial_connection_window_size(WINDOW_CONNECTION)
            .http2_keep_alive_interval(KEEPALIVE)
            .keep_alive_timeout(KEEPALIVE)
            .keep_alive_while_idle(true);
        let channels = (0..options.connections_per_node.max(1)).map(|_| endpoint.connect_lazy()).collect();
        Ok(Self {
            address: bare.to_owned(),
            channels,
            turn: AtomicUsize::new(0),
            failures: AtomicU32::new(0),
            passed_over_until: AtomicU64::new(0),
        })
    }

    /// A connection, made when it is first used and again when it broke.
    pub(crate) fn channel(&self) -> Channel {
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        self.channels[turn % self.channels.len()].clone()
    }

    /// The node answered.
    pub(crate) fn works(&self) {
        // Looked at before it is written, so that calls in parallel do not fight for the cache line.
        if self.failures.load(Ordering::Relaxed) > 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.passed_over_until.store(0, Ordering::Relaxed);
        }
    }
}

/// The nodes of one client.
pub(crate) struct Pool {
    options: Options,
    began: Instant,
    nodes: RwLock<Vec<Arc<Node>>>,
    turn: AtomicUsize,
    /// The first address that was given: whom `init` is for.
    first: Arc<Node>,
}

impl Pool {
    /// The given nodes, at least one.
    pub(crate) fn new(addresses: &[String], options: &Options) -> Result<Self, Error> {
        let mut nodes: Vec<Arc<Node>> = Vec::new();
        for address in addresses {
            let node = Node::new(address.trim(), options)?;
            if nodes.iter().all(|known| known.address != node.address) {
                nodes.push(Arc::new(node));
            }
        }
        let first = nodes.first().ok_or(Error::BadEndpoint { endpoint: String::new() })?.clone();
        // Clients that start together shall not all begin with the same node.
        let turn = AtomicUsize::new(rand::random_range(0..nodes.len()));
        Ok(Self { options: options.clone(), began: Instant::now(), nodes: RwLock::new(nodes), turn, first })
    }

    /// The first address that was given.
    pub(crate) fn first(&self) -> Arc<Node> {
        self.first.clone()
    }

    /// How many nodes are known.
    pub(crate) fn len(&self) -> usize {
        self.read().len()
    }

    /// Takes in an address that the cluster named. One that makes no sense is left out: the given ones still serve.
    pub(crate) fn learn(&self, address: &str) {
        if self.read().iter().any(|node| node.address == address) {
            return;
        }
        if let Ok(node) = Node::new(address, &self.options) {
            let mut nodes = self.nodes.write().unwrap_or_else(PoisonError::into_inner);
            if nodes.iter().all(|known| known.address != node.address) {
                nodes.push(Arc::new(node));
            }
        }
    }

    /// The node at an address that the cluster named.
    ///
    /// # Errors
    /// It is none.
    pub(crate) fn at(&self, address: &str) -> Result<Arc<Node>, Error> {
        match self.read().iter().find(|node| node.address == address) {
            Some(node) => Ok(Arc::clone(node)),
            None => Node::new(address, &self.options).map(Arc::new),
        }
    }

    /// Whom to ask next, preferably none of `tried`.
    pub(crate) fn pick(&self, tried: &[Arc<Node>]) -> Arc<Node> {
        let nodes = self.read();
        let now = self.now_ms();
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let in_turn = || (0..nodes.len()).map(|i| &nodes[(turn + i) % nodes.len()]);
        let untried = |node: &&Arc<Node>| tried.iter().all(|other| !Arc::ptr_eq(node, other));
        let until = |node: &&Arc<Node>| node.passed_over_until.load(Ordering::Relaxed);
        let found = in_turn()
            .find(|node| until(node) <= now && untried(node))
            .or_else(|| in_turn().filter(untried).min_by_key(until))
            .or_else(|| in_turn().min_by_key(until));
        found.unwrap_or(&self.first).clone()
    }

    /// The node failed: others are asked for a while.
    pub(crate) fn failed(&self, node: &Node) {
        let failures = node.failures.fetch_add(1, Ordering::Relaxed).min(8);
        let pause = (PASS_OVER_MIN * (1 << failures)).min(PASS_OVER_MAX);
        let until = self.now_ms() + u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
        node.passed_over_until.store(until, Ordering::Relaxed);
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Vec<Arc<Node>>> {
        self.nodes.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn now_ms(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(addresses: &[&str]) -> Result<Pool, Error> {
        let addresses: Vec<String> = addresses.iter().map(|a| (*a).to_owned()).collect();
        Pool::new(&addresses, &Options::default())
    }

    #[tokio::test]
    async fn load_is_spread_and_failed_nodes_are_passed_over() {
        let pool = pool(&["a:1", "b:1", "a:1"]).unwrap();
        pool.learn("c:1");
        pool.learn("c:1");
        assert_eq!(pool.len(), 3);
        let mut seen: Vec<_> = (0..3).map(|_| pool.pick(&[]).address.clone()).collect();
        seen.sort();
        assert_eq!(seen, ["a:1", "b:1", "c:1"]);

        let bad = pool.pick(&[]);
        pool.failed(&bad);
        assert!((0..9).all(|_| pool.pick(&[]).address != bad.address));
        bad.works();
        assert!((0..9).any(|_| pool.pick(&[]).address == bad.address));
    }

    #[tokio::test]
    async fn when_all_were_tried_somebody_is_asked_again() {
        let pool = pool(&["a:1"]).unwrap();
        let only = pool.pick(&[]);
        pool.failed(&only);
        assert!(Arc::ptr_eq(&pool.pick(std::slice::from_ref(&only)), &only));
    }

    #[tokio::test]
    async fn what_is_no_address_is_refused() {
        for bad in ["", "nowhere", ":1", "host:port", "host:99999"] {
            assert!(matches!(pool(&[bad]), Err(Error::BadEndpoint { .. })), "{bad}");
        }
        assert!(pool(&[]).is_err());
        assert!(pool(&["http://[::1]:26257/"]).is_ok());
    }
}
