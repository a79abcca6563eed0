//! Random faults: whatever happens on the way, no acknowledged write is lost and none takes effect twice.

#![allow(clippy::unwrap_used)]

mod world;

use std::collections::BTreeSet;
use std::time::Duration;

use bytes::Bytes;
use flotilla_kv::{KvError, Router};
use flotilla_types::{Key, KeySpan, Write, WriteResult, keys};
use proptest::prelude::*;
use world::{Faults, STORES, World};

const KEYS: u8 = 6;

fn key(n: u8) -> Key {
    keys::user(&[b'a' + n])
}

/// Something changes under the router.
fn disturb(world: &World, roll: u64) {
    let mut state = world.state();
    let at = key(u8::try_from(state.roll(u64::from(KEYS))).unwrap());
    let store = STORES[usize::try_from(state.roll(3)).unwrap()];
    match roll % 7 {
        0 => state.split(&at),
        1 | 2 => state.move_leader(&at, Some(store)),
        3 => state.move_leader(&keys::META2, Some(store)),
        4 => state.down = vec![store],
        5 => state.down.clear(),
        _ => {
            // A leader that is down is replaced, as an election would.
            let down = state.down.clone();
            let alive = STORES.into_iter().find(|store| !down.contains(store));
            let led: Vec<Key> = state.ranges.iter().map(|range| range.descriptor.span.start.clone()).collect();
            led.iter().for_each(|start| state.move_leader(start, alive));
        }
    }
}

fn read(world: &World, router: &Router, key: &Key) -> Option<Bytes> {
    world.state().faults = Faults::default();
    world.state().down.clear();
    world.run(router.get(key.clone(), world.deadline(60))).unwrap().row.map(|row| row.value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn acknowledged_puts_are_not_lost_and_old_ones_do_not_come_back(
        seed in 0u64..u64::MAX,
        steps in proptest::collection::vec((0u8..KEYS, 0u64..7), 1..60),
    ) {
        let world = World::new(seed);
        let router = world.router();
        let mut allowed: Vec<BTreeSet<Option<Bytes>>> = vec![BTreeSet::from([None]); usize::from(KEYS)];
        for (n, (which, roll)) in steps.into_iter().enumerate() {
            world.state().faults = Faults { not_sent: 50, lost_before: 80, lost_after: 80, late: 60, overloaded: 30 };
            disturb(&world, roll);
            let value = Bytes::from(n.to_string());
            let write = Write::Put { key: key(which), value: value.clone() };
            let id = router.request_id().unwrap();
            let allowed = &mut allowed[usize::from(which)];
            match world.run(router.write(id, write, world.deadline(8))) {
                // What was in doubt before may still arrive: it has no place in time yet.
                Ok(_) => {
                    allowed.retain(|old| old.as_ref().is_some_and(|old| old.first() == Some(&b'?')));
                    allowed.insert(Some(value));
                }
                Err(KvError::Ambiguous { .. }) => {
                    allowed.insert(Some(value.clone()));
                    allowed.insert(Some([b"?", &value[..]].concat().into()));
                }
                Err(_) => {}
            }
        }
        let settled = world.deadline(60);
        world.run(async { flotilla_kv::Clock::sleep(&world, settled).await });
        for which in 0..KEYS {
            let found = read(&world, &router, &key(which));
            let allowed = &allowed[usize::from(which)];
            let doubted = found.as_ref().map(|found| Bytes::from([b"?", &found[..]].concat()));
            prop_assert!(allowed.contains(&found) || allowed.contains(&doubted), "{found:?} is none of {allowed:?}");
        }
    }

    #[test]
    fn a_counter_counts_each_acknowledged_swap_once(
        seed in 0u64..u64::MAX,
        steps in proptest::collection::vec(0u64..7, 1..40),
    ) {
        let world = World::new(seed);
        let router = world.router();
        let (mut sure, mut doubtful) = (0u64, 0u64);
        for roll in steps {
            let before = read(&world, &router, &key(0));
            world.state().faults = Faults { not_sent: 50, lost_before: 80, lost_after: 80, late: 60, overloaded: 30 };
            disturb(&world, roll);
            let count: u64 = before.as_ref().map_or(0, |value| std::str::from_utf8(value).unwrap().parse().unwrap());
            let write = Write::CompareAndSwap {
                key: key(0),
                expected: before,
                new: Some(Bytes::from((count + 1).to_string())),
            };
            let id = router.request_id().unwrap();
            match world.run(router.write(id, write, world.deadline(8))) {
                Ok((WriteResult::Done, _)) => sure += 1,
                Err(KvError::Ambiguous { .. }) => doubtful += 1,
                _ => {}
            }
        }
        let found = read(&world, &router, &key(0));
        let found: u64 = found.map_or(0, |value| std::str::from_utf8(&value).unwrap().parse().unwrap());
        prop_assert!(sure <= found && found <= sure + doubtful, "{sure} <= {found} <= {sure} + {doubtful}");
    }

    #[test]
    fn a_range_delete_that_is_repeated_until_it_succeeds_counts_each_key_once(
        seed in 0u64..u64::MAX,
        rolls in proptest::collection::vec(0u64..7, 1..12),
    ) {
        let world = World::new(seed);
        let router = world.router();
        for n in 0..KEYS {
            let write = Write::Put { key: key(n), value: Bytes::from_static(b"x") };
            world.run(router.write(router.request_id().unwrap(), write, world.deadline(60))).unwrap();
        }
        let id = router.request_id().unwrap();
        let span = KeySpan::new(key(1), key(KEYS - 1)).unwrap();
        let mut answer = None;
        for roll in rolls.into_iter().cycle().take(200) {
            world.state().faults = Faults { not_sent: 50, lost_before: 100, lost_after: 200, late: 50, overloaded: 30 };
            disturb(&world, roll);
            let deadline = world.deadline(20);
            if let Ok(done) = world.run(router.delete_range(id, span.clone(), 0, deadline))
                && done.resume.is_none()
            {
                answer = Some(done.keys);
                break;
            }
            world.state().down.clear();
            world.run(async { flotilla_kv::Clock::sleep(&world, Duration::from_millis(500)).await });
        }
        prop_assert_eq!(answer, Some(Some(u64::from(KEYS) - 2)));
        for n in 0..KEYS {
            let there = read(&world, &router, &key(n)).is_some();
            prop_assert_eq!(there, n == 0 || n == KEYS - 1);
        }
    }
}
