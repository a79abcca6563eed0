//! Changes of ranges themselves. Each is decided on a descriptor and refused by the range if that is not the present one; so
//! after a doubt the present descriptor tells what became of it.

use std::time::Duration;

use flotilla_types::{Admin, CheckId, Command, ConfTarget, Key, RangeDescriptor, RangeId, RangeReply, Reply, StoreId};

use crate::backoff::Backoff;
use crate::send::{Cut, Place};
use crate::{KvError, Router};

/// What a split leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Halves {
    /// The keys below the cut; keeps the old id.
    pub left: RangeDescriptor,
    /// The keys from the cut on.
    pub right: RangeDescriptor,
}

impl Router {
    /// Cuts the range that owns `key` in two; the right half gets the id `right`, which must never have been used. If
    /// `key` is the first key of a range already, that and its left neighbour are the answer, and the id stays unused.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn split(&self, key: &Key, right: RangeId, deadline: Duration) -> Result<Halves, KvError> {
        let mut backoff = self.admin_backoff();
        loop {
            let mut boundary = false;
            let cut = |owner: &RangeDescriptor| {
                boundary = owner.span.start == *key;
                let split = Admin::Split { generation: owner.generation, key: key.clone(), right };
                if boundary { Cut::Refuse(is_boundary(key)) } else { Cut::Ask(Command::Admin(split)) }
            };
            let answer = self.send(&Place::Of(key.clone()), deadline, cut).await.map_err(KvError::from);
            if boundary {
                return self.halves(key, deadline).await;
            }
            match answer {
                Ok((reply, _)) => {
                    let halves = self.learn(&reply);
                    let mut halves = halves.into_iter();
                    return match (halves.next(), halves.next()) {
                        (Some(left), Some(right)) => Ok(Halves { left, right }),
                        _ => self.halves(key, deadline).await,
                    };
                }
                Err(KvError::GenerationMismatch { .. } | KvError::Ambiguous { .. })
                    if self.shared.clock.mono() < deadline =>
                {
                    self.pause(backoff.pause(&self.shared.dice), deadline).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// The ranges on both sides of a boundary.
    async fn halves(&self, key: &Key, deadline: Duration) -> Result<Halves, KvError> {
        if *key == Key::MIN {
            return Err(KvError::Invalid { what: "there is nothing to the left of the first key".to_owned() });
        }
        let left = self.find(&Place::Below(key.clone()), deadline).await?;
        let right = self.find(&Place::Of(key.clone()), deadline).await?;
        Ok(Halves { left: (*left).clone(), right: (*right).clone() })
    }

    /// Makes the replica on store `to` the leader of the range that owns `key`.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn transfer(&self, key: &Key, to: StoreId, deadline: Duration) -> Result<(), KvError> {
        let mut range = None;
        let cut = |owner: &RangeDescriptor| {
            range = Some(owner.range);
            match owner.on_store(to) {
                Some(_) => Cut::Ask(Command::Admin(Admin::TransferLeader { to })),
                None => Cut::Refuse(KvError::Invalid {
                    what: format!("{} has no replica on {to}: transfer to a store that holds one", owner.range),
                }),
            }
        };
        let (reply, _) = self.send(&Place::Of(key.clone()), deadline, cut).await?;
        self.learn(&reply);
        if let Some(range) = range {
            self.shared.replicas.leads(range, to);
        }
        Ok(())
    }

    /// Brings the replicas of the range that owns `key` to a target, step by step, and answers with the descriptor that
    /// matches it. Safe to repeat; what was reached stays.
    ///
    /// # Errors
    /// See `KvError`; `DeadlineExceeded` or `Unavailable` if the target was not reached in time.
    pub async fn change_replicas(
        &self,
        key: &Key,
        target: ConfTarget,
        deadline: Duration,
    ) -> Result<RangeDescriptor, KvError> {
        let mut backoff = self.admin_backoff();
        let mut last = None;
        let mut told = None;
        loop {
            let descriptor = self.find(&Place::Of(key.clone()), deadline).await?;
            if matches(&descriptor, &target) {
                // The cache may show a moment long past at which this was so. Only what the range itself said in this call,
                // or what its record says now, counts.
                let recorded = match told {
                    Some(generation) if descriptor.generation >= generation => None,
                    _ => Some(self.owner(key, deadline).await?),
                };
                match recorded.filter(|recorded| recorded.generation > descriptor.generation) {
                    Some(newer) => drop(self.shared.cache.insert(newer)),
                    None => return Ok((*descriptor).clone()),
                }
                continue;
            }
            if self.shared.clock.mono() >= deadline {
                let why = "the range has not reached its target yet; what was reached stays".to_owned();
                return Err(last.unwrap_or(KvError::DeadlineExceeded { why }));
            }
            let cut = |owner: &RangeDescriptor| {
                Cut::Ask(Command::Admin(Admin::ChangeReplicas { generation: owner.generation, target: target.clone() }))
            };
            match self.send(&Place::Of(key.clone()), deadline, cut).await.map_err(KvError::from) {
                Ok((reply, asked)) => {
                    let learnt = self.learn(&reply);
                    told = learnt.iter().map(|now| now.generation).max().or(told);
                    let moved = learnt.iter().any(|now| now.generation > asked.generation);
                    if moved {
                        backoff = self.admin_backoff();
                        continue;
                    }
                    // It said yes and nothing moved yet, or the cache was ahead: look at what the records say.
                    self.shared.cache.evict(&asked);
                }
                // The range waits for something itself, as for a new replica to catch up.
                Err(error @ KvError::Overloaded { retry_after, .. }) => {
                    last = Some(error);
                    self.pause(self.shared.dice.jitter(retry_after), deadline).await;
                    continue;
                }
                Err(
                    error @ (KvError::GenerationMismatch { .. }
                    | KvError::Ambiguous { .. }
                    | KvError::Unavailable { .. }
                    | KvError::DeadlineExceeded { .. }),
                ) => last = Some(error),
                Err(error) => return Err(error),
            }
            self.pause(backoff.pause(&self.shared.dice), deadline).await;
        }
    }

    /// Has every replica of the range that owns `key` hash its state at one applied index. The hashes are asked for at
    /// the stores, by `check`.
    ///
    /// # Errors
    /// See `KvError`.
    pub async fn check(&self, key: &Key, check: CheckId, deadline: Duration) -> Result<RangeDescriptor, KvError> {
        let cut = |_: &RangeDescriptor| Cut::Ask(Command::Admin(Admin::Check { check }));
        let (reply, asked) = self.send(&Place::Of(key.clone()), deadline, cut).await?;
        Ok(self.learn(&reply).into_iter().next().unwrap_or_else(|| (*asked).clone()))
    }

    /// Takes the descriptors of an answer into the cache.
    fn learn(&self, reply: &RangeReply) -> Vec<RangeDescriptor> {
        let Reply::Admin(descriptors) = &reply.reply else { return Vec::new() };
        descriptors.iter().for_each(|descriptor| drop(self.shared.cache.insert(descriptor.clone())));
        descriptors.clone()
    }

    fn admin_backoff(&self) -> Backoff {
        Backoff::new(self.shared.config.backoff_min, self.shared.config.backoff_max)
    }
}

/// Whether a range is where it should be: no change half done, and the same stores in both roles.
fn matches(descriptor: &RangeDescriptor, target: &ConfTarget) -> bool {
    let stores = |votes: bool| {
        let some = descriptor.replicas.iter().filter(move |replica| replica.kind.votes_incoming() == votes);
        let mut stores: Vec<_> = some.map(|replica| replica.store).collect();
        stores.sort_unstable();
        stores
    };
    let sorted = |wanted: &[StoreId]| {
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        wanted
    };
    !descriptor.is_joint() && stores(true) == sorted(&target.voters) && stores(false) == sorted(&target.learners)
}

fn is_boundary(key: &Key) -> KvError {
    KvError::Invalid { what: format!("{key} is the first key of a range already") }
}
