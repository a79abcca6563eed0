//! What came of it: tables for people, JSON for programs.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use crate::args::RunArgs;
use crate::bank::BankFindings;
use crate::counter::CounterFindings;
use crate::record::{Kind, Latency};
use crate::run::Measured;
use crate::txn::TxnFindings;
use crate::ycsb::YcsbFindings;

/// The steps of a write, in their order; see docs/life-of-a-request.md.
const STEPS: [&str; 5] = ["queue", "evaluate", "log_sync", "quorum", "apply"];

/// One run of a workload.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Run {
    clients: u32,
    seconds: f64,
    operations_per_second: f64,
    kinds: Vec<Latency>,
    errors: BTreeMap<String, u64>,
    /// CPU of all nodes for one operation, in microseconds.
    server_cpu_us_per_operation: Option<f64>,
    /// CPU of this harness for one operation, in microseconds.
    client_cpu_us_per_operation: Option<f64>,
    /// Of all nodes together.
    fsyncs_per_second: Option<f64>,
    /// Writes that shared one entry of a raft log, on average.
    writes_per_proposal: Option<f64>,
    /// Mean time of each step of a write.
    write_steps: Vec<Step>,
    /// How many operations the slowest client got done, as a share of the mean.
    slowest_client_share: f64,
    /// What the workload itself looked for.
    #[serde(flatten)]
    findings: Option<Findings>,
}

/// What a workload looks for besides speed.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub(crate) enum Findings {
    Bank(BankFindings),
    Counter(CounterFindings),
    Ycsb(YcsbFindings),
    Txn(TxnFindings),
}

impl Findings {
    /// Whether the cluster kept its promises; `None` if nobody looked.
    fn hold(&self) -> Option<bool> {
        match self {
            Self::Bank(findings) => Some(findings.hold()),
            Self::Counter(findings) => Some(findings.hold()),
            Self::Ycsb(_) | Self::Txn(_) => None,
        }
    }

    fn line(&self) -> String {
        match self {
            Self::Bank(findings) => findings.line(),
            Self::Counter(findings) => findings.line(),
            Self::Ycsb(findings) => findings.line(),
            Self::Txn(findings) => findings.line(),
        }
    }
}

/// One step of a write.
#[derive(Debug, Clone, Serialize)]
struct Step {
    step: &'static str,
    mean_us: f64,
    count: f64,
}

/// What was asked for, and what came of it.
#[derive(Serialize)]
struct Report<'a, A> {
    workload: &'static str,
    version: &'static str,
    connections_per_node: u16,
    #[serde(flatten)]
    asked: &'a A,
    runs: &'a [Run],
}

impl Run {
    #[allow(clippy::cast_precision_loss)]
    pub(crate) fn new(measured: &Measured, findings: Option<Findings>) -> Self {
        let Measured { clients, over, record, before, after, own_cpu, per_client, .. } = measured;
        let over = *over;
        let operations = record.count();
        let per_operation = |seconds: f64| (operations > 0).then(|| seconds * 1e6 / operations as f64);
        let server_cpu = after.cpu_seconds.zip(before.cpu_seconds).map(|(after, before)| after - before);
        let seconds = over.as_secs_f64();
        let puts = record.latency(Kind::Put, over).map(|latency| latency.operations as f64);
        let proposals = after.growth(before, "flotilla_proposals_total").filter(|count| *count > 0.0);
        let step = |step: &'static str| {
            let grown = |part: &str| {
                let name = format!("flotilla_write_step_seconds_{part}");
                after.growth_of(before, &name, &format!("step=\"{step}\""))
            };
            let (sum, count) = (grown("sum")?, grown("count")?);
            (count > 0.0).then(|| Step { step, mean_us: sum * 1e6 / count, count })
        };
        let mean_per_client = per_client.iter().sum::<u64>() as f64 / per_client.len().max(1) as f64;
        let slowest = per_client.iter().min().copied().unwrap_or_default() as f64;
        Self {
            clients: *clients,
            seconds,
            operations_per_second: operations as f64 / seconds,
            kinds: Kind::ALL.iter().filter_map(|kind| record.latency(*kind, over)).collect(),
            errors: record.errors.clone(),
            server_cpu_us_per_operation: server_cpu.and_then(per_operation),
            client_cpu_us_per_operation: own_cpu.and_then(per_operation),
            fsyncs_per_second: after.growth(before, "flotilla_fsyncs_total").map(|fsyncs| fsyncs / seconds),
            writes_per_proposal: puts.zip(proposals).map(|(puts, proposals)| puts / proposals),
            write_steps: STEPS.iter().filter_map(|name| step(name)).collect(),
            slowest_client_share: if mean_per_client > 0.0 { slowest / mean_per_client } else { 0.0 },
            findings,
        }
    }

    /// Whether the run is no good. Where somebody looks whether the cluster kept its promises that decides, so that
    /// faults may be made meanwhile; else an operation that failed does.
    pub(crate) fn failed(&self) -> bool {
        match self.findings.as_ref().and_then(Findings::hold) {
            Some(hold) => !hold || self.kinds.is_empty(),
            None => !self.errors.is_empty(),
        }
    }

    /// The line for programs.
    fn line(&self, workload: &str) -> String {
        let errors = self.errors.values().sum::<u64>();
        let mut line = format!(
            "result workload={workload} ok={} clients={} operations_per_second={:.0} errors={errors} \
             slowest_client_share={:.2}",
            !self.failed(),
            self.clients,
            self.operations_per_second,
            self.slowest_client_share,
        );
        for kind in &self.kinds {
            let (name, ms) = (kind.kind.name(), |micros: u64| micros as f64 / 1e3);
            line += &format!(
                " {name}_per_second={:.0} {name}_p50_ms={:.2} {name}_p99_ms={:.2} {name}_max_ms={:.2}",
                kind.per_second,
                ms(kind.p50_us),
                ms(kind.p99_us),
                ms(kind.max_us),
            );
            if kind.restarts_per_operation > 0.0 {
                line += &format!(" {name}_restarts={:.3}", kind.restarts_per_operation);
            }
        }
        if let Some(findings) = &self.findings {
            line = format!("{line} {}", findings.line());
        }
        line
    }
}

/// Tells people and programs, and says whether all runs were good.
pub(crate) fn tell<A: Serialize>(
    workload: &'static str,
    asked: &A,
    args: &RunArgs,
    runs: &[Run],
) -> std::io::Result<bool> {
    if let Some(path) = &args.json {
        let version = env!("CARGO_PKG_VERSION");
        let report = Report { workload, version, connections_per_node: args.cluster.connections, asked, runs };
        serde_json::to_writer_pretty(File::create(path)?, &report).map_err(std::io::Error::from)?;
    }
    print(workload, runs, &mut std::io::stdout())?;
    Ok(!runs.iter().any(Run::failed))
}

/// Prints the tables, and a line for programs for each run.
fn print(workload: &str, runs: &[Run], to: &mut impl Write) -> std::io::Result<()> {
    let latencies = runs.iter().flat_map(|run| run.kinds.iter().map(|kind| latency_row(run, kind)));
    let header =
        ["clients", "kind", "ops/s", "mean ms", "p50", "p90", "p99", "p99.9", "max", "operations", "restarts/op"];
    writeln!(to, "{}\n", table(&header, latencies))?;
    let header = ["clients", "ops/s", "server µs CPU/op", "client µs CPU/op", "fsyncs/s", "writes/entry", "errors"];
    writeln!(to, "{}", table(&header, runs.iter().map(run_row)))?;
    if runs.iter().any(|run| !run.write_steps.is_empty()) {
        let header: Vec<String> =
            std::iter::once("clients".to_owned()).chain(STEPS.map(|step| format!("{step} µs"))).collect();
        let header: Vec<&str> = header.iter().map(String::as_str).collect();
        writeln!(to, "\nmean time of a write's steps\n{}", table(&header, runs.iter().map(steps_row)))?;
    }
    for run in runs.iter().filter(|run| !run.errors.is_empty()) {
        writeln!(to, "\nerrors with {} clients: {:?}", run.clients, run.errors)?;
    }
    writeln!(to)?;
    for run in runs {
        writeln!(to, "{}", run.line(workload))?;
    }
    Ok(())
}

#[allow(clippy::cast_precision_loss)]
fn latency_row(run: &Run, latency: &Latency) -> Vec<String> {
    let ms = |micros: u64| format!("{:.2}", micros as f64 / 1e3);
    vec![
        run.clients.to_string(),
        latency.kind.name().to_owned(),
        format!("{:.0}", latency.per_second),
        format!("{:.2}", latency.mean_us / 1e3),
        ms(latency.p50_us),
        ms(latency.p90_us),
        ms(latency.p99_us),
        ms(latency.p999_us),
        ms(latency.max_us),
        latency.operations.to_string(),
        format!("{:.3}", latency.restarts_per_operation),
    ]
}

fn run_row(run: &Run) -> Vec<String> {
    let known = |figure: Option<f64>, digits: usize| figure.map_or("-".to_owned(), |f| format!("{f:.digits$}"));
    vec![
        run.clients.to_string(),
        format!("{:.0}", run.operations_per_second),
        known(run.server_cpu_us_per_operation, 1),
        known(run.client_cpu_us_per_operation, 1),
        known(run.fsyncs_per_second, 0),
        known(run.writes_per_proposal, 1),
        run.errors.values().sum::<u64>().to_string(),
    ]
}

fn steps_row(run: &Run) -> Vec<String> {
    let mean = |name: &str| run.write_steps.iter().find(|step| step.step == name).map(|step| step.mean_us);
    let cells = STEPS.map(|name| mean(name).map_or("-".to_owned(), |mean| format!("{mean:.0}")));
    std::iter::once(run.clients.to_string()).chain(cells).collect()
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> Table {
    let mut table = Table::new();
    table.load_preset(presets::UTF8_HORIZONTAL_ONLY).set_header(header).add_rows(rows);
    table.column_iter_mut().for_each(|column| column.set_cell_alignment(CellAlignment::Right));
    table
}
