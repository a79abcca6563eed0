//! What ends the process: after a failed write nothing is retried and nothing limps on (docs/durability.md).

use std::fmt;
use std::sync::Arc;

use flotilla_storage::engine::EngineError;
use flotilla_storage::log::LogFatal;
use thiserror::Error;

/// Why the process must stop.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Failure {
    /// The log could not be written or synced. Exit code 4.
    #[error("{0}; do not restart this node by itself: look at the disk first")]
    Log(LogFatal),
    /// The engine could not be written, flushed or read. Exit code 4.
    #[error("{0}; do not restart this node by itself: look at the disk first")]
    Engine(EngineError),
    /// The disk is full. Exit code 5.
    #[error("the disk is full: make room, then start again; all that was acknowledged is there")]
    DiskFull,
    /// The clock was wrong for too long. Exit code 6.
    #[error("the clock of this machine has not been trusted for ten minutes ({0}): set it right, then start again")]
    Clock(String),
    /// A thread of the store panicked. Exit code 4.
    #[error("the thread '{0}' panicked; this is a bug, and its message stands above")]
    Panic(&'static str),
}

impl Failure {
    /// The exit code of the process.
    #[must_use]
    pub const fn exit_code(&self) -> i32 {
        match self {
            Self::Log(_) | Self::Engine(_) | Self::Panic(_) => 4,
            Self::DiskFull => 5,
            Self::Clock(_) => 6,
        }
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        match error {
            EngineError::DiskFull => Self::DiskFull,
            error => Self::Engine(error),
        }
    }
}

impl From<LogFatal> for Failure {
    fn from(error: LogFatal) -> Self {
        match error {
            LogFatal::DiskFull => Self::DiskFull,
            error => Self::Log(error),
        }
    }
}

/// What is done about a failure. The default ends the process at once; tests look at the failure instead, and the
/// thread that met it ends.
#[derive(Clone)]
pub struct OnFailure(Arc<dyn Fn(Failure) + Send + Sync>);

impl OnFailure {
    /// Calls `hear`, from the thread that met the failure.
    pub fn new(hear: impl Fn(Failure) + Send + Sync + 'static) -> Self {
        Self(Arc::new(hear))
    }

    pub(super) fn meet(&self, failure: impl Into<Failure>) {
        (self.0)(failure.into());
    }
}

impl Default for OnFailure {
    fn default() -> Self {
        Self::new(|failure| {
            tracing::error!(%failure, "the store stops");
            std::process::exit(failure.exit_code());
        })
    }
}

impl fmt::Debug for OnFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OnFailure")
    }
}
