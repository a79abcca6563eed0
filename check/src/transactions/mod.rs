//! Transactions: which of Adya's phenomena a history shows, from what its clients saw alone.
//!
//! The manner of Elle (Kingsbury and Alvaro, 2020): every key holds a list that only grows, every appended element is
//! used once, so that one read tells in which order all earlier appends took effect. From that follow the dependencies
//! of transactions, and a cycle among them is a phenomenon, named by the kinds of its edges (Adya, 1999). A register with
//! unique values and a known order of versions is judged by the same rules: give each read as the list of the versions
//! up to the one that it saw.
//!
//! What a client does not know is not used against the store: a transaction of unknown outcome counts as committed once
//! one of its elements was read, and as nothing before.

mod cycles;
mod graph;
mod versions;

use std::fmt;

/// What a transaction did, in order, as its client saw it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Act {
    /// It put an element behind those of a key. No other append of the history, to any key, may use the same element.
    Append {
        /// Which list.
        key: u64,
        /// What was put there.
        element: u64,
    },
    /// It read a list.
    Read {
        /// Which list.
        key: u64,
        /// What it saw.
        list: Vec<u64>,
        /// Found by a scan or another predicate, not asked for by its key. (A key that the scan covered and did not show
        /// is an empty list.)
        by_predicate: bool,
    },
}

/// How a transaction ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// Its client was told at this time that it is committed.
    Committed(u64),
    /// Its client was told that it is not, and never will be.
    Aborted,
    /// Its client was told nothing.
    Unknown,
}

/// One transaction of a history.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Who ran it; one client runs one at a time.
    pub client: u64,
    /// When its first act was sent, on the clock that [`Ended::Committed`] uses too.
    pub began: u64,
    /// How it ended.
    pub ended: Ended,
    /// What it did.
    pub acts: Vec<Act>,
}

/// What a history must not show, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phenomenon {
    /// An element was read that nobody appended.
    Phantom,
    /// An element lies in a list twice: an append took effect twice.
    Twice,
    /// Two reads of a key that no one order of appends explains, since neither is the beginning of the other; or a read
    /// that shows the appends of one transaction in another order than its own.
    TwoOrders,
    /// A transaction did not see its own appends, or saw them elsewhere than at the end.
    Internal,
    /// G1a: an element of an aborted transaction was read.
    AbortedRead,
    /// G1b: a read ended between two appends of one transaction to the key.
    IntermediateRead,
    /// G0: a cycle of overwrites.
    DirtyWrite,
    /// G1c: a cycle of overwrites and reads of what was written.
    Circular,
    /// P4: two committed transactions read the same version of a key and both wrote the next.
    LostUpdate,
    /// G-single: a cycle with one anti-dependency: a read missed what another part of the transaction rests on.
    ReadSkew,
    /// A cycle in which no two anti-dependencies follow each other, with at least two of them; the long fork is one.
    LongFork,
    /// G2-item: a cycle with anti-dependencies that follow each other, all of single keys.
    WriteSkew,
    /// G2: the same, with a read by predicate.
    PredicateSkew,
    /// A cycle as above that needs the order of real time or of a client's session to close.
    RealTime,
}

/// What a store promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// Each statement reads what was committed when it began.
    ReadCommitted,
    /// All statements read what was committed when the transaction began, and of two writers of one key one fails.
    Snapshot,
    /// As if the transactions ran one after the other.
    Serializable,
    /// And in an order that real time allows.
    Strict,
}

impl Level {
    /// Whether a store that promises this may not show that.
    #[must_use]
    pub const fn forbids(self, phenomenon: Phenomenon) -> bool {
        use Phenomenon as P;
        match phenomenon {
            P::Phantom | P::Twice | P::TwoOrders | P::Internal => true,
            P::AbortedRead | P::IntermediateRead | P::DirtyWrite | P::Circular => true,
            P::LostUpdate | P::ReadSkew | P::LongFork => !matches!(self, Self::ReadCommitted),
            P::WriteSkew | P::PredicateSkew => matches!(self, Self::Serializable | Self::Strict),
            P::RealTime => matches!(self, Self::Strict),
        }
    }
}

/// A phenomenon that was seen, with the transactions that show it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub phenomenon: Phenomenon,
    /// Indexes into the history; of a cycle, in its order.
    pub transactions: Vec<usize>,
    /// How they depend on each other, for people.
    pub because: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.phenomenon, self.because)
    }
}

/// Why a history cannot be judged: whoever made it made a mistake.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// Two appends use this element.
    ElementUsedTwice(u64),
    /// The transaction with this index was committed before it began.
    EndsBeforeItBegins(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ElementUsedTwice(element) => write!(f, "two appends use the element {element}"),
            Self::EndsBeforeItBegins(index) => write!(f, "transaction {index} ends before it begins"),
        }
    }
}

impl std::error::Error for Malformed {}

/// Everything wrong that a history shows, of each kind at least one example, the plainest kinds first. What of it is
/// forbidden is for a [`Level`] to say.
///
/// # Errors
/// If the history is none.
pub fn phenomena(history: &[Transaction]) -> Result<Vec<Finding>, Malformed> {
    for (index, transaction) in history.iter().enumerate() {
        if matches!(transaction.ended, Ended::Committed(at) if at < transaction.began) {
            return Err(Malformed::EndsBeforeItBegins(index));
        }
    }
    let (versions, mut findings) = versions::Versions::of(history)?;
    let graph = graph::Graph::of(history, &versions);
    findings.extend(versions.lost_updates(history));
    findings.extend(cycles::cycles(&graph));
    findings.sort_by_key(|finding| finding.phenomenon);
    Ok(findings)
}

/// The first thing that a history shows and a level forbids.
///
/// # Errors
/// If the history is none.
pub fn violation(history: &[Transaction], level: Level) -> Result<Option<Finding>, Malformed> {
    Ok(phenomena(history)?.into_iter().find(|finding| level.forbids(finding.phenomenon)))
}
