//! What people and Prometheus look at: `/metrics` and `/healthz`.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use metrics_exporter_prometheus::{BuildError, PrometheusBuilder, PrometheusHandle};
use tokio::net::TcpListener;

/// How often histograms are folded, so that they do not grow between two scrapes.
const UPKEEP: Duration = Duration::from_secs(5);

/// Says why the node does not serve, if it does not.
pub type Ailing = Arc<dyn Fn() -> Option<String> + Send + Sync>;
/// Sets the gauges that nobody keeps up to date while nobody looks.
pub type Measure = Arc<dyn Fn() + Send + Sync>;

#[derive(Clone)]
struct Pages {
    metrics: Option<PrometheusHandle>,
    ailing: Ailing,
    measure: Measure,
}

/// Installs the recorder that everything in the process counts with. Once per process, before anything counts.
///
/// # Errors
/// There is one already.
pub fn install_metrics() -> Result<PrometheusHandle, BuildError> {
    PrometheusBuilder::new().install_recorder()
}

/// Serves until `stop` resolves.
///
/// # Errors
/// The socket failed.
pub async fn serve(
    listener: TcpListener,
    metrics: Option<PrometheusHandle>,
    ailing: Ailing,
    measure: Measure,
    stop: impl Future<Output = ()> + Send + 'static,
) -> std::io::Result<()> {
    let pages = Pages { metrics, ailing, measure };
    let upkeep = pages.metrics.clone();
    let routes =
        Router::new().route("/metrics", get(show_metrics)).route("/healthz", get(show_health)).with_state(pages);
    let served = axum::serve(listener, routes).with_graceful_shutdown(stop).into_future();
    let keep = async {
        loop {
            tokio::time::sleep(UPKEEP).await;
            if let Some(metrics) = &upkeep {
                metrics.run_upkeep();
            }
        }
    };
    tokio::select! {
        ended = served => ended,
        () = keep => Ok(()),
    }
}

async fn show_metrics(State(pages): State<Pages>) -> Response {
    let Some(metrics) = pages.metrics else {
        return (StatusCode::NOT_FOUND, "this process keeps no metrics\n").into_response();
    };
    (pages.measure)();
    let mut text = metrics.render();
    text.push_str(&process());
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn show_health(State(pages): State<Pages>) -> Response {
    match (pages.ailing)() {
        None => "ok\n".into_response(),
        Some(why) => (StatusCode::SERVICE_UNAVAILABLE, format!("{why}\n")).into_response(),
    }
}

/// What the system knows of this process, under the names that Prometheus' own clients use.
fn process() -> String {
    let mut text = String::new();
    let mut sample = |name: &str, kind: &str, value: f64| {
        text.push_str(&format!("# TYPE {name} {kind}\n{name} {value}\n"));
    };
    if let Some(seconds) = cpu_seconds() {
        sample("process_cpu_seconds_total", "counter", seconds);
    }
    if let Some(bytes) = resident_bytes() {
        sample("process_resident_memory_bytes", "gauge", bytes);
    }
    text
}

/// User and system time, from `/proc/self/stat`; `None` where there is no such file.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/self/stat").ok()?;
    // The name in parentheses may hold anything; the times are the 12th and 13th field behind it.
    let (_, behind) = stat.rsplit_once(')')?;
    let mut fields = behind.split_whitespace().skip(11);
    let (user, system): (f64, f64) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
    #[allow(clippy::cast_precision_loss)]
    let per_second = rustix::param::clock_ticks_per_second() as f64;
    Some((user + system) / per_second)
}

fn resident_bytes() -> Option<f64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: f64 = statm.split_whitespace().nth(1)?.parse().ok()?;
    #[allow(clippy::cast_precision_loss)]
    let size = rustix::param::page_size() as f64;
    Some(pages * size)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_knows_what_it_costs() {
        let text = process();
        assert!(
            text.contains("process_cpu_seconds_total ") && text.contains("process_resident_memory_bytes "),
            "{text}"
        );
    }
}
