//! `flotilla demo`: a whole cluster on this machine, work on it, a node killed under that work, and all of it counted.
//!
//! ```text
//!  start N nodes ─► init ─► three replicas ─► split ─► write ─► kill -9 one ─► write on ─► start it again ─► verify
//! ```
//! The nodes are processes of their own, so that a kill is a kill: what was not on the disk is gone.

mod children;
mod work;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Args;
use flotilla_client::{Client, Error as ClientError, Options, messages};
use flotilla_types::{KeySpan, keys};
use thiserror::Error;

use children::{ChildError, Children};
use work::{Gap, Work};

/// The demo writes at least so much before and again after the kill.
const WRITES_BEFORE: usize = 600;
const WRITES_AFTER: usize = 1200;
/// Ranges that the work goes to.
const RANGES: usize = 6;
/// How long one step may take on a slow machine.
const STEP: Duration = Duration::from_secs(90);
const PAUSE: Duration = Duration::from_millis(100);

/// Options of `flotilla demo`.
#[derive(Debug, Clone, Args)]
pub struct DemoArgs {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    pub nodes: u16,
    /// Where the stores lie. Left out: in a temporary directory, which is removed in the end.
    #[arg(long, value_name = "DIR")]
    pub store: Option<PathBuf>,
}

/// The demo could not show what it is there to show.
#[derive(Debug, Error)]
pub enum DemoError {
    /// A node.
    #[error(transparent)]
    Child(#[from] ChildError),
    /// A call.
    #[error("{doing}: {source}")]
    Client {
        /// What was being done.
        doing: &'static str,
        /// What came of it.
        source: Box<ClientError>,
    },
    /// A step took too long.
    #[error("{STEP:?} passed and still not: {0}")]
    Slow(String),
    /// Something lies where the stores should.
    #[error("{} is not empty: the demo wants an empty directory", .0.display())]
    NotEmpty(PathBuf),
    /// Acknowledged data is not there.
    #[error("{0}")]
    Lost(String),
    /// The machine.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
}

fn failed(doing: &'static str) -> impl Fn(ClientError) -> DemoError {
    move |source| DemoError::Client { doing, source: Box::new(source) }
}

/// Runs the demo and tells on standard output. The exit status is 0 only if nothing that was acknowledged is missing.
pub async fn run(args: DemoArgs) -> ExitCode {
    let mut say = Say;
    match show(&args, &mut say).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Speaks to whoever watches. A closed pipe does not end the demo: its exit status still counts.
struct Say;

impl Say {
    fn line(&mut self, text: impl AsRef<str>) {
        let mut out = std::io::stdout().lock();
        let _ = writeln!(out, "{}", text.as_ref()).and_then(|()| out.flush());
    }
}

async fn show(args: &DemoArgs, say: &mut Say) -> Result<(), DemoError> {
    let place = Place::new(args.store.as_deref())?;
    let mut nodes = Children::start(&place.dir, args.nodes).await?;
    say.line(format!("{} nodes start; stores and logs in {}", args.nodes, place.dir.display()));
    let client = cluster(&nodes).await?;
    let voters = if args.nodes >= 3 { 3 } else { 1 };
    replicated(&client, voters).await?;
    split(&client, usize::from(args.nodes)).await?;
    let ranges = ranges(&client).await?;
    say.line(format!("a cluster of {} nodes, {} ranges of {voters} replicas", args.nodes, ranges.len()));

    let work = Work::start(client.clone(), RANGES);
    work.wait_for(WRITES_BEFORE, STEP).await?;
    let gaps = if args.nodes >= 3 { kill_one(&mut nodes, &client, &work, say).await? } else { Vec::new() };
    work.wait_for(WRITES_BEFORE + WRITES_AFTER, STEP).await?;
    let written = work.stop().await;
    say.line(format!("{} writes acknowledged, {} in doubt", written.acknowledged.len(), written.doubtful));

    let mut lost = 0;
    for address in nodes.client_addresses() {
        let missing = work::verify(address, &written.acknowledged).await?;
        say.line(format!(
            "through {address}: {} of them read back, {missing} missing",
            written.acknowledged.len() - missing
        ));
        lost = lost.max(missing);
    }
    if lost == 0 {
        connect(args, &nodes, say).await;
    }
    nodes.stop().await;
    drop(place);
    let longest = gaps.iter().map(|gap| gap.longest.as_millis()).max().unwrap_or(0);
    let acknowledged = written.acknowledged.len();
    say.line(format!(
        "result acknowledged={acknowledged} verified={} lost={lost} longest_gap_ms={longest}",
        acknowledged - lost
    ));
    if lost > 0 { Err(DemoError::Lost(format!("{lost} acknowledged writes are missing"))) } else { Ok(()) }
}

/// Makes one cluster of the nodes.
async fn cluster(nodes: &Children) -> Result<Client, DemoError> {
    let first = Client::connect([nodes.client_addresses()[0].clone()]).await.map_err(failed("reach the first node"))?;
    let client = Client::connect(nodes.client_addresses().to_vec()).await.map_err(failed("reach the nodes"))?;
    let count = nodes.client_addresses().len();
    first.init().await.map_err(failed("make a cluster"))?;
    until("all nodes are live members", || async {
        let live = client.nodes().await.ok()?.iter().filter(|node| node.live).count();
        (live == count).then_some(())
    })
    .await?;
    nodes.all_serve(STEP).await?;
    Ok(client)
}

/// Waits until every range has as many replicas as it should.
async fn replicated(client: &Client, voters: usize) -> Result<(), DemoError> {
    until("every range has all its replicas", || async {
        let ranges = client.ranges(&KeySpan::ALL, 0).await.ok()?;
        let full = |range: &messages::Range| {
            range.descriptor.as_ref().is_some_and(|descriptor| {
                let votes = |kind| kind == messages::ReplicaKind::Voter;
                descriptor.replicas.len() == voters && descriptor.replicas.iter().all(|replica| votes(replica.kind()))
            })
        };
        ranges.iter().all(full).then_some(())
    })
    .await
}

/// Cuts the keys of the work into ranges and spreads their leaders.
async fn split(client: &Client, nodes: usize) -> Result<(), DemoError> {
    for range in 0..RANGES {
        let key = keys::user(work::prefix(range).as_bytes());
        until("a range is split", || async { client.split(&key).await.ok() }).await?;
    }
    for (n, range) in ranges(client).await?.iter().enumerate() {
        let Some(descriptor) = &range.descriptor else { continue };
        let Some(to) = descriptor.replicas.get(n % nodes.min(descriptor.replicas.len())) else { continue };
        // Where leaders stand makes the show better, and nothing else: it goes on without.
        if let Err(error) = client.transfer_leader(descriptor.range_id, to.store_id).await {
            tracing::info!(range = descriptor.range_id, %error, "its leader stays where it is");
        }
    }
    Ok(())
}

async fn ranges(client: &Client) -> Result<Vec<messages::Range>, DemoError> {
    client.ranges(&keys::user_span(), 0).await.map_err(failed("list the ranges"))
}

/// Kills the node that leads most of the ranges written to, under load, and starts it again when all ranges go on.
async fn kill_one(nodes: &mut Children, client: &Client, work: &Work, say: &mut Say) -> Result<Vec<Gap>, DemoError> {
    let led = ranges(client).await?;
    let leads = |node: &usize| led.iter().filter(|range| range.leaseholder == Some(*node as u64 + 1)).count();
    let ids = nodes.node_ids(client).await?;
    let victim = (0..ids.len()).max_by_key(|n| {
        let store = usize::try_from(ids[*n]).unwrap_or(0);
        store.checked_sub(1).map_or(0, |n| leads(&n))
    });
    let victim = victim.unwrap_or(0);
    let before = work.acknowledged();
    let killed_at = Instant::now();
    nodes.kill(victim).await?;
    say.line(format!("node {} killed with SIGKILL after {before} acknowledged writes", ids[victim]));
    work.recovered(killed_at, STEP).await?;
    // The others go on by themselves for a while.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let gaps = work.gaps(killed_at);
    nodes.restart(victim).await?;
    nodes.serves(victim, STEP).await?;
    say.line(format!("node {} started again and serves", ids[victim]));
    say.line(format!("{:<10} {:<14} {:>12}   led by the killed node", "range", "from key", "gap"));
    for (gap, range) in gaps.iter().zip(led.iter().skip(led.len().saturating_sub(gaps.len()))) {
        let id = range.descriptor.as_ref().map_or(0, |descriptor| descriptor.range_id);
        let mark = if range.leaseholder == Some(ids[victim]) { "yes" } else { "no" };
        say.line(format!("{:<10} {:<14} {:>9} ms   {mark}", format!("r{id}"), gap.prefix, gap.longest.as_millis()));
    }
    Ok(gaps)
}

/// Says how to connect, and on a terminal leaves the time to do it.
async fn connect(args: &DemoArgs, nodes: &Children, say: &mut Say) {
    let addresses = nodes.client_addresses().join(",");
    say.line(format!("to connect: flotilla kv scan --host {addresses}"));
    say.line(format!("            flotilla node ls --host {addresses}"));
    say.line(format!("            curl http://{}/metrics", nodes.http_addresses()[0]));
    if args.nodes > 0 && std::io::stdout().is_terminal() {
        say.line("the cluster stays up until Ctrl-C");
        let _ = tokio::signal::ctrl_c().await;
    }
}

/// Asks again and again until there is an answer.
async fn until<T, F, Fut>(what: &str, mut ask: F) -> Result<T, DemoError>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Option<T>>,
{
    let started = Instant::now();
    loop {
        if let Some(answer) = ask().await {
            return Ok(answer);
        }
        if started.elapsed() > STEP {
            return Err(DemoError::Slow(what.to_owned()));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// A client of one node alone.
async fn only(address: &str) -> Result<Client, DemoError> {
    let mut options = Options::default();
    options.learn_nodes = false;
    Client::connect_with([address.to_owned()], options).await.map_err(failed("reach a node"))
}

/// Where the stores lie; a temporary place is removed in the end.
struct Place {
    dir: PathBuf,
    temporary: bool,
}

impl Place {
    fn new(given: Option<&Path>) -> Result<Self, DemoError> {
        let temporary = given.is_none();
        let name = format!("flotilla-demo-{}", std::process::id());
        let dir = given.map_or_else(|| std::env::temp_dir().join(name), Path::to_path_buf);
        let failed = |source| DemoError::System { doing: "make the directory of the stores", source };
        std::fs::create_dir_all(&dir).map_err(failed)?;
        if std::fs::read_dir(&dir).map_err(failed)?.next().is_some() {
            return Err(DemoError::NotEmpty(dir));
        }
        Ok(Self { dir, temporary })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        if self.temporary {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
    }
}
