//! The command line's grammar, as clap reads it.

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Subcommand, ValueEnum};

/// The subcommands that speak to a running cluster.
#[derive(Debug, Clone, Subcommand)]
pub enum Command {
    /// Read and write keys.
    Kv(Kv),
    /// The nodes of the cluster.
    Node(Node),
    /// The ranges that the keys are cut into.
    Range(Range),
    /// The transactions that are open.
    Txn(Txn),
    /// Look inside.
    Debug(Debug),
    /// Make a cluster out of nodes that were started and are none yet. Once, on one node.
    Init(Plain),
    /// The cluster at a glance, as the asked node sees it.
    Status(Plain),
}

/// Whom to ask, and how to say the answer. Each may stand anywhere on the line.
#[derive(Debug, Clone, Args)]
pub struct Common {
    /// Client addresses of some nodes, host:port, comma-separated. The others are learnt.
    #[arg(long, env = "FLOTILLA_HOST", global = true, value_delimiter = ',', default_value = "127.0.0.1:26257")]
    pub host: Vec<String>,
    /// Print JSON, one document a line, instead of tables.
    #[arg(long, global = true)]
    pub json: bool,
    /// How long one request may take, its retries included.
    #[arg(long, global = true, default_value = "30s", value_name = "TIME", value_parser = humantime::parse_duration)]
    pub timeout: Duration,
}

/// A command without further arguments.
#[derive(Debug, Clone, Args)]
pub struct Plain {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
}

/// How keys and values are written in arguments and in what is printed. Text, unless said otherwise.
#[derive(Debug, Clone, Copy, Default, Args)]
pub struct Form {
    /// Keys and values are hexadecimal digits.
    #[arg(long, global = true, conflicts_with = "base64")]
    pub hex: bool,
    /// Keys and values are base64.
    #[arg(long, global = true)]
    pub base64: bool,
}

/// `flotilla kv`.
#[derive(Debug, Clone, Args)]
pub struct Kv {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub form: Form,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: KvCommand,
}

/// What to do with keys.
#[derive(Debug, Clone, Subcommand)]
pub enum KvCommand {
    /// Print the value of a key. Exit status 1 if it has none.
    Get {
        /// The key.
        key: String,
    },
    /// Set a key.
    Put {
        /// The key.
        key: String,
        /// The value; `-` reads standard input to its end, byte for byte.
        value: String,
    },
    /// Remove a key, or with --to all keys of a span.
    Del {
        /// The key, or the first key of the span.
        key: String,
        /// First key that stays. Over several ranges this is resumable, not atomic.
        #[arg(long, value_name = "KEY")]
        to: Option<String>,
    },
    /// Print keys and values in key order.
    Scan {
        #[command(flatten)]
        #[allow(missing_docs)]
        span: SpanArgs,
        /// From the end to the start.
        #[arg(long)]
        reverse: bool,
        /// At most so many rows; 0 for all.
        #[arg(long, default_value_t = 100)]
        limit: u64,
    },
    /// Set a key if it has the value that is expected; exit status 1 if it has another.
    Cas {
        /// The key.
        key: String,
        /// The value it must have. Left out: the key must have none.
        #[arg(long, value_name = "VALUE")]
        expect: Option<String>,
        /// The value it gets. Left out: the key is removed.
        #[arg(long, value_name = "VALUE")]
        set: Option<String>,
    },
    /// Write the rows of a file. Doing it again, or going on after an error, leads to the same state.
    Import(Import),
    /// Write the rows of a span to a file or to standard output, all as of one moment.
    Export(Export),
}

/// A span of keys.
#[derive(Debug, Clone, Args)]
pub struct SpanArgs {
    /// First key. Left out: the first of all.
    #[arg(long, value_name = "KEY")]
    pub from: Option<String>,
    /// First key that does not belong to it any more. Left out: to the end.
    #[arg(long, value_name = "KEY")]
    pub to: Option<String>,
    /// All keys that begin so.
    #[arg(long, value_name = "KEY", conflicts_with_all = ["from", "to"])]
    pub prefix: Option<String>,
}

/// How rows stand in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// One object a line: {"key": …, "value": …}.
    Jsonl,
    /// A header line, then key,value.
    Csv,
}

/// `flotilla kv import`.
#[derive(Debug, Clone, Args)]
pub struct Import {
    /// The file; `-` for standard input.
    pub file: PathBuf,
    /// Left out: told by the file's name, else jsonl.
    #[arg(long)]
    pub format: Option<Format>,
    /// How many writes are under way at once.
    #[arg(long, default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub in_flight: u16,
    /// Go on at this line of the file, as an import that failed says.
    #[arg(long, default_value_t = 1, value_name = "LINE")]
    pub from_line: u64,
    /// Pass over lines that are no rows, naming each, instead of stopping at the first.
    #[arg(long)]
    pub skip_bad_lines: bool,
}

/// `flotilla kv export`.
#[derive(Debug, Clone, Args)]
pub struct Export {
    /// The file; `-` for standard output.
    #[arg(default_value = "-")]
    pub file: PathBuf,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub span: SpanArgs,
    /// Left out: told by the file's name, else jsonl.
    #[arg(long)]
    pub format: Option<Format>,
}

/// `flotilla node`.
#[derive(Debug, Clone, Args)]
pub struct Node {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: NodeCommand,
}

/// What to do with nodes.
#[derive(Debug, Clone, Subcommand)]
pub enum NodeCommand {
    /// List them.
    Ls,
}

/// `flotilla range`.
#[derive(Debug, Clone, Args)]
pub struct Range {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(flatten)]
    #[allow(missing_docs)]
    pub form: Form,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: RangeCommand,
}

/// What to do with ranges.
#[derive(Debug, Clone, Subcommand)]
pub enum RangeCommand {
    /// List them in key order.
    Ls {
        /// Only ranges that hold application keys.
        #[arg(long)]
        user: bool,
        /// At most so many; 0 for all.
        #[arg(long, default_value_t = 0)]
        limit: u64,
    },
    /// Cut the range that owns a key in two; the key becomes the first of the right half.
    Split {
        /// The key.
        key: String,
    },
    /// Make another replica the leader of a range.
    Transfer {
        /// Which range.
        range: u64,
        /// The store whose replica shall lead.
        #[arg(long, value_name = "STORE")]
        to: u64,
    },
    /// Bring the replicas of a range to the given stores, and wait until it is done.
    Replicas {
        /// Which range.
        range: u64,
        /// The stores that shall hold voters.
        #[arg(long, value_delimiter = ',', required = true, value_name = "STORES")]
        voters: Vec<u64>,
        /// The stores that shall hold learners.
        #[arg(long, value_delimiter = ',', value_name = "STORES")]
        learners: Vec<u64>,
    },
}

/// `flotilla txn`.
#[derive(Debug, Clone, Args)]
pub struct Txn {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: TxnCommand,
}

/// What to do with transactions.
#[derive(Debug, Clone, Subcommand)]
pub enum TxnCommand {
    /// List those that are open, oldest first, and for whom they wait on which key. Exit status 1 if a node did not
    /// answer.
    Ls {
        /// Only those with this node for their gateway. Left out: of all nodes.
        #[arg(long)]
        node: Option<u64>,
        /// At most so many of each node; 0 for as many as it tells at once.
        #[arg(long, default_value_t = 0)]
        limit: u64,
    },
}

/// `flotilla debug`.
#[derive(Debug, Clone, Args)]
pub struct Debug {
    #[command(flatten)]
    #[allow(missing_docs)]
    pub common: Common,
    #[command(subcommand)]
    #[allow(missing_docs)]
    pub command: DebugCommand,
}

/// What to look at.
#[derive(Debug, Clone, Subcommand)]
pub enum DebugCommand {
    /// Have all replicas hash their state at one applied index, taken through the log, and compare. One line a replica:
    /// range, replica, store, applied index, hash, pairs. Exit status 1 if any disagree or did not answer.
    Checksum {
        /// Which range; left out: all.
        #[arg(long)]
        range: Option<u64>,
    },
}

impl Command {
    /// The options that all commands share.
    #[must_use]
    pub const fn common(&self) -> &Common {
        match self {
            Self::Kv(kv) => &kv.common,
            Self::Node(node) => &node.common,
            Self::Range(range) => &range.common,
            Self::Txn(txn) => &txn.common,
            Self::Debug(debug) => &debug.common,
            Self::Init(plain) | Self::Status(plain) => &plain.common,
        }
    }
}
