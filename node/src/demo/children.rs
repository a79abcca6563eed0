//! The demo's nodes: child processes of the same binary. Each holds the reading end of a pipe whose other end this process
//! holds, and ends when that closes: so no node outlives the demo, however the demo ends.

use std::fs::OpenOptions;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use flotilla_client::Client;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::process::{Child, Command};

use super::{DemoError, PAUSE, failed};

/// How long a graceful stop may take before it is a kill.
const STOP: Duration = Duration::from_secs(15);

/// A node could not be run.
#[derive(Debug, Error)]
pub enum ChildError {
    /// The system refused.
    #[error("{doing}: {source}")]
    System {
        /// What was being done.
        doing: &'static str,
        /// The system's word.
        source: std::io::Error,
    },
    /// It ended by itself.
    #[error("node {number} ended with {status}; its log is {log}")]
    Ended {
        /// Which, counted from 1.
        number: usize,
        /// How.
        status: std::process::ExitStatus,
        /// Where to look.
        log: PathBuf,
    },
}

fn system(doing: &'static str) -> impl Fn(std::io::Error) -> ChildError {
    move |source| ChildError::System { doing, source }
}

/// Addresses of one node: clients, peers, HTTP.
struct Ports {
    client: String,
    peer: String,
    http: String,
}

/// All nodes of the demo.
pub(super) struct Children {
    dir: PathBuf,
    ports: Vec<Ports>,
    clients: Vec<String>,
    children: Vec<Option<Child>>,
}

impl Children {
    /// Starts the nodes and waits until each answers something.
    pub(super) async fn start(dir: &Path, count: u16) -> Result<Self, DemoError> {
        let ports = free_ports(usize::from(count)).map_err(system("find free ports"))?;
        let clients = ports.iter().map(|ports| ports.client.clone()).collect();
        let mut nodes = Self { dir: dir.to_owned(), ports, clients, children: Vec::new() };
        for n in 0..usize::from(count) {
            let child = nodes.spawn(n)?;
            nodes.children.push(Some(child));
        }
        for n in 0..usize::from(count) {
            nodes.answers(n).await?;
        }
        Ok(nodes)
    }

    pub(super) fn client_addresses(&self) -> &[String] {
        &self.clients
    }

    pub(super) fn http_addresses(&self) -> Vec<&str> {
        self.ports.iter().map(|ports| ports.http.as_str()).collect()
    }

    fn log(&self, n: usize) -> PathBuf {
        self.dir.join(format!("node{}.log", n + 1))
    }

    fn spawn(&self, n: usize) -> Result<Child, ChildError> {
        let program = std::env::current_exe().map_err(system("find this program"))?;
        let log =
            OpenOptions::new().create(true).append(true).open(self.log(n)).map_err(system("open a node's log"))?;
        let errors = log.try_clone().map_err(system("open a node's log"))?;
        let peers: Vec<&str> = self.ports.iter().map(|ports| ports.peer.as_str()).collect();
        let ports = &self.ports[n];
        Command::new(program)
            .arg("start")
            .args(["--insecure", "--until-stdin-closes", "--cache", "64MiB"])
            .arg("--store")
            .arg(self.dir.join(format!("node{}", n + 1)))
            .args(["--listen", &ports.client, "--peer-listen", &ports.peer, "--http", &ports.http])
            .args(["--join", &peers.join(","), "--locality", &format!("dc=demo-{}", n + 1)])
            .stdin(Stdio::piped())
            .stdout(log)
            .stderr(errors)
            // A Ctrl-C is for the demo, which then stops its nodes.
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(system("start a node"))
    }

    /// Waits until a node listens.
    async fn answers(&mut self, n: usize) -> Result<(), DemoError> {
        let started = Instant::now();
        while TcpStream::connect(&self.ports[n].client).await.is_err() {
            self.check(n)?;
            if started.elapsed() > super::STEP {
                return Err(DemoError::Slow(format!("node {} listens", n + 1)));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    fn check(&mut self, n: usize) -> Result<(), ChildError> {
        let log = self.log(n);
        let Some(child) = &mut self.children[n] else { return Ok(()) };
        match child.try_wait().map_err(system("look after a node"))? {
            Some(status) => Err(ChildError::Ended { number: n + 1, status, log }),
            None => Ok(()),
        }
    }

    /// Waits until a node says that it serves.
    pub(super) async fn serves(&mut self, n: usize, patience: Duration) -> Result<(), DemoError> {
        let started = Instant::now();
        while !healthy(&self.ports[n].http).await {
            self.check(n)?;
            if started.elapsed() > patience {
                return Err(DemoError::Slow(format!("node {} serves", n + 1)));
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Waits until all nodes serve.
    pub(super) async fn all_serve(&self, patience: Duration) -> Result<(), DemoError> {
        for (n, ports) in self.ports.iter().enumerate() {
            let started = Instant::now();
            while !healthy(&ports.http).await {
                if started.elapsed() > patience {
                    return Err(DemoError::Slow(format!("node {} serves", n + 1)));
                }
                tokio::time::sleep(PAUSE).await;
            }
        }
        Ok(())
    }

    /// The number of each node in the cluster.
    pub(super) async fn node_ids(&self, client: &Client) -> Result<Vec<u64>, DemoError> {
        let nodes = client.nodes().await.map_err(failed("list the nodes"))?;
        let id = |address: &String| nodes.iter().find(|node| node.address == *address).map_or(0, |node| node.node_id);
        Ok(self.clients.iter().map(id).collect())
    }

    /// kill -9; the process is gone when this returns.
    pub(super) async fn kill(&mut self, n: usize) -> Result<(), ChildError> {
        if let Some(mut child) = self.children[n].take() {
            child.kill().await.map_err(system("kill a node"))?;
        }
        Ok(())
    }

    /// Starts a killed node again, on its store.
    pub(super) async fn restart(&mut self, n: usize) -> Result<(), DemoError> {
        self.children[n] = Some(self.spawn(n)?);
        self.answers(n).await
    }

    /// Stops all nodes, gracefully if they manage.
    pub(super) async fn stop(&mut self) {
        for child in self.children.iter().flatten() {
            let pid = child.id().and_then(|pid| i32::try_from(pid).ok()).and_then(rustix::process::Pid::from_raw);
            if let Some(pid) = pid {
                // It may be gone already.
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
            }
        }
        for child in self.children.iter_mut().flatten() {
            if tokio::time::timeout(STOP, child.wait()).await.is_err() {
                let _ = child.kill().await;
            }
        }
    }
}

/// Ports that nobody uses at this moment. Another process may take one before the node does: then the node says so.
fn free_ports(count: usize) -> std::io::Result<Vec<Ports>> {
    let held: Vec<TcpListener> = (0..count * 3).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<_, _>>()?;
    let addresses: Vec<String> =
        held.iter().map(|held| Ok(held.local_addr()?.to_string())).collect::<std::io::Result<_>>()?;
    let node = |three: &[String]| Ports { client: three[0].clone(), peer: three[1].clone(), http: three[2].clone() };
    Ok(addresses.chunks_exact(3).map(node).collect())
}

/// Whether /healthz says 200.
async fn healthy(address: &str) -> bool {
    let ask = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /healthz HTTP/1.0\r\n\r\n").await?;
        let mut answer = String::new();
        stream.take(4096).read_to_string(&mut answer).await?;
        std::io::Result::Ok(answer)
    };
    match tokio::time::timeout(Duration::from_secs(2), ask).await {
        Ok(Ok(answer)) => answer.split_whitespace().nth(1) == Some("200"),
        _ => false,
    }
}
