//! What the cluster says of itself: /metrics of its nodes, and /proc of its processes.

use std::collections::BTreeMap;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::args::ClusterArgs;

/// A node that does not answer within this is left out of the report.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Larger answers are none of ours.
const ANSWER_BYTES_MAX: u64 = 64 << 20;
/// The kernel counts CPU time in hundredths of a second (USER_HZ) on all machines that we run on.
const TICKS_PER_SECOND: f64 = 100.0;

/// Why there are no figures.
#[derive(Debug, Error)]
pub(crate) enum ScrapeError {
    #[error("http://{0}/metrics: {1}")]
    Http(String, std::io::Error),
    #[error("http://{0}/metrics did not answer")]
    Silent(String),
    #[error("process {0}: {1}")]
    Process(u32, std::io::Error),
}

/// Figures of all nodes, added up.
#[derive(Debug, Clone, Default)]
pub(crate) struct Reading {
    /// User and system time of the processes.
    pub(crate) cpu_seconds: Option<f64>,
    /// By metric with its labels.
    pub(crate) metrics: BTreeMap<String, f64>,
}

impl Reading {
    /// Reads all that was named. CPU comes from /proc if process ids were given, else from the metrics.
    pub(crate) async fn take(cluster: &ClusterArgs) -> Result<Self, ScrapeError> {
        let mut reading = Self::default();
        for address in &cluster.http {
            let text = match tokio::time::timeout(TIMEOUT, fetch(address)).await {
                Ok(text) => text.map_err(|error| ScrapeError::Http(address.clone(), error))?,
                Err(_) => return Err(ScrapeError::Silent(address.clone())),
            };
            for (name, value) in parse(&text) {
                *reading.metrics.entry(name.to_owned()).or_default() += value;
            }
        }
        reading.cpu_seconds = if cluster.server_pids.is_empty() {
            reading.metrics.get("process_cpu_seconds_total").copied()
        } else {
            let times = cluster.server_pids.iter().map(|pid| cpu_of(&pid.to_string()).map_err(|e| (*pid, e)));
            Some(times.sum::<Result<f64, _>>().map_err(|(pid, error)| ScrapeError::Process(pid, error))?)
        };
        Ok(reading)
    }

    /// How much a metric grew since `before`; `None` if nobody tells it.
    pub(crate) fn growth(&self, before: &Self, name: &str) -> Option<f64> {
        Some(self.metrics.get(name)? - before.metrics.get(name).copied().unwrap_or(0.0))
    }

    /// How much all metrics of a name with a label grew, added up over their other labels.
    pub(crate) fn growth_of(&self, before: &Self, name: &str, label: &str) -> Option<f64> {
        let matching = self.metrics.keys().filter(|key| {
            key.strip_prefix(name).is_some_and(|labels| labels.starts_with('{') && labels.contains(label))
        });
        let growths: Vec<f64> = matching.filter_map(|key| self.growth(before, key)).collect();
        (!growths.is_empty()).then(|| growths.iter().sum())
    }
}

/// CPU time of a process, or of this one as "self".
pub(crate) fn cpu_of(process: &str) -> std::io::Result<f64> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat"))?;
    // The name stands in parentheses and may hold anything; user and system time are the 12th and 13th field behind it.
    let behind = stat.rsplit_once(')').map_or("", |(_, behind)| behind);
    let ticks: Vec<f64> = behind.split_whitespace().skip(11).take(2).filter_map(|field| field.parse().ok()).collect();
    match ticks[..] {
        [user, system] => Ok((user + system) / TICKS_PER_SECOND),
        _ => Err(std::io::Error::other("its stat makes no sense")),
    }
}

/// One GET in plain HTTP/1.0, so that the answer ends with the connection.
async fn fetch(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(format!("GET /metrics HTTP/1.0\r\nHost: {address}\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.take(ANSWER_BYTES_MAX).read_to_string(&mut answer).await?;
    match answer.split_once("\r\n\r\n") {
        Some((head, body)) if head.split_whitespace().nth(1) == Some("200") => Ok(body.to_owned()),
        _ => Err(std::io::Error::other(answer.lines().next().unwrap_or("an empty answer").to_owned())),
    }
}

/// The samples of Prometheus' text format.
fn parse(text: &str) -> impl Iterator<Item = (&str, f64)> {
    text.lines().filter(|line| !line.starts_with('#')).filter_map(|line| {
        let (name, value) = line.trim().rsplit_once(' ')?;
        Some((name, value.parse().ok()?))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reading(text: &str) -> Reading {
        let metrics = parse(text).map(|(name, value)| (name.to_owned(), value)).collect();
        Reading { cpu_seconds: None, metrics }
    }

    #[test]
    fn growth_is_added_up_over_labels() {
        let before = reading("# TYPE a counter\na 1\nb_sum{step=\"queue\",store=\"1\"} 2\n");
        let after = reading(
            "a 4.5\nb_sum{step=\"queue\",store=\"1\"} 3\nb_sum{step=\"queue\",store=\"2\"} 5\nb_sum{step=\"apply\"} 9\n",
        );
        assert_eq!(after.growth(&before, "a"), Some(3.5));
        assert_eq!(after.growth(&before, "c"), None);
        assert_eq!(after.growth_of(&before, "b_sum", "step=\"queue\""), Some(6.0));
        assert_eq!(after.growth_of(&before, "b", "step=\"queue\""), None);
    }

    #[test]
    fn this_process_has_used_some_cpu() {
        assert!(cpu_of("self").unwrap() >= 0.0);
        assert!(cpu_of("nobody").is_err());
    }
}
