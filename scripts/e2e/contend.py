#!/usr/bin/env python3
"""Transactions that stand in each other's way: deadlocks are broken within a second, at the cost of one; counters are shared.

Circles of two and of five transactions over as many ranges, through different nodes; two that hold a shared lock on one key
and both want to write it; and 64 clients that increment one counter. The last line is for programs.
"""

import argparse
import collections
import concurrent.futures
import random
import statistics
import sys
import threading
import time

import grpc

import flotilla_grpc
from bank import RESTART, Refused, Txn, spread
from cluster import Cluster, Failed, enter, wait_for
from flotilla_grpc import Ended, reason
from load import RETRY, RequestIds, attempt, replicated, split, wait_for_value

# A wait longer than this is wrong on any machine.
WRONG_SECONDS = 15
COUNTER = b"counter"


def ring(number):
    return b"ring/%d" % number


class Round:
    """Transactions that wait for each other in a circle, and what became of each."""

    def __init__(self, nodes, count):
        self.txns = [Txn(nodes[n % len(nodes)], seconds=60, step_ms=2000 * WRONG_SECONDS) for n in range(count)]
        self.victims, self.ends, self.others = [], {}, []

    def finish(self, number):
        """The step in the circle is answered: its transaction commits, or it was the victim."""
        txn = self.txns[number]
        try:
            txn.receive()
            self.ends[number] = time.monotonic()
            txn.step(commit={})
        except Refused as refused:
            self.ends[number] = time.monotonic()
            self.victims.append(number)
            if refused.reason not in RESTART:
                self.others.append(str(refused))
        except (grpc.RpcError, Ended) as error:
            self.ends.setdefault(number, time.monotonic())
            self.others.append(reason(error) if isinstance(error, grpc.RpcError) else str(error))
        finally:
            # Whoever was not committed rolls back with this.
            txn.__exit__()

    def run(self, pool, locks, wants):
        """Lays each transaction's first lock, then closes the circle; says how long the victim's answer took."""
        for txn in self.txns:
            txn.__enter__()
        for txn, step in zip(self.txns, locks):
            txn.step(**step)
        for txn, step in zip(self.txns, wants):
            txn.send(**step)
        closed = time.monotonic()
        for done in [pool.submit(self.finish, number) for number in range(len(self.txns))]:
            done.result()
        self.broken = min((self.ends[number] - closed for number in self.victims), default=None)
        self.over = max(self.ends.values()) - closed


class Report:
    """What is wrong, and the figures of each kind of circle."""

    def __init__(self):
        self.wrongs, self.figures = [], []

    def wrong(self, what):
        print(f"WRONG: {what}", flush=True)
        self.wrongs.append(what)

    def judge(self, what, rounds):
        broken = [r.broken for r in rounds if r.broken is not None]
        counts = [len(r.victims) for r in rounds]
        for number, r in enumerate(rounds):
            if len(r.victims) != 1:
                self.wrong(f"{what}, round {number}: {len(r.victims)} victims instead of one: {r.victims}")
            for story in r.others:
                self.wrong(f"{what}, round {number}: nobody may be told this: {story}")
            if r.over > WRONG_SECONDS:
                self.wrong(f"{what}, round {number}: the last was answered after {r.over:.2f} s")
        median, worst, late = statistics.median(broken or [0]), max(broken or [0]), sum(seconds > 1 for seconds in broken)
        print(
            f"{what}: {len(rounds)} rounds, the victim was told after {median * 1000:.0f} ms (median), {worst * 1000:.0f} ms "
            f"(worst), after more than a second in {late}; the last was answered after "
            f"{max(r.over for r in rounds) * 1000:.0f} ms at most; rounds by victims: {dict(collections.Counter(counts))}",
            flush=True,
        )
        self.figures.append(
            f"{what}_median_ms={median * 1000:.0f} {what}_max_ms={worst * 1000:.0f} {what}_victims={sum(counts)}/{len(rounds)}"
        )


def circle(nodes, pool, count, number, report):
    """Each locks its own key and then wants the next one's: to write it, or, every second time, to lock it only."""
    value = lambda n: b"%d %d" % (number, n)
    put = lambda key, n: {"put": {"key": ring(key), "value": value(n)}}
    lock = lambda key: {"get": {"key": ring(key), "lock": "UPDATE"}}
    writes = number % 2 == 0
    following = [(n + 1) % count for n in range(count)]
    # Through which node the first goes changes, too.
    start = number % len(nodes)
    r = Round(nodes[start:] + nodes[:start], count)
    before = [nodes[0].kv.Get(key=ring(n)).value for n in range(count)]
    r.run(pool, [put(n, n) for n in range(count)], [put(f, n) if writes else lock(f) for n, f in enumerate(following)])
    for n, f in enumerate(following):
        # The one that waited wrote last; of a victim nothing may be there.
        last = [by for by in ([n, f] if writes else [f]) if by not in r.victims]
        expected = value(last[0]) if last else before[f]
        found = nodes[f % len(nodes)].kv.Get(key=ring(f)).value
        if found != expected:
            report.wrong(f"{ring(f)} holds {found} instead of {expected} after round {number} with victims {r.victims}")
    return r


def upgrade(nodes, pool, number, report):
    """Two hold a shared lock and both want to write."""
    start, key = number % len(nodes), ring(number % 5)
    r = Round([nodes[start], nodes[start - 1]], 2)
    share = {"get": {"key": key, "lock": "SHARE"}}
    r.run(pool, [share] * 2, [{"put": {"key": key, "value": b"upgrade %d %d" % (number, n)}} for n in range(2)])
    winners = [b"upgrade %d %d" % (number, n) for n in range(2) if n not in r.victims]
    found = nodes[0].kv.Get(key=key).value
    if winners and found not in winners:
        report.wrong(f"{key} holds {found}, which is of none of {winners}")
    return r


class Counting:
    """One client of the counter: increments until the time is up, and asks again until each one is acknowledged."""

    def __init__(self, node, until):
        self.node, self.until = node, until
        self.done, self.longest, self.retries, self.failure = 0, 0.0, 0, None

    def run(self):
        ids = RequestIds()
        while time.monotonic() < self.until and not self.failure:
            request_id, began = ids.next(), time.monotonic()
            while not self.once(request_id) and not self.failure:
                self.retries += 1
                if time.monotonic() - began > 3 * WRONG_SECONDS:
                    self.failure = "an increment was never acknowledged"
                time.sleep(0.01)
            self.longest = max(self.longest, time.monotonic() - began)

    def once(self, request_id):
        try:
            self.node.kv.Increment(timeout=2 * WRONG_SECONDS, key=COUNTER, by=1, request_id=request_id)
            self.done += 1
            return True
        except grpc.RpcError as error:
            if error.code() not in RETRY:
                self.failure = reason(error)
            return False


def share(nodes, count, seconds, report):
    """Many clients and one counter: nothing is lost, and nobody starves."""
    until = time.monotonic() + seconds
    clients = [Counting(nodes[n % len(nodes)], until) for n in range(count)]
    threads = [threading.Thread(target=client.run, daemon=True) for client in clients]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=seconds + 4 * WRONG_SECONDS)
    for client in clients:
        if client.failure:
            report.wrong(f"a client of the counter through {client.node.address}: {client.failure}")
    acknowledged = sum(client.done for client in clients)
    for node in nodes:
        value = int.from_bytes(node.kv.Get(key=COUNTER).value, "big", signed=True)
        if value != acknowledged:
            report.wrong(f"{node.address} shows {value} after {acknowledged} acknowledged increments")
    longest, retries = max(client.longest for client in clients), sum(client.retries for client in clients)
    if longest > WRONG_SECONDS:
        report.wrong(f"an increment took {longest:.2f} s")
    mean = max(acknowledged, 1) / count
    slowest, fastest = (pick(client.done for client in clients) for pick in (min, max))
    by_node = [sum(client.done for client in clients[n :: len(nodes)]) for n in range(len(nodes))]
    print(
        f"{count} clients, {acknowledged} increments in {seconds:.0f} s, by node {by_node}; a client {slowest} to {fastest}, "
        f"mean {mean:.1f}; the longest took {longest * 1000:.0f} ms; {retries} were asked again",
        flush=True,
    )
    report.figures.append(
        f"increments={acknowledged} fairness={slowest / mean:.2f} increment_max_ms={longest * 1000:.0f} retries={retries}"
    )


def run(arguments, stores):
    report = Report()
    print(f"{arguments.rounds} rounds; stores in {stores}", flush=True)
    with Cluster(stores) as cluster, concurrent.futures.ThreadPoolExecutor(8) as pool:
        nodes = flotilla_grpc.connect(cluster.addresses)
        keys = [COUNTER] + [ring(number) for number in range(5)]
        split(nodes, keys)
        wait_for("three voters for every range", lambda: replicated(nodes[0], len(keys) + 5), 120, 0.5)
        wait_for_value("leaders on all nodes", lambda: attempt(lambda: spread(nodes, keys) or True))
        # The first requests find out who leads what; nobody's wait shall count that.
        for node in nodes:
            for key in keys:
                wait_for(f"{key} can be read", lambda: attempt(lambda: node.kv.Get(key=key)))
        for name, count in (("two", 2), ("five", 5)):
            report.judge(name, [circle(nodes, pool, count, number, report) for number in range(arguments.rounds)])
        report.judge("upgrade", [upgrade(nodes, pool, number, report) for number in range(arguments.rounds)])
        share(nodes, arguments.clients, arguments.seconds, report)
        print(f"{len(cluster.checksums())} replicas hashed, each range at one applied index with one hash", flush=True)
    print(f"result {' '.join(report.figures)} wrong={len(report.wrongs)}", flush=True)
    if report.wrongs:
        raise Failed(f"{len(report.wrongs)} things are wrong, first: {report.wrongs[0]}")
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=20, help="of each kind of deadlock")
    parser.add_argument("--clients", type=int, default=64, help="of the counter")
    parser.add_argument("--seconds", type=float, default=10, help="how long they count")
    return enter(parser, run, "contend")


if __name__ == "__main__":
    sys.exit(main())
