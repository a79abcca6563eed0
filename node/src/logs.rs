//! The process's log: text on standard error, coloured on a terminal, or JSON for machines. `RUST_LOG` chooses what.

use std::io::IsTerminal;

use tracing_subscriber::EnvFilter;

use crate::config::LogFormat;

/// What is logged unless `RUST_LOG` says otherwise: the library under each group tells of every change of role, which is
/// too much with very many groups.
const DEFAULT: &str = "info,raft=warn,raft_engine=warn,h2=warn,hyper=warn,tonic=warn";

/// Starts logging. A second call changes nothing.
pub fn start(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT));
    let logger = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    // Fails only if the process logs already, as a program that embeds a node may.
    let _ = match format {
        LogFormat::Text => logger.with_ansi(std::io::stderr().is_terminal()).with_target(false).try_init(),
        LogFormat::Json => logger.json().try_init(),
    };
}

/// Logs only what `RUST_LOG` asks for: for commands that speak for themselves.
pub fn start_quiet() {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("off"));
    let _ = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).try_init();
}
