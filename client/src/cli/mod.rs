//! The command line of a running cluster: what `flotilla kv`, `node`, `range`, `txn`, `debug`, `init` and `status` do.
//!
//! The binary embeds [`Command`] in its own command line and hands it to [`run`]. Answers go to standard output, as
//! tables or with `--json` as JSON; what went wrong goes to standard error, with what to do about it.

mod args;
mod cluster;
mod export;
mod failure;
mod form;
mod import;
mod kv;
mod output;
mod progress;
mod rows;
mod txn;

use std::io::Write;
use std::process::ExitCode;
use std::time::Duration;

pub use args::{Command, Common};
pub use failure::{Failure, Outcome};

use crate::{Client, Options};
use args::{Kv, KvCommand};
use output::Output;

/// How long to look for a node that answers: who names a wrong address wants to know soon.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Does what the command says. The status is 0 if it was done, 1 if it failed (or said no, as a compare-and-swap may),
/// 2 if the command itself makes no sense.
pub async fn run(command: Command) -> ExitCode {
    let outcome = execute(command, &mut std::io::stdout()).await;
    match outcome {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::No) => ExitCode::FAILURE,
        Err(failure) => {
            if !matches!(failure, Failure::Closed) {
                eprintln!("error: {failure}");
            }
            if let Some(advice) = failure.advice() {
                eprintln!("hint: {advice}");
            }
            ExitCode::from(failure.status())
        }
    }
}

/// Does what the command says, and writes the answer to `to`.
///
/// # Errors
/// Why it was not done.
pub async fn execute(command: Command, to: &mut (dyn Write + Send)) -> Result<Outcome, Failure> {
    let common = command.common().clone();
    // One request needs no other nodes; many are spread over all of them.
    let learn_nodes = matches!(&command, Command::Kv(Kv { command: KvCommand::Import(_) | KvCommand::Export(_), .. }));
    let timeout = CONNECT_TIMEOUT.min(common.timeout);
    let options = Options { timeout, learn_nodes, ..Options::default() };
    let client = Client::connect_with(common.host, options).await?.with_timeout(common.timeout);
    let mut output = Output { to, json: common.json };
    let outcome = match command {
        Command::Kv(kv) => kv::run(&client, kv, &mut output).await,
        Command::Node(node) => cluster::node(&client, &node.command, &mut output).await,
        Command::Range(range) => cluster::range(&client, range.form, range.command, &mut output).await,
        Command::Txn(txn) => txn::run(&client, &txn.command, &mut output).await,
        Command::Debug(debug) => cluster::debug(&client, &debug.command, &mut output).await,
        Command::Init(_) => cluster::init(&client, &mut output).await,
        Command::Status(_) => cluster::status(&client, &mut output).await,
    };
    failure::printed(output.to.flush())?;
    outcome
}
