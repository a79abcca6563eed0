#!/usr/bin/env python3
"""How long others wait for a transaction that will never end, and that nothing of it is left: 100,000 puts, then kill -9.

Once the transaction's client dies: the node that it spoke to sees the stream break and rolls back at once. Once that node
dies itself: then the transaction counts as abandoned when its heartbeats have been missing for five seconds. On request the
client falls silent without its stream breaking, as when its machine loses power. From the kill on readers and writers ask
for random keys of it through the nodes that live. The last line is for programs.
"""

import argparse
import collections
import random
import signal
import statistics
import subprocess
import sys
import threading
import time

import grpc

import flotilla_grpc
from bank import RETRY_READ, Refused, Txn, spread
from cluster import Cluster, Failed, enter, wait_for
from flotilla_grpc import reason
from load import RequestIds, attempt, attempt_status, ranges, replicated, split, wait_for_value

# What the transaction writes, and what the writers do: told apart by the first byte, and about 100 bytes both.
LAID, WRITTEN = b"-" * 100, b"+"
# A wait longer than this is wrong on any machine. The aim is the heartbeat timeout, 5 s, and a second.
WRONG_SECONDS, AIM_SECONDS = 15, 6
LAYING_SECONDS = 1200
# Puts that are under way at a time.
AHEAD = 1000


def name(kind, number):
    return kind + b"/%06d" % number


def lay(address, kind, count):
    """The client that is to die, a process of its own: lays its locks, tells, and waits for its end."""
    node, began = flotilla_grpc.connect([address])[0], time.monotonic()
    with Txn(node, seconds=LAYING_SECONDS, step_ms=60_000) as txn:
        for number in range(int(count)):
            txn.send(put={"key": name(kind.encode(), number), "value": LAID})
            # A connection with too many small messages that nobody has taken yet is closed by the node's HTTP/2.
            if number >= AHEAD:
                txn.receive()
        for _ in range(min(AHEAD, int(count))):
            txn.receive()
        print(f"{time.monotonic() - began:.1f} {txn.handle.hex()}", flush=True)
        signal.pause()


class Client:
    """That process, seen from here. It is this script's child: nobody else's process is ever signalled."""

    def __init__(self, address, kind, count):
        command = [sys.executable, __file__, "--lay", address, kind.decode(), str(count)]
        self.child = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.child.kill()
        self.child.wait()

    def laid(self):
        """How long it took, and the transaction's handle."""
        told = self.child.stdout.readline().split()
        if len(told) != 2:
            raise Failed("the client ended before it had laid its locks")
        return float(told[0]), bytes.fromhex(told[1])


class Watch:
    """What readers and writers meet from the kill on."""

    def __init__(self, kind, count, nodes, before):
        self.kind, self.count, self.nodes, self.before = kind, count, nodes, before
        self.took = {"read": [], "write": [], "scan": []}
        self.written = collections.defaultdict(set)
        self.wrongs, self.troubles = [], collections.Counter()
        self.lock, self.stop = threading.Lock(), threading.Event()
        self.killed = time.monotonic()
        self.gone, self.left = None, []

    def wrong(self, what):
        with self.lock:
            print(f"WRONG {time.monotonic() - self.killed:.2f} s after the kill: {what}", flush=True)
            self.wrongs.append(what)

    def ask(self, what, chance, call):
        """One request, through another node if one cannot help; as long as that takes is how long somebody waited."""
        began = time.monotonic()
        answer = None
        while answer is None:
            node = chance.choice(self.nodes)
            try:
                answer = call(node)
            except grpc.RpcError as error:
                with self.lock:
                    self.troubles[f"{what}: {reason(error)}"[:100]] += 1
                if error.code() not in RETRY_READ or time.monotonic() - began > 3 * WRONG_SECONDS:
                    self.wrong(f"a {what} through {node.address} met {reason(error)}")
                    return None
                time.sleep(0.01)
        took = time.monotonic() - began
        with self.lock:
            self.took[what].append((began - self.killed, took))
        if took > WRONG_SECONDS:
            self.wrong(f"a {what} that began {began - self.killed:.2f} s after the kill took {took:.2f} s")
        return answer

    def read(self, chance):
        key = name(self.kind, chance.randrange(self.count))
        found = self.ask("read", chance, lambda node: node.kv.Get(timeout=2 * WRONG_SECONDS, key=key))
        if found and found.value[:1] not in (b"", WRITTEN):
            self.wrong(f"a read of {key} shows {found.value[:20]} of the transaction that never committed")

    def write(self, chance, ids=threading.local()):
        if not hasattr(ids, "own"):
            ids.own = RequestIds()
        key, request_id = name(self.kind, chance.randrange(self.count)), ids.own.next()
        value = WRITTEN + request_id * 6
        # Known before it is sent: it may be done without an answer.
        with self.lock:
            self.written[key].add(value)
        row = {"key": key, "value": value, "request_id": request_id}
        self.ask("write", chance, lambda node: node.kv.Put(timeout=2 * WRONG_SECONDS, **row))

    def scan(self, chance):
        """All keys in one go: as long as locks are left it waits for them or clears them. The first quick one is the end."""
        began = time.monotonic()
        whole = self.ask("scan", chance, lambda node: self.rows(node))
        quick = time.monotonic() - began < 1
        if whole is not None and quick and self.gone is None:
            self.gone = time.monotonic() - self.killed
        for key, value in (whole or {}).items():
            if value not in self.written[key]:
                self.wrong(f"a scan shows {key} = {value[:20]}, which nobody committed")
                return

    def rows(self, node):
        chunks = node.kv.Scan(timeout=2 * WRONG_SECONDS, start=self.kind + b"/", end=self.kind + b"0")
        return {row.key: row.value for chunk in chunks for row in chunk.rows}

    def count_left(self, chance):
        """How many locks are left, by the pairs that are stored: a look that touches none. A write adds one pair, too."""
        began, writes = time.monotonic() - self.killed, len(self.took["write"])
        stored = attempt(lambda: pairs(chance.choice(self.nodes), self.kind))
        if stored is not None:
            self.left.append((began, stored - self.before - writes))

    def work(self, step, chance, pause):
        try:
            while not self.stop.is_set():
                step(chance)
                self.stop.wait(pause)
        except Exception as error:
            self.wrong(f"{step.__name__} met what it does not know: {type(error).__name__}: {error}")

    def run(self, arguments, chance):
        jobs = [(self.read, arguments.pause)] * arguments.threads + [(self.write, arguments.pause)] * arguments.threads
        jobs += [(self.scan, 0.25), (self.count_left, 1)]
        threads = [
            threading.Thread(target=self.work, args=(step, random.Random(chance.random()), pause), daemon=True)
            for step, pause in jobs
        ]
        for thread in threads:
            thread.start()
        time.sleep(arguments.seconds)
        self.stop.set()
        for thread in threads:
            thread.join(timeout=4 * WRONG_SECONDS)
        if any(thread.is_alive() for thread in threads):
            self.wrong("threads did not come to an end")

    def figures(self, what):
        """Of its requests: how many, the longest, and the longest but of the slowest hundredth; in milliseconds."""
        took = [round(seconds * 1000) for _, seconds in self.took[what]]
        return len(took), max(took), round(statistics.quantiles(took, n=100)[98])

    def report(self):
        for what in ("read", "write"):
            count, longest, p99 = self.figures(what)
            slow = [began + seconds for began, seconds in self.took[what] if seconds > 1]
            last = f", the last of them until {max(slow):.2f} s after the kill" if slow else ""
            print(f"{count} {what}s: longest {longest} ms, p99 {p99} ms; {len(slow)} took longer than a second{last}", flush=True)
        slow_scans = [f"{began:.1f}+{seconds:.2f}" for began, seconds in self.took["scan"] if seconds >= 1]
        print(f"{len(self.took['scan'])} scans; slow ones (begin + length, s): {' '.join(slow_scans) or 'none'}", flush=True)
        left = ", ".join(f"{at:.1f}: {count}" for at, count in self.left)
        print(f"locks left, about (s after the kill: locks, writes under way among them): {left}", flush=True)
        for why, met in self.troubles.most_common(8):
            print(f"met {met} times: {why}", flush=True)


def owners(node, kind):
    """The ranges that the keys lie in."""
    start, end = flotilla_grpc.logical(kind + b"/"), flotilla_grpc.logical(kind + b"0")
    return [entry for entry in ranges(node) if entry.descriptor.start < end and start < entry.descriptor.end]


def led_by(nodes, stores, which):
    """Has these stores lead all ranges that `which` finds; says whether they do."""
    found = which(nodes[0])
    for number, entry in enumerate(found):
        if entry.leader not in stores:
            to = stores[number % len(stores)]
            attempt(lambda: nodes[0].admin.TransferLeader(timeout=5, range_id=entry.descriptor.range_id, to_store=to))
    return bool(found) and all(entry.leader in stores for entry in which(nodes[0]))


def pairs(node, kind):
    """Stored pairs in the ranges of the keys, locks among them, by the replicas that could be asked."""
    total = 0
    for entry in owners(node, kind):
        for answer in node.admin.Checksum(timeout=60, range_id=entry.descriptor.range_id):
            total += max(replica.pairs for replica in answer.hashes)
    return total


def still_locked(node, keys):
    """How many keys of these somebody holds."""
    held = 0
    with Txn(node) as txn:
        for key in keys:
            try:
                txn.step(get={"key": key, "lock": "UPDATE"}, wait="ERROR")
            except Refused as refused:
                if refused.reason != "LOCKED":
                    raise
                held += 1
    return held


def prepare(nodes, kind, arguments):
    cuts = [name(kind, arguments.keys * n // arguments.ranges) for n in range(arguments.ranges)]
    split(nodes, cuts + [kind + b"0"])
    wait_for("three voters for every range", lambda: replicated(nodes[0], 1), 120, 0.5)
    return cuts


def abandon(cluster, nodes, kind, kills, arguments, chance):
    """Lays the locks through the first node, kills its client or itself, and measures."""
    cuts = prepare(nodes, kind, arguments)
    stores = [attempt_status(node) for node in nodes]
    leading = stores[:1] if arguments.leading else stores[1:]
    if kills == "gateway" and arguments.leading:
        wait_for("the gateway leads the keys", lambda: led_by(nodes, leading, lambda node: owners(node, kind)), 120, 0.5)
    elif kills == "gateway":
        # Nothing but the transaction is to die with it, so it leads nothing.
        wait_for("the gateway leads nothing", lambda: led_by(nodes, leading, ranges), 120, 0.5)
    else:
        wait_for_value("leaders on all nodes", lambda: attempt(lambda: spread(nodes, cuts) or True))
    before = pairs(nodes[1], kind)
    with Client(nodes[0].address, kind, arguments.keys) as client:
        seconds, handle = client.laid()
        laid = pairs(nodes[1], kind)
        sample = [name(kind, number) for number in range(0, arguments.keys, max(1, arguments.keys // 100))]
        held = still_locked(nodes[1], sample)
        leaders = collections.Counter(entry.leader for entry in owners(nodes[1], kind))
        print(
            f"{kind.decode()}: {arguments.keys} puts in {seconds:.1f} s, {laid - before} pairs more; {held} of "
            f"{len(sample)} sampled keys are locked; leaders of the ranges by store: {dict(leaders)}",
            flush=True,
        )
        if held < len(sample):
            raise Failed("the locks are not there")
        if kills == "gateway" and not arguments.leading:
            # The cluster may have moved leaders back in all that time.
            wait_for("the gateway leads nothing", lambda: led_by(nodes[1:], leading, ranges), 60, 0.1)
        watch = Watch(kind, arguments.keys, nodes[1:] if kills == "gateway" else nodes, before)
        if kills == "gateway":
            cluster.nodes[0].kill()
        else:
            client.child.send_signal(signal.SIGKILL if kills == "client" else signal.SIGSTOP)
        watch.killed = time.monotonic()
        watch.run(arguments, chance)
    watch.report()
    finish(watch, nodes, handle, sample)
    if kills == "gateway":
        cluster.nodes[0].start()
        wait_for("the node serves again", cluster.nodes[0].serves, seconds=90)
    after = wait_for_value("pairs of all replicas", lambda: attempt(lambda: pairs(nodes[1], kind)))
    writes = len(watch.took["write"])
    print(f"{after - before} pairs more than before the transaction, after {writes} writes", flush=True)
    # Its record, and that of whoever looked at the locks, may be there still.
    if after - before - writes > max(10, arguments.keys // 1000):
        watch.wrong(f"{after - before - writes} pairs are there that no write explains")
    return seconds, watch


def finish(watch, nodes, handle, sample):
    """Nothing of the transaction is there, all that the writers were told of is, and everybody says so."""
    for node in watch.nodes:
        rows = watch.rows(node)
        for key in watch.written.keys() | rows.keys():
            if rows.get(key) not in watch.written[key]:
                shown = rows.get(key, b"nothing")[:20]
                watch.wrong(f"{node.address} shows {key} = {shown}, of {len(watch.written[key])} writes")
        answer = node.kv.Outcome(timeout=10, handle=handle)
        said = answer.Outcome.Name(answer.outcome)
        if said != "ABORTED":
            watch.wrong(f"Outcome through {node.address} says {said}")
    held = still_locked(watch.nodes[0], sample)
    if held:
        watch.wrong(f"{held} of {len(sample)} keys are still locked")
    if watch.gone is None:
        watch.wrong("no scan was quick again")


def run(arguments, stores):
    chance, wrongs, result = random.Random(arguments.seed), [], []
    print(f"{arguments.keys} keys in {arguments.ranges} ranges; seed {arguments.seed}; stores in {stores}", flush=True)
    with Cluster(stores) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        for kills in arguments.kill:
            seconds, watch = abandon(cluster, nodes, kills.encode(), kills, arguments, chance)
            wrongs += watch.wrongs
            result.append(f"{kills}_laid_s={seconds:.1f}")
            for what in ("read", "write"):
                _, longest, p99 = watch.figures(what)
                result.append(f"{kills}_{what}_max_ms={longest} {kills}_{what}_p99_ms={p99}")
                if longest > AIM_SECONDS * 1000:
                    print(f"{kills}: a {what} waited longer than the aim of {AIM_SECONDS} s", flush=True)
            result.append(f"{kills}_scan_max_ms={max(round(1000 * seconds) for _, seconds in watch.took['scan'])}")
            result.append(f"{kills}_gone_ms={round(1000 * watch.gone) if watch.gone else 'never'}")
        print(f"{len(cluster.checksums())} replicas hashed, each range at one applied index with one hash", flush=True)
    print(f"result intents={arguments.keys} {' '.join(result)} wrong={len(wrongs)}", flush=True)
    if wrongs:
        raise Failed(f"{len(wrongs)} things are wrong, first: {wrongs[0]}")
    return 0


def main():
    if sys.argv[1:2] == ["--lay"]:
        return lay(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kill", nargs="+", choices=("client", "gateway", "silent"), default=["client", "gateway"])
    parser.add_argument("--leading", action="store_true", help="the gateway leads the keys' ranges: fail-over counts, too")
    parser.add_argument("--keys", type=int, default=100_000, help="locks that the transaction lays")
    parser.add_argument("--ranges", type=int, default=4, help="ranges that the keys lie in")
    parser.add_argument("--threads", type=int, default=8, help="readers, and as many writers")
    parser.add_argument("--seconds", type=float, default=30, help="how long they work after the kill")
    parser.add_argument("--pause", type=float, default=0.02, help="seconds between two requests of one thread")
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 32), help="of the script's own choices")
    return enter(parser, run, "abandon")


if __name__ == "__main__":
    sys.exit(main())
