//! Transactions that are done again until they pass.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use flotilla_types::Timestamp;

use super::{Txn, TxnOptions};
use crate::{Client, Error};

/// The pause before the second attempt is at most this; it doubles with each.
const PAUSE_MIN: Duration = Duration::from_millis(1);
/// The longest pause.
const PAUSE_MAX: Duration = Duration::from_millis(100);

/// A transaction that was committed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Committed<T> {
    /// What the closure returned.
    pub value: T,
    /// When it was committed: also the token for transactions that are to see it.
    pub timestamp: Timestamp,
    /// How often the closure was run.
    pub attempts: u32,
}

impl Client {
    /// Runs a closure in a transaction and commits. If others were in its way (`RETRY_TXN`, `TXN_ABORTED`), or the cluster
    /// was before the commit was sent, it is run again in a new transaction, after a pause, until the client's timeout. So
    /// the closure should have no effects but those on the transaction, and its steps' errors should leave it by `?`; an
    /// error of its own rolls back and is returned.
    ///
    /// The keys over which a run failed are locked by the reads of the next one, so that it waits its turn instead of failing over
    /// them again.
    ///
    /// The closure is never run again while an earlier run may have been committed. The timeout bounds all steps and pauses
    /// together; what the closure does besides is its own matter. When the commit's answer is lost, finding out may take a
    /// second more. A future of `run` that is dropped meanwhile leaves open whether the transaction was committed.
    ///
    /// ```no_run
    /// use flotilla_client::{Client, Error, TxnOptions};
    ///
    /// # async fn example(client: &Client) -> Result<(), Error> {
    /// let taken = client
    ///     .run(TxnOptions::default(), |txn| async move {
    ///         let free = txn.get_for_update("seat/12").await?.is_none();
    ///         if free {
    ///             txn.put("seat/12", "ada").await?;
    ///         }
    ///         Ok::<_, Error>(free)
    ///     })
    ///     .await?;
    /// println!("{} after {} attempts", taken.value, taken.attempts);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// It takes the transaction by value, and not by `&mut`, because futures of async closures that borrow cannot be
    /// spawned: the compiler does not see that they are `Send` (rust-lang/rust#110338).
    ///
    /// # Errors
    /// What the closure returned, or as [`OpenTxn::commit`](super::OpenTxn::commit). If time is over, what the last attempt met.
    pub async fn run<T, E, F, Fut>(&self, options: TxnOptions, mut work: F) -> Result<Committed<T>, E>
    where
        F: FnMut(Txn) -> Fut,
        Fut: Future<Output = Result<T, E>>,
        E: From<Error>,
    {
        let deadline = Instant::now() + self.timeout();
        let (mut attempts, mut contended) = (0, BTreeSet::new());
        loop {
            let txn = self.begin_until(options, Some(deadline), std::mem::take(&mut contended)).await?;
            attempts += 1;
            let error = match work(txn.clone()).await {
                Ok(value) => match txn.conversation.lock().await.commit().await {
                    Ok(timestamp) => return Ok(Committed { value, timestamp, attempts }),
                    Err(error) => error.into(),
                },
                Err(error) => error,
            };
            let pause = pause(attempts);
            let redoable = {
                let mut conversation = txn.conversation.lock().await;
                contended = std::mem::take(&mut conversation.contended);
                conversation.redoable
            };
            if !redoable || Instant::now() + pause >= deadline {
                return Err(error);
            }
            // Its locks go before the pause, not after it.
            drop(txn);
            tokio::time::sleep(pause).await;
        }
    }
}

/// A random while, so that those that met do not meet again: full jitter.
fn pause(attempts: u32) -> Duration {
    let longest = PAUSE_MIN.saturating_mul(1 << (attempts - 1).min(16)).min(PAUSE_MAX);
    longest.mul_f64(rand::random_range(0.0..1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_tenth_of_a_second_and_no_further() {
        let longest = |attempts| (0..200).map(|_| pause(attempts)).max().unwrap_or_default();
        assert!(longest(1) <= PAUSE_MIN);
        assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&longest(8)));
        assert!((PAUSE_MAX / 2..=PAUSE_MAX).contains(&longest(u32::MAX)));
    }
}
