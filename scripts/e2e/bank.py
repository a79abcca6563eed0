#!/usr/bin/env python3
"""Moves money between accounts on three nodes in interactive transactions while leaders are killed and clients vanish.

Every snapshot must show the same total; every transfer whose commit was reported must be there in the end, and nothing of
one that was reported aborted; and the balances must be what the transfers make of them. The last line is for programs.
"""

import argparse
import bisect
import collections
import random
import sys
import threading
import time

import grpc

import flotilla_grpc
from cluster import Cluster, Failed, enter, wait_for
from flotilla_grpc import Ended, reason
from load import RETRY, RequestIds, attempt, by_store, kill_leader, ranges, replicated, split, wait_for_value

ACCOUNT, ACCOUNTS_END, TRANSFER = b"account/", b"account0", b"transfer/"
# Where a transaction writes what it takes back before its commit: nobody may ever see it.
TAKEN_BACK = b"taken-back/"
START = 1000
STEP_MS = 5000
# Outcomes are known for a minute after the commit; who asks at once is answered much earlier.
OUTCOME_SECONDS = 45

COMMITTED, ABORTED, UNKNOWN = "committed", "aborted", "unknown"
# The whole is to be done again on a new stream.
RESTART = {"RETRY_TXN", "TXN_ABORTED"}
# The same for plain reads, and that they met a lock for too long: the end of the run tells whether it stays.
RETRY_READ = RETRY | {grpc.StatusCode.FAILED_PRECONDITION}
# What may happen to a step while nodes die. After AMBIGUOUS to a commit nobody knows; after all others nothing was done.
TROUBLE = RESTART | {
    "AMBIGUOUS",
    "LOCKED",
    "TXN_FAILED",
    "DEADLINE_EXCEEDED",
    "OVERLOADED",
    "RANGE_UNAVAILABLE",
    "NODE_NOT_SERVING",
}


def account(number):
    return ACCOUNT + b"%04d" % number


def encode(balance):
    return balance.to_bytes(8, "big", signed=True)


def decode(value):
    return int.from_bytes(value, "big", signed=True)


def instant(timestamp):
    return timestamp.wall, timestamp.logical


class Refused(Exception):
    """A step was answered with a failure."""

    def __init__(self, failure):
        super().__init__(f"{failure.reason}: {failure.message}")
        self.reason = failure.reason


class Txn:
    """One transaction on its stream."""

    def __init__(self, node, seconds=30, step_ms=STEP_MS, **begin):
        self.stream = node.kv.Txn(timeout=seconds)
        self.step_ms = step_ms
        self.handle = None
        self.begin = begin

    def __enter__(self):
        self.stream.__enter__()
        try:
            self.step(begin=self.begin)
        except BaseException:
            self.stream.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.stream.__exit__()

    def send(self, **step):
        self.stream.send(timeout_ms=self.step_ms, **step)

    def receive(self):
        response = self.stream.receive()
        if response.HasField("handle"):
            self.handle = response.handle
        kind = response.WhichOneof("answer")
        if kind == "failure":
            raise Refused(response.failure)
        return getattr(response, kind)

    def step(self, **step):
        self.send(**step)
        return self.receive()

    def put(self, rows):
        """All at once, and then their answers."""
        for key, value in rows:
            self.send(put={"key": key, "value": value})
        for _ in rows:
            self.receive()

    def get(self, key, lock="LOCK_STRENGTH_UNSPECIFIED"):
        return self.step(get={"key": key, "lock": lock})


class Transfer:
    """One try to move an amount: each has a row of its own, so that the end tells of each whether it was done."""

    def __init__(self, number, chance, accounts):
        self.row = TRANSFER + b"%016x" % (chance.getrandbits(40) << 24 | number)
        self.source, self.target = chance.sample(range(accounts), 2)
        self.amount = chance.randint(1, 100)
        self.isolation = chance.choice(("SERIALIZABLE", "SERIALIZABLE", "SNAPSHOT"))
        # How its client leaves, if it does not stay for the answer.
        ways = ("cancels", "closes", "rolls back", "cancels the commit", "cancels the commit")
        self.leaves = chance.choice(ways) if chance.random() < 0.1 else None
        self.node = self.outcome = self.handle = self.at = None
        self.story = ""

    @property
    def value(self):
        return b"%d %d %d" % (self.source, self.target, self.amount)

    def __str__(self):
        keys = f"{account(self.source).decode()} to {account(self.target).decode()}"
        handle = self.handle.hex() if self.handle else None
        return (
            f"{self.row.decode()} ({self.amount} from {keys}, {self.isolation}, through {self.node.address}, "
            f"client {self.leaves or 'stays'}; {self.outcome}: {self.story}; at {self.at}, handle {handle})"
        )


class Bank:
    """What is known of the transfers, and what was found wrong."""

    def __init__(self, accounts, cuts):
        self.accounts, self.cuts = accounts, cuts
        self.transfers, self.wrongs = [], []
        self.troubles, self.counts = collections.Counter(), collections.Counter()
        self.lasts, self.longest = [], 0.0
        self.lock, self.stop = threading.Lock(), threading.Event()
        # Snapshots that were seen, to be read again: (timestamp, rows).
        self.past = collections.deque(maxlen=30)

    @property
    def total(self):
        return self.accounts * START

    def open(self, chance):
        with self.lock:
            transfer = Transfer(len(self.transfers), chance, self.accounts)
            self.transfers.append(transfer)
            return transfer

    def begin(self):
        self.lasts = [time.monotonic()] * (len(self.cuts) + 1)

    def moved(self, *numbers):
        """A transfer was committed: its ranges served. Somebody always wants something of each."""
        now = time.monotonic()
        with self.lock:
            for place in {bisect.bisect_right(self.cuts, account(number)) for number in numbers}:
                self.longest = max(self.longest, now - self.lasts[place])
                self.lasts[place] = now

    def end(self):
        self.longest = max([self.longest, *(time.monotonic() - last for last in self.lasts)])

    def trouble(self, why):
        with self.lock:
            self.troubles[why[:60]] += 1

    def count(self, what):
        with self.lock:
            self.counts[what] += 1

    def wrong(self, what):
        """Ends the run, since the nodes' logs tell most of what happened last."""
        print(f"WRONG {time.strftime('%H:%M:%S')}: {what}", flush=True)
        with self.lock:
            self.wrongs.append(what)
        self.stop.set()

    def guard(self, work, *arguments):
        try:
            work(self, *arguments)
        except Exception as error:
            self.wrong(f"{work.__name__} met what it does not know: {type(error).__name__}: {error}")


def other(nodes, node, chance):
    return chance.choice([another for another in nodes if another is not node])


def carry_out(bank, node, transfer, chance):
    """One transaction. Says what its client knows of it then."""
    sent, leaves = False, transfer.leaves
    transfer.node = node
    txn = None
    try:
        with Txn(node, isolation=transfer.isolation) as txn:
            lock = chance.choice(("LOCK_STRENGTH_UNSPECIFIED", "UPDATE"))
            balances = {}
            for number in chance.sample((transfer.source, transfer.target), 2):
                balances[number] = decode(txn.get(account(number), lock).value)
            rows = [
                (account(transfer.source), encode(balances[transfer.source] - transfer.amount)),
                (account(transfer.target), encode(balances[transfer.target] + transfer.amount)),
                (transfer.row, transfer.value),
            ]
            chance.shuffle(rows)
            if chance.random() < 0.2:
                txn.step(savepoint="s")
                txn.put([(account(transfer.source), encode(-START)), (TAKEN_BACK + transfer.row, b"")])
                txn.step(rollback_to="s")
            if leaves == "cancels":
                for key, value in rows[: chance.randint(1, 3)]:
                    txn.send(put={"key": key, "value": value})
                time.sleep(chance.choice((0, chance.uniform(0, 0.03))))
                return ABORTED
            txn.put(rows)
            if leaves == "closes":
                txn.stream.close()
                try:
                    bank.wrong(f"an answer that nobody asked for: {txn.receive()} of {transfer}")
                except Ended:
                    pass
                return ABORTED
            if leaves == "rolls back":
                txn.step(rollback={})
                return ABORTED
            txn.send(commit={})
            sent = True
            if leaves == "cancels the commit":
                time.sleep(chance.choice((0, chance.uniform(0, 0.03))))
                return UNKNOWN
            transfer.at = instant(txn.receive().timestamp)
            return COMMITTED
    except Refused as refused:
        transfer.story = str(refused)
        bank.trouble(transfer.story)
        if refused.reason not in TROUBLE:
            bank.wrong(f"no step may fail like this: {transfer}")
        bank.count("restarts" if refused.reason in RESTART else "refused")
        return UNKNOWN if sent and refused.reason == "AMBIGUOUS" else ABORTED
    except (grpc.RpcError, Ended) as error:
        transfer.story = reason(error) if isinstance(error, grpc.RpcError) else str(error)
        bank.trouble(transfer.story)
        if isinstance(error, grpc.RpcError) and error.code() not in RETRY:
            bank.wrong(f"no stream may end like this: {transfer}")
        return UNKNOWN if sent else ABORTED
    finally:
        transfer.handle = txn and txn.handle


def settle(bank, nodes, transfer, chance):
    """Asks other nodes what became of a transfer until one knows."""
    if not transfer.handle:
        bank.wrong(f"nobody was told what to ask Outcome with: {transfer}")
        return UNKNOWN
    began = time.monotonic()
    seen = "no answer"
    while time.monotonic() - began < OUTCOME_SECONDS:
        node = other(nodes, transfer.node, chance)
        answer = attempt(lambda: node.kv.Outcome(timeout=5, handle=transfer.handle))
        if answer:
            seen = answer.Outcome.Name(answer.outcome)
            if seen in ("COMMITTED", "ABORTED"):
                transfer.story += f", {seen} says {node.address}"
                if seen == "COMMITTED":
                    if transfer.at not in (None, instant(answer.timestamp)):
                        bank.wrong(f"Outcome tells another time, {instant(answer.timestamp)}, of {transfer}")
                    transfer.at = instant(answer.timestamp)
                return seen.lower()
        time.sleep(0.1)
    bank.wrong(f"after {OUTCOME_SECONDS} s Outcome says {seen} of {transfer}")
    return UNKNOWN


def see_row(bank, node, transfer):
    """Who was told of a commit sees it, through any node."""
    try:
        found = node.kv.Get(timeout=10, key=transfer.row)
    except grpc.RpcError as error:
        bank.trouble(f"reader: {reason(error)}")
        if error.code() not in RETRY_READ:
            raise
        return
    if found.value != transfer.value:
        seen = found.value if found.HasField("value") else "nothing"
        bank.wrong(f"a Get through {node.address} at {instant(found.timestamp)} shows {seen} after the commit of {transfer}")


def work(bank, nodes, chance, pause):
    """One client: transfer after transfer; one that others hindered is tried again at once, as a new one."""
    while not bank.stop.is_set():
        transfer = bank.open(chance)
        outcome = carry_out(bank, chance.choice(nodes), transfer, chance)
        if outcome == COMMITTED:
            bank.moved(transfer.source, transfer.target)
        if outcome == UNKNOWN:
            bank.count("unknown")
            outcome = settle(bank, nodes, transfer, chance)
        elif transfer.handle and chance.random() < 0.1:
            # What was answered and what Outcome says must be the same.
            said = settle(bank, nodes, transfer, chance)
            if said not in (outcome, UNKNOWN):
                bank.wrong(f"it was answered as {outcome}, and Outcome says {said}: {transfer}")
        transfer.outcome = outcome
        if outcome == COMMITTED and chance.random() < 0.2:
            node = other(nodes, transfer.node, chance)
            see_row(bank, other(nodes, transfer.node, chance), transfer)
        bank.stop.wait(pause)


def scan_in_txn(node, chance):
    """All accounts in one transaction: when, and what it saw."""
    rows, start = {}, ACCOUNT
    with Txn(node, isolation=chance.choice(("SERIALIZABLE", "SNAPSHOT"))) as txn:
        rows_max = chance.choice((0, 7))
        while start:
            chunk = txn.step(scan={"start": start, "end": ACCOUNTS_END, "rows_max": rows_max})
            rows.update((row.key, row.value) for row in chunk.rows)
            start = chunk.resume
        return instant(txn.step(commit={}).timestamp), rows


def scan_at(node, at):
    """All accounts as they are, or were at a timestamp."""
    rows, fields = {}, {}
    if at:
        fields["at"] = {"wall": at[0], "logical": at[1]}
    for chunk in node.kv.Scan(timeout=10, start=ACCOUNT, end=ACCOUNTS_END, chunk_bytes=500, **fields):
        rows.update((row.key, row.value) for row in chunk.rows)
        at = instant(chunk.timestamp)
    return at, rows


def check_total(bank, rows, what):
    total = sum(map(decode, rows.values()))
    if (len(rows), total) != (bank.accounts, bank.total):
        shown = {key.decode(): decode(value) for key, value in sorted(rows.items())}
        bank.wrong(f"{what} shows {total} in {len(rows)} accounts instead of {bank.total} in {bank.accounts}: {shown}")


def watch(bank, nodes, chance, pause):
    """Reads all accounts again and again, now and as they were."""
    while not bank.stop.is_set():
        node, at, earlier = chance.choice(nodes), None, None
        way = chance.choice(("transaction", "transaction", "scan", "scan of the past"))
        if way == "scan of the past" and bank.past:
            at, earlier = chance.choice(bank.past)
        try:
            at, rows = scan_in_txn(node, chance) if way == "transaction" else scan_at(node, at)
        except Refused as refused:
            bank.trouble(f"reader: {refused}")
            if refused.reason not in TROUBLE:
                bank.wrong(f"no reader may fail like this: {refused}")
        except (grpc.RpcError, Ended) as error:
            bank.trouble(f"reader: {reason(error) if isinstance(error, grpc.RpcError) else error}")
            if isinstance(error, grpc.RpcError) and error.code() not in RETRY_READ:
                raise
        else:
            check_total(bank, rows, f"a {way} through {node.address} at {at}")
            for key in sorted(earlier or ()):
                if rows.get(key) != earlier[key]:
                    was, now = decode(earlier[key]), rows.get(key) and decode(rows[key])
                    bank.wrong(f"at {at} {key.decode()} was {was} once and is {now} now, through {node.address}")
            bank.past.append((at, rows))
            bank.count("snapshots")
        bank.stop.wait(pause)


def spread(nodes, keys):
    """Has different stores lead the ranges of the keys, as far as they want to."""
    stores = sorted(entry.node_id for entry in nodes[0].admin.Nodes().nodes)
    owned = [entry.descriptor for entry in ranges(nodes[0])]
    for number, key in enumerate(map(flotilla_grpc.logical, keys)):
        for descriptor in owned:
            if descriptor.start <= key < descriptor.end:
                to = stores[number % len(stores)]
                try:
                    nodes[0].admin.TransferLeader(timeout=5, range_id=descriptor.range_id, to_store=to)
                except grpc.RpcError as error:
                    print(f"store {to} does not lead the range of {key[5:]}: {reason(error)}", flush=True)


def open_accounts(bank, node):
    """One batch under one request id, however often it is sent."""
    ops = [{"put": {"key": account(number), "value": encode(START)}} for number in range(bank.accounts)]
    request_id = RequestIds().next()
    wait_for("the accounts are open", lambda: attempt(lambda: node.kv.Batch(ops=ops, request_id=request_id)))


def disturb(bank, cluster, nodes, samples, kills, chance):
    """Kills a leader of loaded ranges again and again, and cuts a range anew between: records and locks move with it."""
    processes = by_store(cluster, nodes)
    for number in range(kills):
        told = kill_leader(cluster, nodes, processes, samples[number % len(samples)], chance, bank.stop)
        if bank.stop.is_set():
            return
        bank.count("kills")
        print(f"kill {number + 1} of {kills}: {told}; {bank.counts['snapshots']} snapshots", flush=True)
        bank.stop.wait(chance.uniform(0.5, 3.0))
        if number % 3 == 2:
            cut = chance.choice((account(chance.randrange(bank.accounts)), TRANSFER + b"%x" % chance.randrange(1, 256)))
            attempt(lambda: nodes[0].admin.Split(timeout=5, key=flotilla_grpc.logical(cut)))
            attempt(lambda: spread(nodes, samples))


def lock_all(bank, node):
    """Nobody is left who holds a lock: one transaction gets them all."""
    with Txn(node) as txn:
        for number in range(bank.accounts):
            txn.get(account(number), "UPDATE")
        txn.step(commit={})


def nobody_waits(bank, nodes, seconds):
    began, seen = time.monotonic(), None
    for node in nodes * 100:
        try:
            lock_all(bank, node)
            print(f"all accounts were locked in one transaction after {time.monotonic() - began:.2f} s", flush=True)
            return
        except (Refused, Ended, grpc.RpcError) as error:
            seen = f"{node.address}: {reason(error) if isinstance(error, grpc.RpcError) else error}"
        if time.monotonic() - began > seconds:
            break
        time.sleep(0.1)
    bank.wrong(f"{seconds} s after the last transfer no transaction can lock all accounts: {seen}")


def read_all(node, seconds=20):
    """All rows that one node shows. Nobody is at work any more, so that a scan that is cut may simply be done again."""
    began = time.monotonic()
    while True:
        try:
            return {row.key: row.value for chunk in node.kv.Scan(timeout=10) for row in chunk.rows}
        except grpc.RpcError as error:
            if time.monotonic() - began > seconds:
                raise Failed(f"{node.address} could not be read for {seconds} s: {reason(error)}") from error
            time.sleep(0.5)


def verify(bank, node):
    """What a node shows in the end, against what was reported: the rows that are missing, and those that nobody may see."""
    try:
        rows = read_all(node)
    except Failed as error:
        bank.wrong(str(error))
        return {transfer.row for transfer in bank.transfers if transfer.outcome == COMMITTED}, set()
    balances = {key: decode(value) for key, value in rows.items() if key.startswith(ACCOUNT)}
    expected = {account(number): START for number in range(bank.accounts)}
    known = {transfer.row: transfer for transfer in bank.transfers}
    lost = {row for row, transfer in known.items() if transfer.outcome == COMMITTED and row not in rows}
    phantom = set()
    for row, value in rows.items():
        if row.startswith(ACCOUNT):
            continue
        transfer = known.get(row)
        if not transfer or transfer.outcome == ABORTED or value != transfer.value:
            phantom.add(row)
        if transfer and value == transfer.value:
            expected[account(transfer.source)] -= transfer.amount
            expected[account(transfer.target)] += transfer.amount
    for row in lost:
        bank.wrong(f"{node.address} does not show {known[row]}")
    for row in phantom:
        bank.wrong(f"{node.address} shows {row} = {rows[row]}, which nobody committed: {known.get(row)}")
    for key in sorted(expected.keys() | balances.keys()):
        if expected.get(key) != balances.get(key):
            what = f"{balances.get(key)} on {key.decode()}, and its transfers make {expected.get(key)}"
            touched = [str(t) for t in bank.transfers if key in (account(t.source), account(t.target))][-5:]
            bank.wrong(f"{node.address} shows {what}; its last transfers: {touched}")
    check_total(bank, {key: value for key, value in rows.items() if key.startswith(ACCOUNT)}, f"{node.address} in the end")
    print(f"{node.address} shows {len(rows) - len(balances)} transfers", flush=True)
    return lost, phantom


def run(arguments, stores):
    cuts = [account(arguments.accounts * n // arguments.ranges) for n in range(1, arguments.ranges)]
    samples = [account(0)] + cuts + [TRANSFER]
    print(f"{arguments.accounts} accounts in {arguments.ranges} ranges; seed {arguments.seed}; stores in {stores}", flush=True)
    bank, chance = Bank(arguments.accounts, cuts), random.Random(arguments.seed)
    with Cluster(stores) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        more = [TRANSFER, TRANSFER + b"8"]
        split(nodes, cuts + more)
        wait_for("three voters for every range", lambda: replicated(nodes[0], len(cuts + more) + 5), 120, 0.5)
        open_accounts(bank, nodes[0])
        wait_for_value("leaders on all nodes", lambda: attempt(lambda: spread(nodes, samples) or True))
        bank.begin()
        jobs = [(work, arguments.pause)] * arguments.workers + [(watch, arguments.pause)] * 2
        threads = [
            threading.Thread(target=bank.guard, args=(job, nodes, random.Random(chance.random()), pause), daemon=True)
            for job, pause in jobs
        ]
        for thread in threads:
            thread.start()
        enough = lambda: bank.stop.is_set() or sum(t.outcome == COMMITTED for t in bank.transfers) >= arguments.transfers
        try:
            disturb(bank, cluster, nodes, samples, arguments.kills, chance)
            wait_for(f"{arguments.transfers} transfers", enough, 300, 0.5)
        except Failed as error:
            bank.wrong(str(error))
        bank.end()
        bank.stop.set()
        for thread in threads:
            thread.join(timeout=OUTCOME_SECONDS + 30)
        if any(thread.is_alive() for thread in threads):
            bank.wrong("threads did not come to an end")
        for node in cluster.nodes:
            if node.ended():
                bank.wrong(f"node {node.number} ended by itself with status {node.child.returncode}; see {node.log}")
        # Locks of clients that vanished are freed after five seconds at the latest.
        nobody_waits(bank, nodes, 8)
        for transfer in bank.transfers:
            if transfer.outcome not in (COMMITTED, ABORTED):
                bank.wrong(f"nobody knows what became of {transfer}")
        for why, count in bank.troubles.most_common(12):
            print(f"met {count} times: {why}")
        found = [verify(bank, node) for node in nodes]
        try:
            print(f"{len(cluster.checksums())} replicas hashed, each range at one applied index with one hash", flush=True)
        except Failed as error:
            bank.wrong(str(error))
    lost, phantom = (len(set().union(*rows)) for rows in zip(*found))
    outcomes = collections.Counter(transfer.outcome for transfer in bank.transfers)
    print(
        f"result committed={outcomes[COMMITTED]} aborted={outcomes[ABORTED]} unknown_settled={bank.counts['unknown']} "
        f"snapshots={bank.counts['snapshots']} kills={bank.counts['kills']} total_ok={str(not bank.wrongs).lower()} "
        f"lost={lost} phantom={phantom} longest_gap_ms={round(bank.longest * 1000)} restarts={bank.counts['restarts']}",
        flush=True,
    )
    if bank.wrongs:
        raise Failed(f"{len(bank.wrongs)} things are wrong, first: {bank.wrongs[0]}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--transfers", type=int, default=1000, help="fewer committed transfers are a failure")
    parser.add_argument("--accounts", type=int, default=60)
    parser.add_argument("--ranges", type=int, default=4, help="ranges that the accounts lie in at the start")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between two transactions of one thread")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the script's own choices")
    return enter(parser, run, "bank")


if __name__ == "__main__":
    sys.exit(main())
