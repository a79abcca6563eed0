//! One run of a workload: warm up, measure, and look at the cluster before and after.
//!
//! Closed loop: a client sends its next operation when the last one was answered, so a slow cluster is asked less. The
//! latencies are those of clients that wait, not of arrivals.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use flotilla_client::{Client, Error, Options};
use indicatif::{ProgressBar, ProgressStyle};
use rand::SeedableRng;
use rand::rngs::StdRng;
use tokio::task::JoinSet;

use crate::Failure;
use crate::args::{ClusterArgs, RunArgs};
use crate::record::{Kind, Record};
use crate::scrape::{Reading, cpu_of};

/// How often the progress line changes.
const PROGRESS: Duration = Duration::from_millis(500);

/// What clients do.
pub(crate) trait Workload: Send + Sync + 'static {
    /// Does one operation.
    fn operate(&self, client: &Client, turn: Turn<'_>) -> impl Future<Output = Done> + Send;

    /// Clients beyond those that were asked for, with the numbers behind theirs.
    fn watchers(&self) -> u32 {
        0
    }

    /// The modes that take turns within the measured time, by number.
    fn turns(&self) -> Vec<usize> {
        vec![0]
    }
}

/// Whose turn it is.
pub(crate) struct Turn<'a> {
    /// Which client.
    pub(crate) client: u32,
    /// Which mode.
    pub(crate) mode: usize,
    /// The client's random numbers.
    pub(crate) random: &'a mut StdRng,
}

/// An operation that ended.
pub(crate) struct Done {
    pub(crate) kind: Kind,
    /// How often a transaction was begun again.
    pub(crate) restarts: u64,
    pub(crate) result: Result<(), Error>,
}

impl Done {
    /// An operation that is no transaction of the client's.
    pub(crate) fn plain<T>(kind: Kind, result: Result<T, Error>) -> Self {
        Self { kind, restarts: 0, result: result.map(|_| ()) }
    }
}

/// What was measured.
pub(crate) struct Measured {
    pub(crate) clients: u32,
    pub(crate) over: Duration,
    /// What all clients saw.
    pub(crate) record: Record,
    /// Operations of each client that was asked for.
    pub(crate) per_client: Vec<u64>,
    pub(crate) before: Reading,
    pub(crate) after: Reading,
    /// CPU of this process, in seconds.
    pub(crate) own_cpu: Option<f64>,
    /// What the modes cost, by number.
    pub(crate) modes: Vec<ModeCost>,
}

/// What one mode cost.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct ModeCost {
    pub(crate) over: Duration,
    /// CPU of all nodes, in seconds; `None` if nobody tells it.
    pub(crate) server_cpu: Option<f64>,
}

/// What all clients of a run share.
struct Course<W> {
    workload: W,
    seed: u64,
    /// Operations so far, for the progress line.
    done: AtomicU64,
    mode: AtomicUsize,
    /// Whether what is done counts.
    counts: AtomicBool,
    stop: AtomicBool,
}

/// A client of the cluster under test.
pub(crate) async fn connect(args: &ClusterArgs) -> Result<Client, Failure> {
    let mut options = Options::default();
    options.timeout = args.timeout;
    options.attempt_timeout = options.attempt_timeout.min(args.timeout);
    options.connections_per_node = usize::from(args.connections);
    Ok(Client::connect_with(args.host.clone(), options).await?)
}

/// Runs a workload with so many clients, and hands it back.
pub(crate) async fn measure<W: Workload>(
    client: &Client,
    workload: W,
    args: &RunArgs,
    clients: u32,
) -> Result<(Measured, W), Failure> {
    let turns = workload.turns();
    let all = clients + workload.watchers();
    let course = Arc::new(Course {
        workload,
        seed: args.seed,
        done: AtomicU64::new(0),
        mode: AtomicUsize::new(turns.first().copied().unwrap_or_default()),
        counts: AtomicBool::new(false),
        stop: AtomicBool::new(false),
    });
    let mut tasks = JoinSet::new();
    for number in 0..all {
        tasks.spawn(one_client(client.clone(), Arc::clone(&course), number));
    }
    let bar = ProgressBar::new_spinner();
    style(&bar, "{spinner} {msg}");
    watch(&course, &bar, clients, "warming up", args.warm_up).await;

    let mut readings = vec![Reading::take(&args.cluster).await?];
    let mut modes = vec![ModeCost::default(); turns.iter().max().map_or(0, |last| last + 1)];
    let own_before = cpu_of("self").ok();
    course.counts.store(true, Ordering::Relaxed);
    let began = Instant::now();
    let slice = args.duration / u32::try_from(turns.len()).unwrap_or(u32::MAX).max(1);
    for mode in turns {
        let turn = Instant::now();
        course.mode.store(mode, Ordering::Relaxed);
        watch(&course, &bar, clients, "measuring", slice).await;
        let now = Reading::take(&args.cluster).await?;
        let cpu = readings.last().and_then(|before| Some(now.cpu_seconds? - before.cpu_seconds?));
        modes[mode].over += turn.elapsed();
        modes[mode].server_cpu = cpu.map(|cpu| cpu + modes[mode].server_cpu.unwrap_or_default());
        readings.push(now);
    }
    course.counts.store(false, Ordering::Relaxed);
    let over = began.elapsed();
    let own_cpu = own_before.and_then(|before| Some(cpu_of("self").ok()? - before));

    course.stop.store(true, Ordering::Relaxed);
    let (mut record, mut per_client) = (Record::new(), vec![0; clients as usize]);
    while let Some(seen) = tasks.join_next().await {
        let (number, seen) = seen.map_err(|error| Failure::Task(error.to_string()))?;
        if let Some(count) = per_client.get_mut(number as usize) {
            *count = seen.count();
        }
        record.merge(&seen);
    }
    bar.finish_and_clear();
    let course =
        Arc::into_inner(course).ok_or_else(|| Failure::Task("it did not let go of the workload".to_owned()))?;
    let after = readings.pop().unwrap_or_default();
    let before = readings.drain(..).next().unwrap_or_default();
    Ok((Measured { clients, over, record, per_client, before, after, own_cpu, modes }, course.workload))
}

/// Shows progress until the time is over.
async fn watch<W>(course: &Course<W>, bar: &ProgressBar, clients: u32, what: &str, duration: Duration) {
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

async fn one_client<W: Workload>(client: Client, course: Arc<Course<W>>, number: u32) -> (u32, Record) {
    let mut random = StdRng::seed_from_u64(course.seed ^ (u64::from(number) + 1) << 32);
    let mut record = Record::new();
    while !course.stop.load(Ordering::Relaxed) {
        let mode = course.mode.load(Ordering::Relaxed);
        // An operation counts if it began while it counted: those that end late are the slow ones.
        let counts = course.counts.load(Ordering::Relaxed);
        let began = Instant::now();
        let done = course.workload.operate(&client, Turn { client: number, mode, random: &mut random }).await;
        course.done.fetch_add(1, Ordering::Relaxed);
        if counts {
            record.add(&done, began.elapsed());
        }
    }
    (number, record)
}

pub(crate) fn style(bar: &ProgressBar, template: &str) {
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
}
