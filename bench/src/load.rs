//! Writing the rows that a workload starts from.

use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use flotilla_client::{Batch, Client, Error};
use indicatif::ProgressBar;
use tokio::task::JoinSet;

use crate::Failure;
use crate::run::style;

/// Keys of one batch.
const BATCH: u64 = 64;
/// Bytes of one batch, well below the limit on requests.
const BATCH_BYTES: u64 = 4 << 20;
/// Batches under way.
const AT_ONCE: usize = 32;

/// Rows by number, all of about the same size.
pub(crate) trait Rows: Send + Sync + 'static {
    /// The row of a number.
    fn row(&self, number: u64) -> (Bytes, Bytes);

    /// Bytes of a value.
    fn value_size(&self) -> u32;
}

/// Writes the rows below `count`, each once.
pub(crate) async fn load(client: &Client, rows: Arc<impl Rows>, count: u64) -> Result<(), Failure> {
    let bar = ProgressBar::new(count);
    style(&bar, "loading {bar:30} {pos} of {len} keys, {per_sec}, {eta} left");
    let began = Instant::now();
    let batch = BATCH.min(BATCH_BYTES / u64::from(rows.value_size()).max(1)).max(1);
    let mut tasks = JoinSet::new();
    let mut first = 0;
    while first < count || !tasks.is_empty() {
        if first < count && tasks.len() < AT_ONCE {
            let numbers = first..(first + batch).min(count);
            first = numbers.end;
            tasks.spawn(load_batch(client.clone(), Arc::clone(&rows), numbers));
            continue;
        }
        if let Some(loaded) = tasks.join_next().await {
            bar.inc(loaded.map_err(|error| Failure::Task(error.to_string()))??);
        }
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = count as f64 / seconds;
    eprintln!("loaded {count} keys in {seconds:.1} s, {rate:.0} a second");
    Ok(())
}

async fn load_batch(client: Client, rows: Arc<impl Rows>, numbers: std::ops::Range<u64>) -> Result<u64, Error> {
    let count = numbers.end - numbers.start;
    let batch = numbers.map(|number| rows.row(number)).fold(Batch::new(), |batch, (key, value)| batch.put(key, value));
    client.batch(batch).await?;
    Ok(count)
}
