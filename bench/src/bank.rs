//! `flotilla-bench bank`: money moves between accounts, and none comes or goes.
//!
//! Each client moves a random amount from one random account to another in an interactive transaction. One more client
//! adds up all accounts in a transaction, again and again. Whatever becomes of transfers, their sum stays what it was;
//! a sum that does not is a broken promise of the cluster.

use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use flotilla_client::{Client, Error, Span, Txn, TxnOptions};
use rand::Rng;
use serde::Serialize;

use crate::Failure;
use crate::args::Bank as Args;
use crate::load::{Rows, load};
use crate::record::Kind;
use crate::report::{Findings, Run};
use crate::run::{Done, Turn, Workload, connect, measure};

/// The most that one transfer moves.
const AMOUNT_MAX: i64 = 100;
/// Wrong totals that are kept for the report.
const WRONG_KEPT: usize = 10;

/// What the checks found.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct BankFindings {
    /// What the accounts must hold together.
    total: i64,
    /// What they held in the end.
    final_total: i64,
    /// Checks that were made, the one in the end included.
    checks: u64,
    /// How many of them found another total, or a balance that is none.
    checks_wrong: u64,
    /// Some of these totals; none for balances that are none.
    wrong_totals: Vec<Option<i64>>,
}

impl BankFindings {
    pub(crate) const fn hold(&self) -> bool {
        self.checks_wrong == 0
    }

    pub(crate) fn line(&self) -> String {
        let Self { total, final_total, checks, checks_wrong, .. } = self;
        format!("checks={checks} checks_wrong={checks_wrong} total={total} final_total={final_total}")
    }
}

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Args) -> Result<Vec<Run>, Failure> {
    let client = connect(&args.run.cluster).await?;
    let mut runs = Vec::new();
    for clients in &args.run.clients {
        client.delete_range(Span::prefix(PREFIX)).await?;
        load(&client, std::sync::Arc::new(Opening(args.balance)), args.accounts).await?;
        let bank = Bank::new(args, *clients);
        let (measured, bank) = measure(&client, bank, &args.run, *clients).await?;
        let findings = bank.close(&client).await?;
        runs.push(Run::new(&measured, Some(Findings::Bank(findings))));
    }
    Ok(runs)
}

const PREFIX: &str = "bank/";

fn account(number: u64) -> Bytes {
    format!("{PREFIX}{number:06}").into()
}

/// The accounts as they are opened.
struct Opening(i64);

impl Rows for Opening {
    fn row(&self, number: u64) -> (Bytes, Bytes) {
        (account(number), self.0.to_string().into())
    }

    fn value_size(&self) -> u32 {
        20
    }
}

/// An amount in words of the wire.
fn amount(value: &Bytes) -> Option<i64> {
    std::str::from_utf8(value).ok()?.parse().ok()
}

struct Bank {
    options: TxnOptions,
    lock: bool,
    accounts: u64,
    total: i64,
    /// The clients that move money; the one behind them checks.
    movers: u32,
    checks: AtomicU64,
    checks_wrong: AtomicU64,
    wrong_totals: Mutex<Vec<Option<i64>>>,
}

impl Workload for Bank {
    fn watchers(&self) -> u32 {
        1
    }

    async fn operate(&self, client: &Client, turn: Turn<'_>) -> Done {
        if turn.client >= self.movers {
            return self.check(client).await;
        }
        let from = turn.random.random_range(0..self.accounts);
        let to = (from + turn.random.random_range(1..self.accounts)) % self.accounts;
        let most = turn.random.random_range(1..=AMOUNT_MAX);
        self.transfer(client, (account(from), account(to)), most).await
    }
}

impl Bank {
    #[allow(clippy::cast_possible_wrap)]
    fn new(args: &Args, movers: u32) -> Self {
        Self {
            options: args.txn.options(),
            lock: args.txn.lock,
            accounts: args.accounts,
            // Both are bounded by the arguments so that this fits.
            total: args.accounts as i64 * args.balance,
            movers,
            checks: AtomicU64::new(0),
            checks_wrong: AtomicU64::new(0),
            wrong_totals: Mutex::default(),
        }
    }

    /// Moves money, as much as there is and `most` at most.
    async fn transfer(&self, client: &Client, (from, to): (Bytes, Bytes), most: i64) -> Done {
        let (mut attempts, from, to) = (0_u64, &from, &to);
        let moved = client.run(self.options, |txn| {
            attempts += 1;
            async move {
                let (there, here) = (self.balance(&txn, from).await?, self.balance(&txn, to).await?);
                let moves = most.min(there);
                txn.put(from.clone(), (there - moves).to_string()).await?;
                txn.put(to.clone(), (here + moves).to_string()).await
            }
        });
        let moved = moved.await;
        Done { kind: Kind::Transfer, restarts: attempts.saturating_sub(1), result: moved.map(|_| ()) }
    }

    async fn balance(&self, txn: &Txn, account: &Bytes) -> Result<i64, Error> {
        let found = match self.lock {
            true => txn.get_for_update(account.clone()).await?,
            false => txn.get(account.clone()).await?,
        };
        let balance = found.and_then(|found| amount(&found.value));
        balance.ok_or(Error::BadAnswer { what: "an account without a balance" })
    }

    /// Adds up all accounts in one transaction.
    async fn check(&self, client: &Client) -> Done {
        let mut attempts = 0_u64;
        let checked = client.run(TxnOptions::default(), |txn| {
            attempts += 1;
            async move { txn.scan(Span::prefix(PREFIX)).collect().await }
        });
        let checked = checked.await;
        // What was read counts once the transaction has passed, not before.
        let result = checked.map(|rows| {
            let balances = rows.value.iter().map(|row| amount(&row.value).filter(|balance| *balance >= 0));
            let all_there = rows.value.len() as u64 == self.accounts;
            self.judge(balances.sum::<Option<i64>>().filter(|_| all_there));
        });
        Done { kind: Kind::Check, restarts: attempts.saturating_sub(1), result }
    }

    fn judge(&self, total: Option<i64>) {
        self.checks.fetch_add(1, Ordering::Relaxed);
        if total != Some(self.total) {
            self.checks_wrong.fetch_add(1, Ordering::Relaxed);
            let mut wrong = self.wrong_totals.lock().unwrap_or_else(PoisonError::into_inner);
            if wrong.len() < WRONG_KEPT {
                eprintln!("a check found {total:?} on all accounts together; it must be {}", self.total);
                wrong.push(total);
            }
        }
    }

    /// The last check, when nobody moves anything any more.
    async fn close(self, client: &Client) -> Result<BankFindings, Failure> {
        let rows = client.scan(Span::prefix(PREFIX), flotilla_client::ScanOptions::default()).collect().await?;
        let final_total = rows.iter().filter_map(|row| amount(&row.value)).sum();
        self.judge((rows.len() as u64 == self.accounts).then_some(final_total));
        Ok(BankFindings {
            total: self.total,
            final_total,
            checks: self.checks.into_inner(),
            checks_wrong: self.checks_wrong.into_inner(),
            wrong_totals: self.wrong_totals.into_inner().unwrap_or_else(PoisonError::into_inner),
        })
    }
}
