//! Random clients, kills, cuts, hand-overs, lulls and skewed clocks; the history of each key is judged for linearizability.

#![allow(clippy::unwrap_used, missing_docs)]

mod world;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use flotilla_check::{Operation, Outcome, Seen, Verdict, linearizable};
use flotilla_range::event::Token;
use flotilla_types::{Admin, Command, RangeError, Read, ReadAt, Reply, RequestId, StoreId, Write, WriteResult};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use world::{World, user};

const KEYS: u8 = 3;
const OPERATIONS: u32 = 2500;
const PATIENCE: Duration = Duration::from_secs(4);

/// One try of one operation: a client that hears an error does not try again, so that every outcome is seen.
struct Try {
    key: u8,
    began: u64,
    given_up_at: Duration,
    what: Command,
}

fn random_command(random: &mut ChaCha8Rng, world: &World, n: u32, key: &str) -> Command {
    let id = RequestId::new(world.time.as_millis() as u64, 1, n);
    let value = Bytes::from(n.to_string());
    let key = user(key);
    match random.random_range(0..10) {
        0..4 => Command::Read { at: ReadAt::Leaseholder, read: Read::Get { key } },
        4..7 => Command::Write { id, write: Write::Put { key, value } },
        7 => Command::Write { id, write: Write::Delete { key } },
        // Half of them expect what was written lately.
        _ => {
            let expected =
                random.random_bool(0.7).then(|| Bytes::from(n.saturating_sub(random.random_range(1..6)).to_string()));
            Command::Write { id, write: Write::CompareAndSwap { key, expected, new: Some(value) } }
        }
    }
}

/// What an answer says about the register; `None`: nothing was done.
fn seen(
    what: &Command,
    answer: Option<&Result<flotilla_types::RangeReply, RangeError>>,
) -> Option<(Seen<Bytes>, bool)> {
    let known = match answer {
        Some(Ok(reply)) => Some(&reply.reply),
        Some(Err(RangeError::Ambiguous { .. })) | None => None,
        Some(Err(_)) => return None,
    };
    let seen = match (what, known) {
        (Command::Read { .. }, Some(Reply::Get(row))) => Seen::Read(row.as_ref().map(|row| row.value.clone())),
        (Command::Write { write: Write::Put { value, .. }, .. }, _) => Seen::Wrote(Some(value.clone())),
        (Command::Write { write: Write::Delete { .. }, .. }, _) => Seen::Wrote(None),
        (Command::Write { write: Write::CompareAndSwap { expected, new, .. }, .. }, known) => {
            let swapped = known.map(|reply| matches!(reply, Reply::Write(WriteResult::Done)));
            Seen::CompareAndSwap { expected: expected.clone(), new: new.clone(), swapped }
        }
        _ => return None,
    };
    Some((seen, known.is_some()))
}

#[derive(Default)]
struct Run {
    answered: usize,
    unknown: usize,
    kills: usize,
    handovers: usize,
    asleep: usize,
    by_index: u64,
    histories: BTreeMap<u8, Vec<Operation<Bytes>>>,
}

fn run(seed: u64) -> Run {
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let mut world = World::new();
    let mut open: BTreeMap<Token, Try> = BTreeMap::new();
    let mut run = Run::default();
    let (mut n, mut down, mut lull) = (0, None, Duration::ZERO);
    for store in 1..=3 {
        world.ahead.insert(StoreId(store), Duration::from_millis(random.random_range(0..=240)));
    }
    while n < OPERATIONS || !open.is_empty() {
        if n < OPERATIONS && open.len() < 6 && world.time >= lull && random.random_bool(0.9) {
            n += 1;
            let key = random.random_range(0..KEYS);
            let what = random_command(&mut random, &world, n, &format!("k{key}"));
            // Mostly the leader, sometimes whoever.
            let anybody = StoreId(random.random_range(1..=3));
            let store = world.leader(world::USER).filter(|_| random.random_bool(0.8)).unwrap_or(anybody);
            if !world.nodes[&store].down {
                let token = world.ask(store, what.clone());
                let began = world.time.as_nanos() as u64;
                open.insert(token, Try { key, began, given_up_at: world.time + PATIENCE, what });
            }
        }
        match random.random_range(0..250) {
            0..12 if down.is_none() && open.len() > 3 => {
                let store = world.leader(world::USER).unwrap_or(StoreId(1));
                world.kill(store);
                (down, run.kills) = (Some((store, world.time)), run.kills + 1);
            }
            12 => {
                world.cut.insert((StoreId(random.random_range(1..=3)), StoreId(random.random_range(1..=3))));
            }
            13 | 14 => {
                world.cut.clear();
                world.cut_liveness.clear();
            }
            15 | 16 => {
                let alone = StoreId(random.random_range(1..=3));
                World::isolate(&[1, 2, 3], alone, &mut world.cut_liveness);
            }
            17..20 => {
                let to = StoreId(random.random_range(1..=3));
                if let Some(leader) = world.leader(world::USER) {
                    world.ask(leader, Command::Admin(Admin::TransferLeader { to }));
                    run.handovers += usize::from(leader != to);
                }
            }
            20 if random.random_bool(0.2) => lull = world.time + Duration::from_secs(8),
            _ => {}
        }
        if let Some((store, since)) = down
            && world.time > since + Duration::from_secs(6)
        {
            world.restart(store);
            down = None;
        }
        world.tick();
        run.asleep += usize::from(world.nodes.values().any(|node| !node.down && node.fleet.asleep() > 0));
        let now = world.time;
        let ended: Vec<_> = open
            .iter()
            .filter(|(token, open)| world.answers.contains_key(token) || open.given_up_at <= now)
            .map(|(token, _)| *token)
            .collect();
        for token in ended {
            let tried = open.remove(&token).unwrap();
            let Some((seen, known)) = seen(&tried.what, world.answers.get(&token)) else { continue };
            let ended = if known { Outcome::Answered(now.as_nanos() as u64) } else { Outcome::Unknown };
            run.answered += usize::from(known);
            run.unknown += usize::from(!known);
            let operation = Operation { client: token.0, began: tried.began, ended, seen };
            run.histories.entry(tried.key).or_default().push(operation);
        }
    }
    run.by_index = world.counts.get("flotilla_reads_by_index_total").copied().unwrap_or_default();
    run
}

#[test]
fn every_key_is_linearizable_while_leaders_die_and_links_break() {
    let mut all = Run::default();
    for seed in 0..16 {
        let run = run(seed);
        for (key, history) in &run.histories {
            match linearizable(history, 1 << 20) {
                Verdict::Linearizable => {}
                Verdict::Violated(violation) => panic!("seed {seed}, key k{key}: {violation}"),
                Verdict::Undecided => panic!("seed {seed}, key k{key}: too many unknown outcomes to judge"),
            }
        }
        (all.answered, all.unknown) = (all.answered + run.answered, all.unknown + run.unknown);
        (all.kills, all.handovers) = (all.kills + run.kills, all.handovers + run.handovers);
        (all.asleep, all.by_index) = (all.asleep + run.asleep, all.by_index + run.by_index);
    }
    let Run { answered, unknown, kills, handovers, asleep, by_index, .. } = all;
    assert!(answered > 10_000 && unknown > 30 && kills > 20 && handovers > 50, "the seeds were kind");
    assert!(asleep > 100 && by_index > 20, "{asleep} ticks with sleepers, {by_index} reads by index");
}

#[test]
fn the_same_seed_gives_the_same_history() {
    assert_eq!(run(7).histories, run(7).histories);
}
