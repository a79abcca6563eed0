//! Which stores share a range with this one: store liveness exchanges heartbeats with exactly these.

use std::collections::{BTreeMap, BTreeSet};

use flotilla_types::{RangeDescriptor, StoreId};

/// How many replicas of this store's ranges live on each other store.
#[derive(Debug)]
pub(super) struct Peers {
    own: StoreId,
    shared: BTreeMap<StoreId, usize>,
}

impl Peers {
    pub(super) const fn new(own: StoreId) -> Self {
        Self { own, shared: BTreeMap::new() }
    }

    /// A range here had one descriptor and has another. Says whether the set of stores changed.
    pub(super) fn count(&mut self, before: Option<&RangeDescriptor>, after: Option<&RangeDescriptor>) -> bool {
        let stores = |descriptor: Option<&RangeDescriptor>| {
            let replicas = descriptor.map(|descriptor| descriptor.replicas.clone()).unwrap_or_default();
            replicas.into_iter().map(|replica| replica.store)
        };
        let (mut came, mut left) = (BTreeSet::new(), BTreeSet::new());
        for store in stores(after).filter(|store| *store != self.own) {
            let count = self.shared.entry(store).or_insert(0);
            *count += 1;
            if *count == 1 {
                came.insert(store);
            }
        }
        for store in stores(before).filter(|store| *store != self.own) {
            if let Some(count) = self.shared.get_mut(&store) {
                *count -= 1;
                if *count == 0 {
                    self.shared.remove(&store);
                    left.insert(store);
                }
            }
        }
        came != left
    }

    /// The stores.
    pub(super) fn stores(&self) -> BTreeSet<StoreId> {
        self.shared.keys().copied().collect()
    }
}
