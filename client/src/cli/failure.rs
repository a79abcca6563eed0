//! How a command ends when it does not end well, and what the user can do about it.

use std::io;

use flotilla_proto::reason::Reason;
use thiserror::Error;

/// What a command came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It was done.
    Done,
    /// The answer is no: no such key, another value, replicas that disagree.
    No,
}

/// Why a command was not done.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum Failure {
    /// The command makes no sense.
    #[error("{0}")]
    Usage(String),
    /// The cluster did not do it.
    #[error(transparent)]
    Cluster(#[from] crate::Error),
    /// A file could not be read or written.
    #[error("{what}: {error}")]
    File {
        /// What was tried.
        what: String,
        /// What the system said.
        error: io::Error,
    },
    /// A file holds something else than rows, or an import stopped.
    #[error("{0}")]
    Data(String),
    /// Whoever read the output went away.
    #[error("the output was closed")]
    Closed,
}

impl Failure {
    /// For errors of files: `what` was tried.
    pub(crate) fn file(what: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let what = what.into();
        move |error| match error.kind() {
            io::ErrorKind::BrokenPipe => Self::Closed,
            _ => Self::File { what, error },
        }
    }

    /// What the user can do.
    #[must_use]
    pub fn advice(&self) -> Option<&'static str> {
        use crate::Error::{Ambiguous, BadAnswer, CommitUnknown, Failed, Unreachable};
        let Self::Cluster(error) = self else { return None };
        match error {
            Unreachable { .. } => Some("is a node running there? name others with --host or FLOTILLA_HOST"),
            Failed { .. } | BadAnswer { .. } => {
                Some("does a node of this version listen there? --host wants its client address")
            }
            Ambiguous { request_id: None, .. } => Some("look whether it was done, with `flotilla range ls`"),
            Ambiguous { .. } | CommitUnknown { .. } => Some("it may have been done: look, or do it again"),
            _ => match error.reason()? {
                Reason::NotInitialized => Some("make the cluster with `flotilla init`, once, on one node"),
                Reason::AlreadyInitialized => Some("the cluster exists: `flotilla status` shows it"),
                Reason::RangeUnavailable => {
                    Some("`flotilla node ls` shows which nodes live: a range needs most of its replicas")
                }
                Reason::DeadlineExceeded | Reason::Overloaded => Some("try again, or give it more time with --timeout"),
                Reason::RangeChanged => Some("look again with `flotilla range ls`, and decide anew"),
                Reason::RangeNotFound => Some("`flotilla range ls` shows the ranges"),
                Reason::NodeNotFound => Some("`flotilla node ls` shows the nodes"),
                Reason::DiskFull => Some("delete data or add disk; deletes and reads still work"),
                _ => None,
            },
        }
    }

    /// The exit status.
    #[must_use]
    pub const fn status(&self) -> u8 {
        match self {
            Self::Usage(_) | Self::Cluster(crate::Error::BadEndpoint { .. }) => 2,
            Self::Closed => 0,
            _ => 1,
        }
    }
}

/// The output was written, or could not be.
pub(crate) fn printed(result: io::Result<()>) -> Result<(), Failure> {
    result.map_err(Failure::file("write the output"))
}
