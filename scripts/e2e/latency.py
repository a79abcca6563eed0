#!/usr/bin/env python3
"""What transactions cost a client of node 1, which leads all ranges, while the two other nodes stand in other datacenters:
all that passes between two nodes goes through a proxy that holds it for 10 ms each way. One client, one operation at a time,
on a cluster that does nothing else. Nothing is asserted of the figures; what was written must be there in the end."""

import argparse
import collections
import os
import statistics
import sys
import time

import grpc

import flotilla_grpc
from bank import Txn
from cluster import Cluster, Failed, enter, wait_for
from delay import Delay
from load import RETRY, RequestIds, attempt, attempt_status, ranges, replicated, split, verify

# The first keys of six ranges. The first is for what stays in one range, the others for what does not.
RANGES = [b"a", b"b", b"c", b"d", b"e", b"f"]
# Samples that may fail, of a hundred: a lease or a leader may move once.
FAILED_MAX = 2


class Apart(Cluster):
    """Three nodes, each in a datacenter of its own: whoever dials a node goes through the proxy in front of it."""

    def __init__(self, stores, milliseconds):
        super().__init__(stores)
        listening = [node.settings["FLOTILLA_PEER_LISTEN"] for node in self.nodes]
        self.delay = Delay(milliseconds, [address.rsplit(":", 1)[1] for address in listening])
        advertised = [f"127.0.0.1:{port}" for port in self.delay.ports]
        for node, address in zip(self.nodes, advertised):
            node.settings["FLOTILLA_PEER_ADVERTISE"] = address
            node.settings["FLOTILLA_JOIN"] = ",".join(advertised)

    def __exit__(self, *_):
        super().__exit__()
        self.delay.stop()


def lead_all(node, store):
    """Has one store lead every range, and waits until the ranges say so."""

    def led():
        found = ranges(node)
        elsewhere = [entry for entry in found if not entry.HasField("leader") or entry.leader != store]
        for entry in elsewhere:
            # Who has led for a moment only may not hand over yet: it is asked again.
            attempt(lambda: node.admin.TransferLeader(range_id=entry.descriptor.range_id, to_store=store))
        return found and not elsewhere

    return wait_for("one leader for all ranges", led, seconds=60, pause=0.5)


class Client:
    """What is measured. Every operation has keys of its own, so that none meets what another has locked."""

    def __init__(self, node):
        self.kv, self.node = node.kv, node
        self.ids, self.number = RequestIds(), 0
        # What the present operation writes.
        self.fresh = {}

    def rows(self, spread, count=10):
        """Keys in the first range, or over the five others, with fresh values."""
        self.number += 1
        places = [RANGES[1 + n % 5] if spread else RANGES[0] for n in range(count)]
        rows = {b"%s/%06d/%d" % (place, self.number, n): os.urandom(50).hex().encode() for n, place in enumerate(places)}
        self.fresh = rows
        return [{"key": key, "value": value} for key, value in rows.items()]

    def absent(self, place):
        return b"%s/nobody" % place

    def put(self):
        (row,) = self.rows(spread=False, count=1)
        return lambda: self.kv.Put(request_id=self.ids.next(), **row)

    def batch(self, spread):
        ops = [{"put": row} for row in self.rows(spread)]
        return lambda: self.kv.Batch(ops=ops, request_id=self.ids.next())

    def transact(self, places, spread, compare):
        """Ten puts, and beside them a comparison or a get in each of some ranges."""
        compares = [{"key": self.absent(place)} for place in places] if compare else []
        gets = [] if compare else [{"get": self.absent(place)} for place in places]
        then = gets + [{"put": row} for row in self.rows(spread)]

        def call():
            done = self.kv.Transact(compare=compares, then=then, request_id=self.ids.next())
            if not done.held or len(done.results) != len(then):
                raise Failed(f"a transaction was not done in one try: {done}")

        return call

    def interactive(self, spread, count, at_once):
        rows = self.rows(spread, count)

        def call():
            with Txn(self.node) as txn:
                for row in rows:
                    txn.send(put=row)
                    if not at_once:
                        txn.receive()
                for _ in rows if at_once else ():
                    txn.receive()
                txn.step(commit={})

        return call

    def again(self):
        """The second of two batches over the same keys: the locks of the first are still there when it comes."""
        rows = self.rows(spread=True)
        ops = [{"put": row} for row in rows]
        self.kv.Batch(ops=ops, request_id=self.ids.next())
        return lambda: self.kv.Batch(ops=ops, request_id=self.ids.next())


def deeds(client):
    """What is measured, by name; each makes a call whose preparation does not count."""
    first, others = RANGES[:1], RANGES[1:]
    return {
        "put": ("one put", client.put),
        "one_batch": ("batch: 10 keys, one range", lambda: client.batch(spread=False)),
        "one_compare": ("comparison and 10 puts, one range", lambda: client.transact(first, False, compare=True)),
        "five_batch": ("batch: 10 keys, 5 ranges", lambda: client.batch(spread=True)),
        "five_gets": ("5 gets and 10 puts, 5 ranges", lambda: client.transact(others, True, compare=False)),
        "five_again": ("batch: 10 keys, 5 ranges, the same keys again at once", client.again),
        "five_compares": ("5 comparisons and 10 puts, 5 ranges", lambda: client.transact(others, True, compare=True)),
        "txn_one": ("interactive: one put", lambda: client.interactive(False, 1, at_once=False)),
        "txn_ten": ("interactive: 10 puts, 5 ranges, one by one", lambda: client.interactive(True, 10, at_once=False)),
        "txn_sent": ("interactive: 10 puts, 5 ranges, sent at once", lambda: client.interactive(True, 10, at_once=True)),
    }


def measure(node, store, rounds, records):
    """Seconds of each deed. They take turns, so that the noise of a shared machine hits all alike."""
    client = Client(node)
    seconds, failed = collections.defaultdict(list), collections.Counter()
    for number in range(-5, rounds):
        if number % 50 == 0:
            lead_all(node, store)
            print(f"round {number} of {rounds}", flush=True)
        for name, (_, prepare) in deeds(client).items():
            try:
                call = prepare()
                start = time.perf_counter()
                call()
                took = time.perf_counter() - start
            except grpc.RpcError as error:
                if error.code() not in RETRY:
                    raise
                # Whether it was done is not known, and not asked.
                failed[flotilla_grpc.reason(error)] += 1
                continue
            records.update(client.fresh)
            # The first rounds find out where the ranges are.
            if number >= 0:
                seconds[name].append(took)
    for why, count in failed.items():
        print(f"{count} failed: {why}")
    if failed.total() * 100 > FAILED_MAX * rounds * len(seconds):
        raise Failed("too many operations failed")
    return seconds


def show(seconds, names):
    """The table, and the medians in milliseconds."""
    medians = {name: statistics.median(all_of) * 1000 for name, all_of in seconds.items()}
    print(f"{'':<56}{'median ms':>10}{'p90 ms':>10}{'ratio':>8}")
    for name, all_of in seconds.items():
        p90 = statistics.quantiles(all_of, n=10)[-1] * 1000
        print(f"{names[name]:<56}{medians[name]:>10.2f}{p90:>10.2f}{medians[name] / medians['put']:>8.2f}")
    return medians


def run(arguments, stores):
    records = {}
    with Apart(stores, arguments.delay) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        split(nodes, RANGES)
        wait_for("three voters for every range", lambda: replicated(nodes[0], len(RANGES) + 5), 120, 0.5)
        store = attempt_status(nodes[arguments.leader - 1])
        took = lead_all(nodes[0], store)
        print(f"node {arguments.leader} leads all ranges after {took:.1f} s; {arguments.delay} ms each way between nodes", flush=True)
        seconds = measure(nodes[0], store, arguments.rounds, records)
        intact, _ = verify(nodes, records, set(records))
    names = {name: title for name, (title, _) in deeds(Client(nodes[0])).items()}
    medians = show(seconds, names)
    ratio = {name: median / medians["put"] for name, median in medians.items()}
    lost = len(records) - len(intact)
    print(
        f"result put_ms={medians['put']:.2f} one_range_ratio={max(ratio['one_batch'], ratio['one_compare']):.2f} "
        f"five_ranges_ratio={max(ratio['five_batch'], ratio['five_gets']):.2f} "
        f"five_compares_ratio={ratio['five_compares']:.2f} interactive_ratio={ratio['txn_ten']:.2f} "
        f"acknowledged={len(records)} verified={len(intact)} lost={lost}"
    )
    return 1 if lost else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200, help="samples of each operation")
    parser.add_argument("--delay", type=float, default=10, help="milliseconds that a message between two nodes takes")
    parser.add_argument("--leader", type=int, choices=(1, 2, 3), default=1, help="the node that leads all ranges")
    return enter(parser, run, "latency")


if __name__ == "__main__":
    sys.exit(main())
