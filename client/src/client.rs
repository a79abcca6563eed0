//! The client: a handle on the cluster, cheap to clone.

use std::future::Future;
use std::sync::Arc;
use std::time::{Duration, Instant};

use flotilla_proto::v1;
use flotilla_proto::v1::admin_client::AdminClient;
use flotilla_proto::v1::kv_client::KvClient;
use flotilla_types::RequestId;
use tokio::task::AbortHandle;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::births::Births;
use crate::call::{Answer, Bounds, Repeat, call};
use crate::pool::Pool;
use crate::{Error, Options};

/// Between two questions for the cluster's time.
const TIME_PAUSE: Duration = Duration::from_millis(50);

/// A handle on a cluster. Clones share connections; a dropped last one closes them.
#[derive(Clone)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
    timeout: Duration,
    resumed: Option<RequestId>,
}

/// What clones share.
pub(crate) struct Shared {
    pub(crate) pool: Arc<Pool>,
    pub(crate) options: Options,
    pub(crate) births: Arc<Births>,
    learner: Option<AbortHandle>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        if let Some(learner) = &self.learner {
            learner.abort();
        }
    }
}

impl Client {
    /// Connects to a cluster through some of its nodes (`host:port`); the others are learnt.
    ///
    /// # Errors
    /// `BadEndpoint` for what is no address, `Unreachable` if no node answered in time.
    pub async fn connect<A: Into<String>>(addresses: impl IntoIterator<Item = A>) -> Result<Self, Error> {
        Self::connect_with(addresses, Options::default()).await
    }

    /// [`Client::connect`] with options of one's own.
    ///
    /// # Errors
    /// As `connect`.
    pub async fn connect_with<A: Into<String>>(
        addresses: impl IntoIterator<Item = A>,
        options: Options,
    ) -> Result<Self, Error> {
        let addresses: Vec<String> = addresses.into_iter().map(Into::into).collect();
        let pool = Arc::new(Pool::new(&addresses, &options)?);
        let births = Arc::new(Births::new());
        births.learn(status(&pool, &options, options.timeout).await?.timestamp.as_ref());
        let learner = options.learn_nodes.then(|| {
            let task = learn_nodes(Arc::clone(&pool), options.clone());
            tokio::spawn(task).abort_handle()
        });
        let timeout = options.timeout;
        Ok(Self { shared: Arc::new(Shared { pool, options, births, learner }), timeout, resumed: None })
    }

    /// The same client with another timeout per call.
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The same client, whose writes carry this id instead of a fresh one: for asking again after
    /// [`Error::Ambiguous`], with the very same write. Not for another write: it would be taken for the old one.
    #[must_use]
    pub fn resuming(&self, id: RequestId) -> Self {
        Self { resumed: Some(id), ..self.clone() }
    }

    /// How long a call may take.
    #[must_use]
    pub const fn timeout(&self) -> Duration {
        self.timeout
    }

    /// The id of the next write.
    pub(crate) async fn request_id(&self) -> Result<RequestId, Error> {
        if let Some(id) = self.resumed.or_else(|| self.shared.births.next()) {
            return Ok(id);
        }
        // The cluster was not made yet when the client connected, or its node just starts: it has no time to tell.
        let deadline = Instant::now() + self.timeout;
        loop {
            let answer = status(&self.shared.pool, &self.shared.options, self.timeout).await?;
            self.shared.births.learn(answer.timestamp.as_ref());
            if let Some(id) = self.shared.births.next() {
                return Ok(id);
            }
            if Instant::now() >= deadline {
                let why = "no node knows the cluster's time: was the cluster made ('flotilla init')?".to_owned();
                return Err(Error::Unreachable { why });
            }
            tokio::time::sleep(TIME_PAUSE).await;
        }
    }

    /// A call of the Kv service.
    pub(crate) async fn kv<M, T, F, Fut>(&self, repeat: Repeat, message: M, method: F) -> Result<T, Error>
    where
        M: Clone,
        F: Fn(KvClient<Channel>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        Ok(self.kv_answer(repeat, message, method).await?.answer)
    }

    /// A call of the Kv service, for answers that may say "not done".
    pub(crate) async fn kv_answer<M, T, F, Fut>(
        &self,
        repeat: Repeat,
        message: M,
        method: F,
    ) -> Result<Answer<T>, Error>
    where
        M: Clone,
        F: Fn(KvClient<Channel>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let bounds = self.bounds(repeat, self.shared.options.attempt_timeout);
        let size = self.shared.options.message_bytes_max;
        let attempt = |channel, request| method(kv_client(channel, size), request);
        call(&self.shared.pool, &self.shared.options, bounds, message, attempt).await
    }

    /// A call of the Admin service. Those that change ranges wait for more than one node, so silence is no bad sign.
    pub(crate) async fn admin<M, T, F, Fut>(&self, repeat: Repeat, message: M, method: F) -> Result<T, Error>
    where
        M: Clone,
        F: Fn(AdminClient<Channel>, Request<M>) -> Fut,
        Fut: Future<Output = Result<Response<T>, Status>>,
    {
        let patience = if repeat == Repeat::Read { self.shared.options.attempt_timeout } else { self.timeout };
        let bounds = self.bounds(repeat, patience);
        let size = self.shared.options.message_bytes_max;
        let attempt = |channel, request| method(admin_client(channel, size), request);
        Ok(call(&self.shared.pool, &self.shared.options, bounds, message, attempt).await?.answer)
    }

    const fn bounds(&self, repeat: Repeat, attempt_timeout: Duration) -> Bounds {
        Bounds { repeat, timeout: self.timeout, attempt_timeout }
    }
}

/// A stub with the limits raised to match the cluster's.
pub(crate) fn kv_client(channel: Channel, size: usize) -> KvClient<Channel> {
    KvClient::new(channel).max_decoding_message_size(size).max_encoding_message_size(size)
}

/// A stub with the limits raised to match the cluster's.
pub(crate) fn admin_client(channel: Channel, size: usize) -> AdminClient<Channel> {
    AdminClient::new(channel).max_decoding_message_size(size).max_encoding_message_size(size)
}

async fn status(pool: &Pool, options: &Options, timeout: Duration) -> Result<v1::StatusResponse, Error> {
    let bounds = Bounds { repeat: Repeat::Read, timeout, attempt_timeout: options.attempt_timeout };
    let size = options.message_bytes_max;
    let attempt = |channel, request| async move { admin_client(channel, size).status(request).await };
    Ok(call(pool, options, bounds, v1::StatusRequest {}, attempt).await?.answer)
}

/// Keeps the list of nodes fresh; ends with the client. Failures are the calls' matter, not this one's.
async fn learn_nodes(pool: Arc<Pool>, options: Options) {
    let size = options.message_bytes_max;
    let bounds =
        Bounds { repeat: Repeat::Read, timeout: options.learn_interval, attempt_timeout: options.attempt_timeout };
    loop {
        let answer = call(&pool, &options, bounds, v1::NodesRequest {}, |channel, request| async move {
            admin_client(channel, size).nodes(request).await
        });
        if let Ok(Answer { answer, .. }) = answer.await {
            answer.nodes.iter().filter(|node| !node.address.is_empty()).for_each(|node| pool.learn(&node.address));
        }
        tokio::time::sleep(options.learn_interval).await;
    }
}
