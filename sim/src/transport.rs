//! kv's way to the stores, through the simulated network. The futures leave their wish in an outbox, which the world
//! empties after every round of polls.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use flotilla_kv::{SendError, Tasks, Transport};
use flotilla_types::{Generation, PushResult, RangeDescriptor, RangeId, RangeReply, RangeRequest, StoreId};
use futures::FutureExt;
use futures::channel::oneshot;
use futures::future::BoxFuture;

use crate::network::CallId;
use crate::time::lock;

/// What a store answers, or why nothing came.
pub(crate) type Answer = Result<RangeReply, SendError>;

/// What routers want of the world.
pub(crate) enum Wish {
    Send {
        gateway: StoreId,
        to: StoreId,
        call: CallId,
        request: Box<RangeRequest>,
    },
    /// A record was read for a range of the gateway's store.
    Confirmed {
        gateway: StoreId,
        range: RangeId,
        current: Box<RangeDescriptor>,
    },
    /// A transaction's record was asked for a request that waits in a range of the gateway's store.
    Pushed {
        gateway: StoreId,
        range: RangeId,
        number: u64,
        result: Option<PushResult>,
    },
    Spawn {
        gateway: StoreId,
        task: BoxFuture<'static, ()>,
    },
    Root {
        gateway: StoreId,
        answer: oneshot::Sender<Result<RangeDescriptor, String>>,
    },
}

#[derive(Default)]
struct Inner {
    wishes: Vec<Wish>,
    calls: BTreeMap<CallId, (StoreId, oneshot::Sender<Answer>)>,
    next: u64,
}

/// Shared by all routers and the world.
#[derive(Clone, Default)]
pub(crate) struct Outbox(Arc<Mutex<Inner>>);

impl Outbox {
    pub(crate) fn take(&self) -> Vec<Wish> {
        std::mem::take(&mut lock(&self.0).wishes)
    }

    /// Something for the world.
    pub(crate) fn wish(&self, wish: Wish) {
        lock(&self.0).wishes.push(wish);
    }

    /// A call that a test makes itself.
    pub(crate) fn call(&self, gateway: StoreId) -> (CallId, oneshot::Receiver<Answer>) {
        let (sender, receiver) = oneshot::channel();
        let mut inner = lock(&self.0);
        inner.next += 1;
        let call = CallId(inner.next);
        inner.calls.insert(call, (gateway, sender));
        (call, receiver)
    }

    /// Answers a call, if somebody still waits.
    pub(crate) fn answer(&self, call: CallId, answer: Answer) {
        let found = lock(&self.0).calls.remove(&call);
        if let Some((_, waiting)) = found {
            // The router may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// A gateway died, and its calls with it.
    pub(crate) fn forget(&self, gateway: StoreId) {
        lock(&self.0).calls.retain(|_, (of, _)| *of != gateway);
    }
}

/// One gateway's transport.
pub(crate) struct SimTransport {
    pub(crate) gateway: StoreId,
    pub(crate) outbox: Outbox,
}

impl Tasks for SimTransport {
    fn spawn(&self, task: BoxFuture<'static, ()>) {
        self.outbox.wish(Wish::Spawn { gateway: self.gateway, task });
    }
}

impl Transport for SimTransport {
    fn send(&self, to: StoreId, request: RangeRequest) -> BoxFuture<'static, Answer> {
        let (call, receiver) = self.outbox.call(self.gateway);
        self.outbox.wish(Wish::Send { gateway: self.gateway, to, call, request: Box::new(request) });
        receiver.map(|got| got.unwrap_or_else(|_| Err(SendError::Lost("the gateway has ended".to_owned())))).boxed()
    }

    fn root(&self, _: Option<Generation>) -> BoxFuture<'static, Result<RangeDescriptor, String>> {
        let (answer, receiver) = oneshot::channel();
        lock(&self.outbox.0).wishes.push(Wish::Root { gateway: self.gateway, answer });
        receiver.map(|got| got.unwrap_or_else(|_| Err("the gateway has ended".to_owned()))).boxed()
    }
}
