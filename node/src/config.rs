//! Settings of a node: what the command line gives, and what it becomes once it was found to make sense.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use bytesize::ByteSize;
use clap::{Args, ValueEnum};
use flotilla_kv::TxnConfig;
use flotilla_range::gc::GcConfig;
use flotilla_range::liveness::LivenessConfig;
use flotilla_storage::writer::LogPriority;
use flotilla_types::{Limits, Locality};
use thiserror::Error;

use crate::rpc::DoorConfig;

/// What support must outlast beyond three heartbeats and the clocks' offset: a round trip and two slow syncs (leases,
/// section 8).
const SUPPORT_MARGIN: Duration = Duration::from_millis(200);
/// Support shorter than this costs leases at every pause; longer makes fail-over slow without need.
const SUPPORT_RANGE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(10));
/// Four times as long as a client may send a request again (docs/durability.md, "Requests take effect once").
const GC_TTL_MIN: Duration = Duration::from_secs(240);
/// The engine needs room for its indexes and one working set of blocks.
const CACHE_MIN: u64 = 8 << 20;

/// Options of `flotilla start`. Each may also be given as an environment variable FLOTILLA_<NAME>.
#[derive(Debug, Clone, Args)]
pub struct StartArgs {
    /// Directory of the store: an empty one, or the one that this node used before.
    #[arg(long, env = "FLOTILLA_STORE", value_name = "DIR")]
    pub store: PathBuf,
    /// Where clients connect.
    #[arg(long, env = "FLOTILLA_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:26257")]
    pub listen: String,
    /// How clients reach this node, if not by the address it listens on.
    #[arg(long, env = "FLOTILLA_ADVERTISE", value_name = "ADDR")]
    pub advertise: Option<String>,
    /// Where other nodes connect; loopback unless said otherwise, since nobody proves who they are until TLS is there.
    #[arg(long, env = "FLOTILLA_PEER_LISTEN", value_name = "ADDR", default_value = "127.0.0.1:26258")]
    pub peer_listen: String,
    /// How other nodes reach this one, if not by the address it listens on.
    #[arg(long, env = "FLOTILLA_PEER_ADVERTISE", value_name = "ADDR")]
    pub peer_advertise: Option<String>,
    /// Where /metrics and /healthz are served.
    #[arg(long, env = "FLOTILLA_HTTP", value_name = "ADDR", default_value = "127.0.0.1:26280")]
    pub http: String,
    /// Peer addresses of some nodes, comma-separated; this one may be among them. Not needed again after the first start.
    #[arg(long, env = "FLOTILLA_JOIN", value_name = "ADDRS", value_delimiter = ',')]
    pub join: Vec<String>,
    /// Where this node stands, largest failure domain first: region=eu,dc=eu-1,rack=7.
    #[arg(long, env = "FLOTILLA_LOCALITY", value_name = "TIERS", default_value = "")]
    pub locality: Locality,
    /// Memory for the engine's blocks.
    #[arg(long, env = "FLOTILLA_CACHE", value_name = "SIZE", default_value = "256MiB")]
    pub cache: ByteSize,
    /// Disk space kept free for hard times. Left out: a share of the disk.
    #[arg(long, env = "FLOTILLA_DISK_RESERVE", value_name = "SIZE")]
    pub disk_reserve: Option<ByteSize>,
    /// For how long stores support each other without hearing from each other: fail-over takes about as long.
    #[arg(long, env = "FLOTILLA_SUPPORT_DURATION", value_name = "TIME", default_value = "2500ms", value_parser = humantime::parse_duration)]
    pub support_duration: Duration,
    /// How often stores tell each other that they live.
    #[arg(long, env = "FLOTILLA_HEARTBEAT_INTERVAL", value_name = "TIME", default_value = "500ms", value_parser = humantime::parse_duration)]
    pub heartbeat_interval: Duration,
    /// By how much clocks of the cluster may differ; the same on all nodes.
    #[arg(long, env = "FLOTILLA_MAX_OFFSET", value_name = "TIME", default_value = "250ms", value_parser = humantime::parse_duration)]
    pub max_offset: Duration,
    /// After how long without a word a node's replicas are replaced.
    #[arg(long, env = "FLOTILLA_DEAD_AFTER", value_name = "TIME", default_value = "5m", value_parser = humantime::parse_duration)]
    pub dead_after: Duration,
    /// How often the replicas of each range are compared with each other; 0s: never.
    #[arg(long, env = "FLOTILLA_CHECK_INTERVAL", value_name = "TIME", default_value = "24h", value_parser = humantime::parse_duration)]
    pub check_interval: Duration,
    /// For how long a version can be read after it was overwritten or deleted; the same on all nodes.
    #[arg(long, env = "FLOTILLA_GC_TTL", value_name = "TIME", default_value = "4h", value_parser = humantime::parse_duration)]
    pub gc_ttl: Duration,
    /// How often a range's leader looks whether there are enough old versions to let them go.
    #[arg(long, env = "FLOTILLA_GC_INTERVAL", value_name = "TIME", default_value = "10m", value_parser = humantime::parse_duration)]
    pub gc_interval: Duration,
    /// Keys that one transaction may lock.
    #[arg(long, env = "FLOTILLA_TXN_LOCKS_MAX", value_name = "COUNT", default_value_t = TxnConfig::default().locks_max)]
    pub txn_locks_max: usize,
    /// Keys and values that one transaction may write.
    #[arg(long, env = "FLOTILLA_TXN_BYTES_MAX", value_name = "SIZE", default_value = "64MiB")]
    pub txn_bytes_max: ByteSize,
    /// Whether the log writer goes before all other threads.
    #[arg(long, env = "FLOTILLA_LOG_PRIORITY", value_enum, default_value_t = Priority::Raised)]
    pub log_priority: Priority,
    /// Largest key of an application.
    #[arg(long, env = "FLOTILLA_KEY_MAX", value_name = "SIZE", default_value = "16KiB")]
    pub key_max: ByteSize,
    /// Largest value.
    #[arg(long, env = "FLOTILLA_VALUE_MAX", value_name = "SIZE", default_value = "8MiB")]
    pub value_max: ByteSize,
    /// Largest request, all its keys and values together.
    #[arg(long, env = "FLOTILLA_REQUEST_MAX", value_name = "SIZE", default_value = "16MiB")]
    pub request_max: ByteSize,
    /// Requests that may be in flight on this node; past it, clients are told to come again.
    #[arg(long, env = "FLOTILLA_REQUESTS_MAX", value_name = "N", default_value_t = 4096)]
    pub requests_max: usize,
    /// Memory that writes in flight may hold; past it, clients are told to come again.
    #[arg(long, env = "FLOTILLA_REQUEST_MEMORY", value_name = "SIZE", default_value = "256MiB")]
    pub request_memory: ByteSize,
    /// The deadline of a request that names none.
    #[arg(long, env = "FLOTILLA_REQUEST_TIMEOUT", value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    pub request_timeout: Duration,
    /// Neither encrypt nor ask who connects. Must be said as long as there is no TLS.
    #[arg(long, env = "FLOTILLA_INSECURE")]
    pub insecure: bool,
    /// How the log is written.
    #[arg(long, env = "FLOTILLA_LOG_FORMAT", value_enum, default_value_t = LogFormat::Text)]
    pub log_format: LogFormat,
    /// For programs that start nodes: end when standard input closes, so that no node outlives who started it.
    #[arg(long, hide = true)]
    pub until_stdin_closes: bool,
    /// For tests: lets this node's wall clock be wrong by so many milliseconds.
    #[arg(long, env = "FLOTILLA_CLOCK_WRONG_BY_MS", hide = true, allow_hyphen_values = true, default_value_t = 0)]
    pub clock_wrong_by_ms: i64,
}

/// `--log-priority`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Priority {
    /// Before all other threads.
    Raised,
    /// Like all others.
    Normal,
}

/// `--log-format`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Settings that make sense together.
#[derive(Debug, Clone)]
pub struct NodeConfig {
    /// Directory of the store.
    pub store: PathBuf,
    /// Where clients connect.
    pub listen: String,
    /// How clients reach it; `None`: where it listens.
    pub advertise: Option<String>,
    /// Where nodes connect.
    pub peer_listen: String,
    /// How nodes reach it; `None`: where it listens.
    pub peer_advertise: Option<String>,
    /// Where people and Prometheus look; `None`: nowhere.
    pub http: Option<String>,
    /// Peer addresses of some nodes.
    pub join: Vec<String>,
    /// Where it stands.
    pub locality: Locality,
    /// Memory for the engine's blocks.
    pub cache_bytes: u64,
    /// Disk space kept free; `None`: a share of the disk.
    pub reserve_bytes: Option<u64>,
    /// D and H.
    pub liveness: LivenessConfig,
    /// The bound on clocks.
    pub max_offset: Duration,
    /// When a silent node's replicas are replaced.
    pub dead_after: Duration,
    /// How often the replicas of each range are compared; zero: never.
    pub check_interval: Duration,
    /// When old versions go.
    pub gc: GcConfig,
    /// Bounds on transactions.
    pub txn: TxnConfig,
    /// Of the log writer.
    pub log_priority: LogPriority,
    /// Sizes, room and the default deadline.
    pub door: DoorConfig,
    /// For tests: the wall clock is wrong by so much.
    pub clock_wrong_by_ms: i64,
}

/// Settings that make no sense. Exit code 2.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum ConfigError {
    /// Nobody said that it may run without TLS.
    #[error(
        "there is no TLS yet: anybody who reaches the ports can read and write everything. Say --insecure if that is \
         right, and keep the peer port in a network of its own"
    )]
    Insecure,
    /// D is out of its bounds.
    #[error("--support-duration {0:?} makes no sense: give {min:?} to {max:?}", min = SUPPORT_RANGE.0, max = SUPPORT_RANGE.1)]
    SupportDuration(Duration),
    /// D is too short for H and the clocks.
    #[error(
        "--support-duration {support:?} is too short: it must be at least {least:?}, three times --heartbeat-interval \
         ({interval:?}), plus --max-offset ({max_offset:?}), plus {margin:?} for the network and the disk",
        margin = SUPPORT_MARGIN
    )]
    SupportTooShort {
        /// D.
        support: Duration,
        /// H.
        interval: Duration,
        /// Between clocks.
        max_offset: Duration,
        /// What would do.
        least: Duration,
    },
    /// Old versions would go too soon.
    #[error(
        "--gc-ttl {0:?} is too short: give at least {least:?}, since a version is also the record that a request was done, \
         and requests are sent again for a minute",
        least = GC_TTL_MIN
    )]
    GcTtl(Duration),
    /// An interval of nothing.
    #[error("--{0} must be more than nothing")]
    Zero(&'static str),
    /// A size that does not fit.
    #[error("--{option} {given} makes no sense: {why}")]
    Size {
        /// Which option.
        option: &'static str,
        /// What was given.
        given: ByteSize,
        /// What is wrong.
        why: &'static str,
    },
    /// An address that is none.
    #[error("--{option} '{given}' is not an address: write host:port, as in 127.0.0.1:26257")]
    Address {
        /// Which option.
        option: &'static str,
        /// What was given.
        given: String,
    },
    /// An address that others cannot use.
    #[error("--{listen} {given} is every address of this machine: say with --{advertise} which one others shall use")]
    Unspecified {
        /// Which option.
        listen: &'static str,
        /// Which option says more.
        advertise: &'static str,
        /// What was given.
        given: String,
    },
}

impl TryFrom<StartArgs> for NodeConfig {
    type Error = ConfigError;

    fn try_from(args: StartArgs) -> Result<Self, ConfigError> {
        if !args.insecure {
            return Err(ConfigError::Insecure);
        }
        let join: Vec<String> =
            args.join.iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect();
        let config = Self {
            store: args.store,
            listen: args.listen,
            advertise: args.advertise,
            peer_listen: args.peer_listen,
            peer_advertise: args.peer_advertise,
            http: Some(args.http),
            join,
            locality: args.locality,
            cache_bytes: args.cache.as_u64(),
            reserve_bytes: args.disk_reserve.map(|size| size.as_u64()),
            liveness: LivenessConfig { support: args.support_duration, interval: args.heartbeat_interval },
            max_offset: args.max_offset,
            dead_after: args.dead_after,
            check_interval: args.check_interval,
            gc: GcConfig { ttl: args.gc_ttl, every: args.gc_interval, ..GcConfig::default() },
            txn: TxnConfig {
                locks_max: args.txn_locks_max,
                bytes_max: usize::try_from(args.txn_bytes_max.as_u64()).unwrap_or(usize::MAX),
                ..TxnConfig::default()
            },
            log_priority: match args.log_priority {
                Priority::Raised => LogPriority::Raised,
                Priority::Normal => LogPriority::Normal,
            },
            door: DoorConfig {
                limits: limits(args.key_max, args.value_max, args.request_max)?,
                in_flight_max: args.requests_max,
                in_flight_bytes_max: bytes(args.request_memory),
                timeout: args.request_timeout,
            },
            clock_wrong_by_ms: args.clock_wrong_by_ms,
        };
        config.validate()?;
        Ok(config)
    }
}

impl NodeConfig {
    /// A node on loopback with ports of the system's choice, for embedding and tests.
    #[must_use]
    pub fn local(store: PathBuf) -> Self {
        let any = "127.0.0.1:0".to_owned();
        Self {
            store,
            listen: any.clone(),
            advertise: None,
            peer_listen: any.clone(),
            peer_advertise: None,
            http: Some(any),
            join: Vec::new(),
            locality: Locality::default(),
            cache_bytes: 64 << 20,
            reserve_bytes: None,
            liveness: LivenessConfig { support: Duration::from_millis(2500), interval: Duration::from_millis(500) },
            max_offset: Duration::from_millis(250),
            dead_after: Duration::from_secs(300),
            check_interval: Duration::from_secs(24 * 3600),
            gc: GcConfig::default(),
            txn: TxnConfig::default(),
            log_priority: LogPriority::Normal,
            door: DoorConfig::default(),
            clock_wrong_by_ms: 0,
        }
    }

    /// Whether the settings make sense together.
    ///
    /// # Errors
    /// Says which does not, and what would.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let LivenessConfig { support, interval } = self.liveness;
        if interval.is_zero() {
            return Err(ConfigError::Zero("heartbeat-interval"));
        }
        if support < SUPPORT_RANGE.0 || support > SUPPORT_RANGE.1 {
            return Err(ConfigError::SupportDuration(support));
        }
        let least = interval.saturating_mul(3).saturating_add(self.max_offset).saturating_add(SUPPORT_MARGIN);
        if support < least {
            return Err(ConfigError::SupportTooShort { support, interval, max_offset: self.max_offset, least });
        }
        if self.gc.ttl < GC_TTL_MIN {
            return Err(ConfigError::GcTtl(self.gc.ttl));
        }
        let times =
            [("dead-after", self.dead_after), ("request-timeout", self.door.timeout), ("gc-interval", self.gc.every)];
        for (option, time) in times {
            if time.is_zero() {
                return Err(ConfigError::Zero(option));
            }
        }
        if self.door.in_flight_max == 0 {
            return Err(ConfigError::Zero("requests-max"));
        }
        if self.cache_bytes < CACHE_MIN {
            let why = "the engine needs at least 8 MiB";
            return Err(ConfigError::Size { option: "cache", given: ByteSize(self.cache_bytes), why });
        }
        let some = |option, given: &Option<String>| given.as_deref().map_or(Ok(()), |given| address(option, given));
        address("listen", &self.listen)?;
        address("peer-listen", &self.peer_listen)?;
        some("advertise", &self.advertise)?;
        some("peer-advertise", &self.peer_advertise)?;
        some("http", &self.http)?;
        self.join.iter().try_for_each(|given| address("join", given))?;
        reachable("listen", &self.listen, "advertise", self.advertise.as_ref())?;
        reachable("peer-listen", &self.peer_listen, "peer-advertise", self.peer_advertise.as_ref())
    }
}

fn limits(key: ByteSize, value: ByteSize, request: ByteSize) -> Result<Limits, ConfigError> {
    let refuse = |option, given, why| Err(ConfigError::Size { option, given, why });
    // A command of the log must fit into one message between nodes, with its envelope.
    if request.as_u64() > 16 << 20 || request.as_u64() == 0 {
        return refuse("request-max", request, "give 1 B to 16 MiB: a larger one does not fit between nodes");
    }
    if value > request {
        return refuse("value-max", value, "a value must fit into a request (--request-max)");
    }
    if key.as_u64() == 0 || key.as_u64() > 64 << 10 {
        return refuse("key-max", key, "give 1 B to 64 KiB");
    }
    Ok(Limits { key_bytes: bytes(key), value_bytes: bytes(value), request_bytes: bytes(request), ..Limits::default() })
}

fn bytes(size: ByteSize) -> usize {
    usize::try_from(size.as_u64()).unwrap_or(usize::MAX)
}

fn address(option: &'static str, given: &str) -> Result<(), ConfigError> {
    let refused = || ConfigError::Address { option, given: given.to_owned() };
    let (host, port) = given.rsplit_once(':').ok_or_else(refused)?;
    if host.is_empty() || port.parse::<u16>().is_err() || given.contains('/') || given.contains(' ') {
        return Err(refused());
    }
    Ok(())
}

fn reachable(
    listen: &'static str,
    given: &str,
    advertise: &'static str,
    advertised: Option<&String>,
) -> Result<(), ConfigError> {
    let everywhere = given.parse::<SocketAddr>().is_ok_and(|address| address.ip().is_unspecified());
    if everywhere && advertised.is_none() {
        return Err(ConfigError::Unspecified { listen, advertise, given: given.to_owned() });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        start: StartArgs,
    }

    fn parse(line: &str) -> Result<NodeConfig, ConfigError> {
        let words = format!("flotilla --store /tmp/x {line}");
        Line::parse_from(words.split_whitespace()).start.try_into()
    }

    #[test]
    fn the_defaults_make_sense_once_insecure_is_said() {
        assert!(parse("--insecure").is_ok());
        assert_eq!(parse("").unwrap_err(), ConfigError::Insecure);
        let joined = parse("--insecure --join a:1,b:2 --locality region=eu,dc=1").unwrap();
        assert_eq!(joined.join, ["a:1", "b:2"]);
        assert_eq!(joined.locality.to_string(), "region=eu,dc=1");
    }

    #[test]
    fn settings_that_contradict_each_other_are_refused_with_what_would_do() {
        let error = parse("--insecure --support-duration 1s").unwrap_err();
        assert!(matches!(error, ConfigError::SupportTooShort { .. }));
        assert!(error.to_string().contains("at least 1.95s"), "{error}");
        assert!(matches!(parse("--insecure --support-duration 20s").unwrap_err(), ConfigError::SupportDuration(_)));
        assert!(matches!(parse("--insecure --cache 1KiB").unwrap_err(), ConfigError::Size { option: "cache", .. }));
        assert!(matches!(parse("--insecure --request-max 1GiB").unwrap_err(), ConfigError::Size { .. }));
        assert!(matches!(parse("--insecure --gc-ttl 3m").unwrap_err(), ConfigError::GcTtl(_)));
        assert_eq!(parse("--insecure --gc-interval 0s").unwrap_err(), ConfigError::Zero("gc-interval"));
        assert_eq!(parse("--insecure --gc-ttl 25h").unwrap().gc.ttl, Duration::from_secs(25 * 3600));
        assert!(matches!(parse("--insecure --listen nowhere").unwrap_err(), ConfigError::Address { .. }));
        assert!(matches!(parse("--insecure --listen 0.0.0.0:1").unwrap_err(), ConfigError::Unspecified { .. }));
        assert!(parse("--insecure --listen 0.0.0.0:1 --advertise n1.example:1").is_ok());
    }
}
