//! One seed: clients, faults and changes of ranges for a while; then everything is healed and looked at.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use flotilla_check::{Operation, Outcome};
use flotilla_types::{Isolation, Key, RangeId, StoreId, nanoseconds};
use rand::Rng;

use crate::clients::{Answers, Ended, Op, PASSED, Pasts, SAME, SETTLED, draw, in_doubt, key, perform};
use crate::driver::Driver;
use crate::faults::{self, Fault, Profile};
use crate::history::{History, Told};
use crate::one_shots;
use crate::time::lock;
use crate::transactions::{self, Fate};
use crate::world::World;

/// One more reads everything at the end.
const CLIENTS: usize = 6;
/// Clients that run transactions.
const TRANSACTORS: usize = 4;
/// A run of a minute or more goes on until so many operations were answered.
const OPERATIONS_MIN: u64 = 500;

/// How long, and how loud.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Virtual time with clients and faults; healing and looking come on top.
    pub seconds: u64,
    /// Every line of the trace goes to standard error.
    pub trace: bool,
}

/// What came of a seed.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Which seed.
    pub seed: u64,
    /// What went wrong; empty if nothing did.
    pub failures: Vec<String>,
    /// Operations that were answered.
    pub operations: u64,
    /// Transactions that ended, and how many of them are committed.
    pub transactions: (u64, u64),
    /// How long the cluster lived.
    pub virtual_time: Duration,
    /// How often each fault and each rare branch occurred.
    pub counts: BTreeMap<&'static str, u64>,
    /// Equal for equal runs.
    pub trace_hash: u64,
    /// The last lines of the trace.
    pub tail: Vec<String>,
    /// What the clients saw.
    pub history: History,
}

/// What the run does at a time of its own.
#[derive(Debug, Clone, PartialEq)]
enum Plan {
    Client(usize),
    /// A client begins a transaction.
    Transact(usize),
    /// What became of transactions whose clients were not told.
    Settle,
    Fault,
    Damage,
    /// The placement driver looks.
    Look,
    Ends(Fault),
    Change,
}

/// An operation under way.
struct Open {
    gateway: StoreId,
    boot: u32,
    began: Duration,
    op: Op,
}

/// A transaction under way: its gateway, the gateway's start, its place in the log.
type OpenTxn = (StoreId, u32, usize);

/// A seed under way.
pub(crate) struct Run {
    pub(crate) world: World,
    profile: Profile,
    plans: BTreeMap<u64, Plan>,
    next_plan: u64,
    clients: Vec<Option<Open>>,
    answers: Answers,
    transacting: Vec<Option<OpenTxn>>,
    txns: transactions::Log,
    /// Cuts that are still to be made for the transactions.
    cuts: Vec<Key>,
    /// What scans showed, to be asked for again.
    pasts: Pasts,
    history: History,
    operations: u64,
    ops_made: u64,
    seconds: u64,
    driver: Driver,
    next_range: u64,
    /// No faults begin any more.
    calm: bool,
    /// Clients rest meanwhile, so that ranges fall asleep.
    lull: (Duration, Duration),
    /// No faults, operations and changes begin any more.
    ending: bool,
}

/// Runs a seed.
#[must_use]
pub fn run(seed: u64, options: Options) -> Report {
    let mut run = Run::new(seed, options);
    let planned = Duration::from_secs(options.seconds);
    run.go_until(planned);
    // Where faults leave little time to work, the clients get more of it, at last without any.
    while options.seconds >= 60
        && run.operations < OPERATIONS_MIN
        && run.world.failures.is_empty()
        && run.world.now() < planned * 6
    {
        let now = run.world.now();
        run.calm = now >= planned * 2;
        run.go_until(now + Duration::from_secs(5));
    }
    run.finish()
}

impl Run {
    fn new(seed: u64, options: Options) -> Self {
        let stores = 3 + seed % 3;
        let mut world = World::new(seed, stores, 3);
        world.trace.loud = options.trace;
        let profile = Profile::draw(&mut world.random);
        let lull_begins = Duration::from_millis(world.random.random_range(10_000..40_000));
        let lasts = if world.random.random_bool(0.5) { world.random.random_range(6_000..14_000) } else { 0 };
        let lull = (lull_begins, lull_begins + Duration::from_millis(lasts));
        let mut run = Self {
            world,
            profile,
            plans: BTreeMap::new(),
            next_plan: 0,
            clients: (0..=CLIENTS).map(|_| None).collect(),
            answers: Arc::new(Mutex::new(Vec::new())),
            transacting: vec![None; TRANSACTORS],
            txns: Arc::default(),
            cuts: transactions::cuts(),
            pasts: Arc::default(),
            history: History::default(),
            operations: 0,
            ops_made: 0,
            seconds: options.seconds,
            driver: Driver::default(),
            next_range: 100,
            calm: false,
            lull,
            ending: false,
        };
        for client in 0..CLIENTS {
            run.plan(Duration::from_millis(500 + client as u64), Plan::Client(client));
        }
        for client in 0..TRANSACTORS {
            run.plan(Duration::from_millis(700 + client as u64), Plan::Transact(client));
        }
        run.plan(Duration::from_secs(2), Plan::Settle);
        run.plan(Duration::from_secs(4), Plan::Fault);
        run.plan(Duration::from_millis(900), Plan::Change);
        run.plan(Duration::from_secs(2), Plan::Look);
        if profile.damage {
            let when = run.world.random.random_range(5_000..40_000);
            run.plan(Duration::from_millis(when), Plan::Damage);
        }
        run
    }

    fn plan(&mut self, after: Duration, plan: Plan) {
        self.next_plan += 1;
        self.plans.insert(self.next_plan, plan);
        self.world.call_back(after, self.next_plan);
    }

    pub(crate) fn go_until(&mut self, limit: Duration) {
        while self.world.failures.is_empty()
            && let Some(due) = self.world.step(limit)
        {
            self.take_answers();
            for number in due {
                let Some(plan) = self.plans.remove(&number) else { continue };
                self.act(plan);
            }
        }
    }

    fn act(&mut self, plan: Plan) {
        match plan {
            Plan::Ends(fault) => {
                self.world.relent(&fault);
                self.forget_the_dead();
            }
            Plan::Look => {
                self.driver.look(&mut self.world);
                self.plan(Duration::from_secs(1), Plan::Look);
            }
            Plan::Settle => {
                self.settle_transactions();
                self.plan(Duration::from_secs(2), Plan::Settle);
            }
            _ if self.ending => {}
            Plan::Client(client) => self.operate(client),
            Plan::Transact(client) => self.transact(client),
            Plan::Fault if self.calm => {}
            Plan::Fault => {
                let stores: Vec<_> = self.world.hosts.keys().copied().collect();
                let (fault, lasts) = faults::draw(&mut self.world.random, self.profile, &stores);
                self.world.strike(&fault, lasts);
                self.forget_the_dead();
                self.plan(lasts, Plan::Ends(fault));
                let pause = self.profile.every.mul_f64(self.world.random.random_range(0.2..2.0));
                self.plan(pause, Plan::Fault);
            }
            Plan::Damage => {
                let stores: Vec<_> = self.world.hosts.keys().copied().collect();
                let (fault, lasts) = faults::draw_damage(&mut self.world.random, &stores);
                self.world.strike(&fault, lasts);
                self.forget_the_dead();
                self.plan(lasts, Plan::Ends(fault));
            }
            Plan::Change => {
                self.change_a_range();
                // The first cuts come at once, so that transactions meet several ranges from the beginning.
                let most = if self.cuts.is_empty() { 4000 } else { 501 };
                let pause = Duration::from_millis(self.world.random.random_range(500..most));
                self.plan(pause, Plan::Change);
            }
        }
    }

    /// A client begins its next operation, at whatever node it likes.
    fn operate(&mut self, client: usize) {
        let up = self.world.up();
        if up.is_empty() {
            return self.plan(Duration::from_millis(200), Plan::Client(client));
        }
        let gateway = up[self.world.random.random_range(0..up.len())];
        self.ops_made += 1;
        let op = self.draw();
        let began = self.world.now();
        let Some(node) = self.world.node(gateway) else { return };
        let (answers, pasts) = (Arc::clone(&self.answers), Arc::clone(&self.pasts));
        let task = perform(node.router.clone(), client, op.clone(), answers, pasts);
        let boot = self.world.hosts.get(&gateway).map_or(0, |host| host.disk.boot);
        self.clients[client] = Some(Open { gateway, boot, began, op });
        self.world.executor.spawn(gateway, task);
        self.world.executor.run();
    }

    /// A client begins a transaction, at whatever node it likes.
    fn transact(&mut self, client: usize) {
        let up = self.world.up();
        if up.is_empty() {
            return self.plan(Duration::from_millis(200), Plan::Transact(client));
        }
        let gateway = up[self.world.random.random_range(0..up.len())];
        let (seed, name, strict) = (self.world.random.random(), client as u64, self.all_strict());
        let Some(router) = self.world.node(gateway).map(|node| node.router.clone()) else { return };
        let boot = self.world.hosts.get(&gateway).map_or(0, |host| host.disk.boot);
        let index = {
            let mut log = lock(&self.txns);
            log.push(transactions::opened(name, self.world.now(), Isolation::Serializable));
            log.len() - 1
        };
        self.transacting[client] = Some((gateway, boot, index));
        self.world
            .executor
            .spawn(gateway, transactions::perform(router, name, seed, strict, Arc::clone(&self.txns), index));
        self.world.executor.run();
    }

    /// Clients whose transaction has ended, or whose gateway died, begin the next one.
    fn take_transactions(&mut self) {
        for client in 0..TRANSACTORS {
            let Some((gateway, boot, index)) = self.transacting[client] else { continue };
            let open = lock(&self.txns)[index].fate == Fate::Open;
            if open && !self.is_dead(gateway, boot) {
                continue;
            }
            self.transacting[client] = None;
            if open {
                self.world.trace.count("transactions whose gateway died");
                lock(&self.txns)[index].fate = Fate::Unknown;
            } else {
                self.world.trace.mix(self.world.time.now(), &[client as u64, index as u64]);
            }
            if self.world.trace.loud {
                let line = format!("x{client} #{index} via {gateway}: {:?}", lock(&self.txns)[index]);
                self.world.note(&line);
            }
            let pause = Duration::from_millis(self.world.random.random_range(1..120));
            self.plan(pause, Plan::Transact(client));
        }
    }

    /// In some runs all transactions are strict, and so have an order in real time. Nothing has one where clocks differ by more than
    /// the bound.
    fn all_strict(&self) -> bool {
        self.world.seed % 4 == 1 && !self.profile.wild_clocks
    }

    fn is_dead(&self, gateway: StoreId, boot: u32) -> bool {
        let host = self.world.hosts.get(&gateway);
        host.is_none_or(|host| host.node.is_none() || host.disk.boot != boot)
    }

    /// Somebody else asks what became of transactions whose clients were not told.
    fn settle_transactions(&mut self) {
        let up = self.world.up();
        let unknown: Vec<usize> = {
            let log = lock(&self.txns);
            (0..log.len()).filter(|index| log[*index].fate == Fate::Unknown).collect()
        };
        for index in unknown.into_iter().take(16) {
            let Some(gateway) = (!up.is_empty()).then(|| up[self.world.random.random_range(0..up.len())]) else {
                return;
            };
            let Some(router) = self.world.node(gateway).map(|node| node.router.clone()) else { continue };
            self.world.executor.spawn(gateway, transactions::settle(router, Arc::clone(&self.txns), index));
        }
    }

    fn draw(&mut self) -> Op {
        let pasts = lock(&self.pasts);
        // Where clocks differ by more than the bound, scans over several ranges promise nothing.
        if !pasts.is_empty() && !self.profile.wild_clocks && self.world.random.random_bool(0.15) {
            return Op::Again(pasts[self.world.random.random_range(0..pasts.len())].clone());
        }
        draw(&mut self.world.random, self.ops_made)
    }

    fn take_answers(&mut self) {
        self.take_transactions();
        self.world.count_changes();
        let ended: Vec<Ended> = std::mem::take(&mut *lock(&self.answers));
        for ended in ended {
            let Some(open) = self.clients[ended.client].take() else { continue };
            if let Some(why) = ended.why.as_ref().filter(|why| why.starts_with("DISORDER")) {
                self.world.fail(why.clone());
            }
            if ended.why.as_deref() == Some(SETTLED) {
                self.world.trace.count("doubts settled by a retry with the same id");
            }
            match ended.why.as_deref() {
                Some(SAME) => self.world.trace.count("scans of the past: the same"),
                Some(PASSED) => self.world.trace.count("scans of the past: below the GC threshold"),
                _ => {}
            }
            if self.world.trace.loud {
                let took = (self.world.now() - open.began).as_secs_f64();
                let line = format!("c{} {:?} via {} ({took:.3} s): {ended:?}", ended.client, open.op, open.gateway);
                self.world.note(&line);
            } else {
                self.world.trace.mix(ended.at, &[ended.client as u64, u64::from(ended.known)]);
            }
            self.world.trace.count(match (&ended.told, ended.known) {
                (Told::Nothing, _) => "operations refused",
                (Told::Keys(_), true) => "operations answered",
                (Told::Keys(_), false) => "operations in doubt",
            });
            self.record(&open, ended);
        }
    }

    fn record(&mut self, open: &Open, ended: Ended) {
        let client = ended.client;
        if let Told::Keys(keys) = ended.told {
            self.operations += u64::from(ended.known);
            let outcome = if ended.known { Outcome::Answered(nanoseconds(ended.at)) } else { Outcome::Unknown };
            // Beyond the bound on offsets scans over several ranges promise nothing (leases 1, HAZARD offset).
            let judged = !(self.profile.wild_clocks && matches!(open.op, Op::Scan(..)));
            for (key, seen) in keys.into_iter().filter(|_| judged) {
                let began = nanoseconds(open.began);
                self.history.push(key, Operation { client: client as u64, began, ended: outcome, seen });
            }
        }
        let mut pause = Duration::from_millis(self.world.random.random_range(1..350));
        let (now, (begins, ends)) = (self.world.now(), self.lull);
        if begins <= now && now < ends {
            pause += ends - now;
        }
        self.plan(pause, Plan::Client(client));
    }

    /// Clients of a gateway that died never hear what became of their operation.
    fn forget_the_dead(&mut self) {
        for client in 0..=CLIENTS {
            let dead = self.clients[client].as_ref().is_some_and(|open| {
                self.world
                    .hosts
                    .get(&open.gateway)
                    .is_none_or(|host| host.node.is_none() || host.disk.boot != open.boot)
            });
            if dead && let Some(open) = self.clients[client].take() {
                let (told, at) = (in_doubt(&open.op), self.world.now());
                self.world.trace.count("operations whose gateway died");
                self.record(&open, Ended { client, told, known: false, at, why: None });
            }
        }
    }

    /// An operator, or the placement driver, does something to a range.
    fn change_a_range(&mut self) {
        let up = self.world.up();
        let Some(gateway) = (!up.is_empty()).then(|| up[self.world.random.random_range(0..up.len())]) else { return };
        let drawn = key(self.world.random.random_range(0..crate::clients::KEYS));
        let of_txns = self.world.random.random_bool(0.5);
        let cuts = transactions::cuts();
        let first = self.cuts.pop();
        let kind = if first.is_some() { 0 } else { self.world.random.random_range(0..3) };
        let at = if let Some(cut) = first {
            cut
        } else if of_txns {
            cuts[self.world.random.random_range(0..cuts.len())].clone()
        } else {
            drawn
        };
        let Some(node) = self.world.node(gateway) else { return };
        let router = node.router.clone();
        let deadline = self.world.now() + Duration::from_secs(20);
        let all: Vec<_> =
            self.world.hosts.values().filter(|host| host.fenced.is_none()).map(|host| host.store).collect();
        let told = Arc::clone(&self.world.changes);
        match kind {
            0 => {
                self.next_range += 1;
                let right = RangeId(self.next_range);
                self.world.executor.spawn(gateway, async move {
                    let (done, what) = (router.split(&at, right, deadline).await, at.to_string());
                    lock(&told).push(("splits", what, done.map(drop)));
                });
            }
            1 => {
                let to = all[self.world.random.random_range(0..all.len())];
                self.world.executor.spawn(gateway, async move {
                    let (done, what) = (router.transfer(&at, to, deadline).await, format!("{at} to {to}"));
                    lock(&told).push(("transfers", what, done));
                });
            }
            _ => {
                let mut voters = all;
                while voters.len() > 3 {
                    voters.remove(self.world.random.random_range(0..voters.len()));
                }
                let target =
                    flotilla_types::ConfTarget { voters: voters.into_iter().collect(), learners: Default::default() };
                self.world.executor.spawn(gateway, async move {
                    let what = format!("{at} to {:?}", target.voters);
                    let done = router.change_replicas(&at, target, deadline).await;
                    lock(&told).push(("membership changes", what, done.map(drop)));
                });
            }
        }
    }

    /// Heals everything and looks at what is left.
    fn finish(mut self) -> Report {
        self.ending = true;
        if self.world.failures.is_empty() {
            // What is open ends by itself or never.
            self.go_until(self.world.now() + Duration::from_secs(8));
        }
        if self.world.failures.is_empty() {
            self.verify();
        }
        for client in 0..=CLIENTS {
            if let Some(open) = self.clients[client].take() {
                let (told, at) = (in_doubt(&open.op), self.world.now());
                self.record(&open, Ended { client, told, known: false, at, why: None });
            }
        }
        if self.seconds >= 60 && self.operations < OPERATIONS_MIN && self.world.failures.is_empty() {
            self.world.fail(format!("only {} operations were answered", self.operations));
        }
        for violation in self.history.judge() {
            self.world.fail(violation);
        }
        self.world.trace.add("histories undecided", self.history.undecided);
        let log = std::mem::take(&mut *lock(&self.txns));
        for (what, count) in one_shots::count(&log) {
            self.world.trace.add(what, count);
        }
        let (wrong, committed) = transactions::judge(&log, self.all_strict());
        let ended = log.iter().filter(|record| record.fate != Fate::Open).count() as u64;
        wrong.into_iter().for_each(|why| self.world.fail(why));
        let (asleep, awake) = self.world.invariants.slept;
        self.world.trace.add("replicas fell asleep", asleep);
        self.world.trace.add("replicas woke", awake);
        Report {
            seed: self.world.seed,
            failures: std::mem::take(&mut self.world.failures),
            operations: self.operations,
            transactions: (ended, committed),
            virtual_time: self.world.now(),
            trace_hash: self.world.trace.hash(),
            tail: self.world.trace.tail(),
            counts: std::mem::take(&mut self.world.trace.counts),
            history: self.history,
        }
    }

    /// The cluster is whole again: leased in time, all data readable, replicas equal, no hole in the records.
    fn verify(&mut self) {
        self.world.heal();
        self.forget_the_dead();
        crate::verify::leased_in_time(self);
        self.read_everything();
        crate::verify::no_lock_left(self);
        crate::verify::replicas_equal(self);
        crate::verify::records_cover_all(self);
    }

    /// Every key once more: what these reads see is judged with the rest.
    fn read_everything(&mut self) {
        for n in 0..crate::clients::KEYS {
            let Some(gateway) = self.world.up().first().copied() else { return };
            let Some(node) = self.world.node(gateway) else { return };
            let (began, op) = (self.world.now(), Op::Get(key(n)));
            let boot = self.world.hosts.get(&gateway).map_or(0, |host| host.disk.boot);
            let (answers, pasts) = (Arc::clone(&self.answers), Arc::clone(&self.pasts));
            let task = perform(node.router.clone(), CLIENTS, op.clone(), answers, pasts);
            self.clients[CLIENTS] = Some(Open { gateway, boot, began, op });
            self.world.executor.spawn(gateway, task);
            let (limit, before) = (began + Duration::from_secs(10), self.operations);
            while self.operations == before && self.world.now() < limit && self.world.failures.is_empty() {
                self.go_until((self.world.now() + Duration::from_millis(20)).min(limit));
            }
            if self.operations == before {
                self.world.fail(format!("{} cannot be read although all is healed", key(n)));
            }
        }
    }
}
