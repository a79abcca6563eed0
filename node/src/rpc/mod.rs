//! The public services of a node: `flotilla.v1.Kv` and `flotilla.v1.Admin`, health and reflection.
//!
//! ```text
//!   gRPC ──► door (sizes, deadline, room) ──► kv router ──► answer, or a refusal with a stable reason
//!   door.rs                kv.rs, admin.rs                    refusal.rs, docs/errors.md
//! ```

mod admin;
mod convert;
mod door;
mod kv;
mod refusal;
mod site;
mod txn;

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use flotilla_proto::v1::admin_server::AdminServer;
use flotilla_proto::v1::kv_server::KvServer;
use thiserror::Error;
use tokio::net::TcpListener;
use tonic::service::Routes;
use tonic::transport::Server;

pub use door::DoorConfig;
pub use site::{InitError, NodeView, ReplicaView, Site};

use admin::AdminService;
use door::Door;
use kv::KvService;

/// A client that vanished without a word is noticed within the two: not later than a dead gateway would be, since others may be
/// waiting for what its transaction has locked.
const KEEPALIVE: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(3);
/// Receive windows: large enough for values of some MiB over long distances. A stream's is a small part of the connection's: the
/// library closes a connection whose unread small frames fill too much of it, as many steps of one transaction sent at once would.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 16 << 20;

/// The services could not be offered.
#[derive(Debug, Error)]
pub enum ServeError {
    /// The sockets failed.
    #[error("serve clients: {0}")]
    Transport(#[from] tonic::transport::Error),
    /// The descriptors that reflection tells are damaged: a bad build.
    #[error("describe the services: {0}")]
    Reflection(#[from] tonic_reflection::server::Error),
}

/// Tells the health service when the node serves and when not.
pub type Health = tonic_health::server::HealthReporter;

/// The services, and the handle that says how they are.
///
/// # Errors
/// The build is damaged.
pub async fn services(site: Arc<dyn Site>, config: DoorConfig) -> Result<(Routes, Health), ServeError> {
    let max = config.limits.message_bytes();
    let door = Door::new(site, config);
    let kv = KvServer::new(KvService { door: door.clone() });
    let admin = AdminServer::new(AdminService { door });
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_not_serving::<KvServer<KvService>>().await;
    reporter.set_serving::<AdminServer<AdminService>>().await;
    let describe = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(flotilla_proto::v1::DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    // Clients in the field still ask by the older of the two names.
    let (reflection, older) = (describe().build_v1()?, describe().build_v1alpha()?);
    let routes = Routes::new(kv.max_decoding_message_size(max).max_encoding_message_size(max))
        .add_service(admin.max_decoding_message_size(max).max_encoding_message_size(max))
        .add_service(health)
        .add_service(reflection)
        .add_service(older);
    Ok((routes, reporter))
}

/// Says whether requests for data are answered.
pub async fn report(health: &Health, serving: bool) {
    if serving {
        health.set_serving::<KvServer<KvService>>().await;
        health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    } else {
        health.set_not_serving::<KvServer<KvService>>().await;
        health.set_service_status("", tonic_health::ServingStatus::NotServing).await;
    }
}

/// Serves until `stop` resolves; then answers what is in flight and returns.
///
/// # Errors
/// The sockets failed.
pub async fn serve(routes: Routes, listener: TcpListener, stop: impl Future<Output = ()>) -> Result<(), ServeError> {
    let incoming = tonic::transport::server::TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .initial_stream_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .add_routes(routes);
    Ok(server.serve_with_incoming_shutdown(incoming, stop).await?)
}
