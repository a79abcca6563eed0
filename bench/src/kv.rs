//! `flotilla-bench kv`: load, warm up, measure.
//!
//! Closed loop: a client sends its next operation when the last one was answered, so a slow cluster is asked less. The
//! latencies are those of clients that wait, not of arrivals.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use flotilla_client::{Batch, Client, Error, Options};
use indicatif::{ProgressBar, ProgressStyle};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::Kv;
use crate::keys::{Chooser, Values, key};
use crate::record::{Kind, Record};
use crate::report::Run;
use crate::scrape::{Reading, cpu_of};

/// Keys of one batch while loading.
const LOAD_BATCH: u64 = 64;
/// Batches under way while loading.
const LOAD_AT_ONCE: usize = 32;
/// How often the progress line changes.
const PROGRESS: Duration = Duration::from_millis(500);

/// Runs the workload once for each number of clients.
pub(crate) async fn run(args: &Kv) -> Result<Vec<Run>, Failure> {
    let mut options = Options::default();
    options.timeout = args.cluster.timeout;
    options.attempt_timeout = options.attempt_timeout.min(args.cluster.timeout);
    options.connections_per_node = usize::from(args.cluster.connections);
    let client = Client::connect_with(args.cluster.host.clone(), options).await?;
    if args.load {
        load(&client, args).await?;
    }
    let mut runs = Vec::new();
    for clients in &args.clients {
        runs.push(measure(&client, args, *clients).await?);
    }
    Ok(runs)
}

/// Writes every key once. Batches that cross ranges are written key by key.
async fn load(client: &Client, args: &Kv) -> Result<(), Failure> {
    let bar = ProgressBar::new(args.keys);
    style(&bar, "loading {bar:30} {pos} of {len} keys, {per_sec}, {eta} left");
    let began = Instant::now();
    let values = Arc::new(Values::new(args.value_size as usize, &mut StdRng::seed_from_u64(args.seed)));
    let mut tasks = JoinSet::new();
    let mut first = 0;
    while first < args.keys || !tasks.is_empty() {
        if first < args.keys && tasks.len() < LOAD_AT_ONCE {
            let numbers = first..(first + batch_keys(args)).min(args.keys);
            first = numbers.end;
            tasks.spawn(load_batch(client.clone(), Arc::clone(&values), numbers));
            continue;
        }
        if let Some(loaded) = tasks.join_next().await {
            bar.inc(loaded.map_err(|error| Failure::Task(error.to_string()))??);
        }
    }
    bar.finish_and_clear();
    let seconds = began.elapsed().as_secs_f64();
    #[allow(clippy::cast_precision_loss)]
    let rate = args.keys as f64 / seconds;
    eprintln!("loaded {} keys in {seconds:.1} s, {rate:.0} a second", args.keys);
    Ok(())
}

/// Batches stay well below the limit on requests.
fn batch_keys(args: &Kv) -> u64 {
    LOAD_BATCH.min((4 << 20) / u64::from(args.value_size).max(1)).max(1)
}

async fn load_batch(client: Client, values: Arc<Values>, numbers: std::ops::Range<u64>) -> Result<u64, Error> {
    let mut random = StdRng::seed_from_u64(numbers.start);
    let rows: Vec<_> = numbers.map(|number| (key(number), values.next(&mut random))).collect();
    let count = rows.len() as u64;
    let batch = rows.iter().fold(Batch::new(), |batch, (key, value)| batch.put(key.clone(), value.clone()));
    client.batch(batch).await?;
    Ok(count)
}

/// What all clients of a run share.
struct Course {
    args: Kv,
    chooser: Chooser,
    values: Values,
    /// Operations so far, for the progress line.
    done: AtomicU64,
    /// Whether what is done counts.
    counts: AtomicBool,
    stop: AtomicBool,
}

async fn measure(client: &Client, args: &Kv, clients: u32) -> Result<Run, Failure> {
    let course = Arc::new(Course {
        args: args.clone(),
        chooser: Chooser::new(args.distribution, args.keys),
        values: Values::new(args.value_size as usize, &mut StdRng::seed_from_u64(args.seed)),
        done: AtomicU64::new(0),
        counts: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for number in 0..clients {
        tasks.spawn(one_client(client.clone(), Arc::clone(&course), number));
    }
    let bar = ProgressBar::new_spinner();
    style(&bar, "{spinner} {msg}");
    watch(&course, &bar, clients, "warming up", args.warm_up).await;

    let before = Reading::take(&args.cluster).await?;
    let own_before = cpu_of("self").ok();
    course.counts.store(true, Ordering::Relaxed);
    let began = Instant::now();
    watch(&course, &bar, clients, "measuring", args.duration).await;
    course.counts.store(false, Ordering::Relaxed);
    let over = began.elapsed();
    let after = Reading::take(&args.cluster).await?;
    let own = own_before.and_then(|before| Some(cpu_of("self").ok()? - before));

    course.stop.store(true, Ordering::Relaxed);
    let mut record = Record::new();
    while let Some(seen) = tasks.join_next().await {
        record.merge(&seen.map_err(|error| Failure::Task(error.to_string()))?);
    }
    bar.finish_and_clear();
    Ok(Run::new(clients, over, &record, &before, &after, own))
}

/// Shows progress until the time is over.
async fn watch(course: &Course, bar: &ProgressBar, clients: u32, what: &str, duration: Duration) {
    let began = Instant::now();
    let mut last = (began, course.done.load(Ordering::Relaxed));
    while began.elapsed() < duration {
        tokio::time::sleep(PROGRESS.min(duration.saturating_sub(began.elapsed()))).await;
        let now = (Instant::now(), course.done.load(Ordering::Relaxed));
        #[allow(clippy::cast_precision_loss)]
        let rate = (now.1 - last.1) as f64 / (now.0 - last.0).as_secs_f64().max(1e-9);
        let (passed, all) = (began.elapsed().as_secs(), duration.as_secs());
        bar.set_message(format!("{clients} clients, {what} {passed} of {all} s: {rate:.0} operations a second"));
        bar.tick();
        last = now;
    }
}

async fn one_client(client: Client, course: Arc<Course>, number: u32) -> Record {
    let mut random = StdRng::seed_from_u64(course.args.seed ^ (u64::from(number) + 1) << 32);
    let mut record = Record::new();
    while !course.stop.load(Ordering::Relaxed) {
        let key = key(course.chooser.choose(&mut random));
        let kind = if random.random_bool(course.args.read_share) { Kind::Get } else { Kind::Put };
        // An operation counts if it began while it counted: those that end late are the slow ones.
        let counts = course.counts.load(Ordering::Relaxed);
        let began = Instant::now();
        let result = match kind {
            Kind::Get => client.get(key).await.map(|_| ()),
            Kind::Put => client.put(key, course.values.next(&mut random)).await.map(|_| ()),
        };
        course.done.fetch_add(1, Ordering::Relaxed);
        if counts {
            record.add(kind, began.elapsed(), result.as_ref().err());
        }
    }
    record
}

fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
