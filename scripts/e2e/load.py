#!/usr/bin/env python3
"""Loads the machine's Debian package index into three nodes while leaders are killed, and reads all of it back.

Every acknowledged record must be read back equal through each node, and all replicas of each range must have the same
hash. The last line is for programs.
"""

import argparse
import bisect
import collections
import os
import queue
import random
import struct
import subprocess
import sys
import threading
import time

import grpc

import flotilla_grpc
from cluster import Cluster, Failed, enter, wait_for

# What a client may try again with the same request id: nothing was done, or it is not known whether it was.
RETRY = {
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.RESOURCE_EXHAUSTED,
    grpc.StatusCode.ABORTED,
    grpc.StatusCode.UNKNOWN,
    grpc.StatusCode.CANCELLED,
}


def packages(limit):
    """name/version → stanza, as `apt-cache dumpavail` prints them."""
    text = subprocess.run(["apt-cache", "dumpavail"], capture_output=True, check=True).stdout
    records = {}
    for stanza in text.split(b"\n\n"):
        fields = dict(line.split(b": ", 1) for line in stanza.split(b"\n") if line[:1] not in (b" ", b"") and b": " in line)
        if b"Package" in fields and b"Version" in fields:
            records[fields[b"Package"] + b"/" + fields[b"Version"]] = stanza
    return dict(random.Random(7).sample(sorted(records.items()), min(limit, len(records))))


class RequestIds:
    """48 bits of birth, 48 of the client, 32 of a counter (flotilla/v1/kv.proto)."""

    def __init__(self):
        self.instance = os.urandom(6)
        self.counter = 0

    def next(self):
        self.counter += 1
        return struct.pack(">Q", int(time.time() * 1000))[2:] + self.instance + struct.pack(">I", self.counter)


class Gap:
    """How long a range acknowledged nothing at most, while somebody wanted something of it."""

    def __init__(self):
        self.waiting, self.since, self.longest = 0, 0.0, 0.0

    def wanted(self):
        if self.waiting == 0:
            self.since = time.monotonic()
        self.waiting += 1

    def acknowledged(self):
        now = time.monotonic()
        self.longest = max(self.longest, now - self.since)
        self.since = now
        self.waiting -= 1


class Progress:
    """What was acknowledged, and when, by range. Ranges are told apart by the keys that they were split at."""

    def __init__(self, splits):
        self.splits = splits
        self.acknowledged = set()
        self.retries = collections.Counter()
        self.failure = None
        self.gaps = [Gap() for _ in range(len(splits) + 1)]
        self.lock = threading.Lock()

    def gap(self, key):
        return self.gaps[bisect.bisect_right(self.splits, key)]

    def want(self, key):
        with self.lock:
            self.gap(key).wanted()

    def acknowledge(self, key):
        with self.lock:
            self.acknowledged.add(key)
            self.gap(key).acknowledged()

    def retry(self, why):
        with self.lock:
            self.retries[why[:100]] += 1

    def longest_gap(self):
        return max(gap.longest for gap in self.gaps)


class Pace:
    """Spreads the records over the kills, so that every kill meets writers at work and the last finds some left."""

    def __init__(self, records, kills):
        self.records, self.kills, self.done = records, kills, 0
        self.condition = threading.Condition()

    def allowed(self):
        return self.records if self.done >= self.kills else self.records * (self.done + 1) // (self.kills + 1)

    def killed(self):
        with self.condition:
            self.done += 1
            self.condition.notify_all()

    def wait(self, index, stop):
        with self.condition:
            self.condition.wait_for(lambda: stop.is_set() or index < self.allowed())

    def end(self):
        with self.condition:
            self.condition.notify_all()


def write(nodes, work, pace, progress, stop, rate):
    """One writer: each record under one request id, through any node, until it is acknowledged."""
    ids, turn = RequestIds(), random.randrange(len(nodes))
    while not stop.is_set():
        try:
            index, key, value = work.get_nowait()
        except queue.Empty:
            return
        pace.wait(index, stop)
        if stop.is_set():
            return
        request_id = ids.next()
        progress.want(key)
        while not stop.is_set():
            turn += 1
            try:
                nodes[turn % len(nodes)].kv.Put(timeout=10, key=key, value=value, request_id=request_id)
                progress.acknowledge(key)
                break
            except grpc.RpcError as error:
                if error.code() not in RETRY:
                    progress.failure = flotilla_grpc.reason(error)
                    stop.set()
                    return
                progress.retry(flotilla_grpc.reason(error))
                stop.wait(0.05)
        stop.wait(rate)


def split(nodes, splits):
    for key in splits:
        wait_for(f"a split at {key}", lambda: attempt(lambda: nodes[0].admin.Split(key=flotilla_grpc.logical(key))))


def attempt(call):
    try:
        return call()
    except grpc.RpcError as error:
        if error.code() not in RETRY:
            raise
        return None


def ranges(node):
    answers = attempt(lambda: list(node.admin.Ranges(timeout=20)))
    return [entry for answer in answers or [] for entry in answer.ranges]


def replicated(node, count):
    """Whether all ranges are there and each has its voters."""
    found = ranges(node)
    voters = [[r for r in entry.descriptor.replicas if r.kind == 1] for entry in found]
    return len(found) >= count and all(len(v) == 3 for v in voters)


def leader_of(nodes, key):
    """The store that leads the range that owns a key, as any node tells."""
    logical = flotilla_grpc.logical(key)
    for node in nodes:
        for entry in ranges(node):
            descriptor = entry.descriptor
            if descriptor.start <= logical < descriptor.end and entry.HasField("leader"):
                return entry.leader
    return None


def by_store(cluster, nodes):
    """The processes by the ids of their stores."""
    return {attempt_status(node): process for node, process in zip(nodes, cluster.nodes)}


def kill_leader(cluster, nodes, processes, key, chance, stop):
    """Kills the node that leads the range of a key, and has it serve again; says which, and after how long."""
    found = {}
    wait_for(f"a leader of the range of {key}", lambda: found.update(store=leader_of(nodes, key)) or found["store"])
    process = processes[found["store"]]
    cluster.crash(process)
    stop.wait(chance.uniform(0.2, 4.0))
    cluster.revive(process)
    back = wait_for(f"node {process.number} serves again", process.serves, seconds=90)
    return f"node {process.number}, serving again after {back:.1f} s"


def kill_again_and_again(cluster, nodes, keys, kills, pace, progress, stop):
    """Kills the leader of one loaded range after the other, the next when the killed node serves again."""
    chance, processes = random.Random(11), by_store(cluster, nodes)
    for number in range(kills):
        if progress.failure:
            raise Failed(f"a writer met an error that no retry helps: {progress.failure}")
        told = kill_leader(cluster, nodes, processes, keys[number % len(keys)], chance, stop)
        pace.killed()
        print(f"kill {number + 1} of {kills}: {told}", flush=True)
        # Let it lead something, or every second kill would find a follower.
        stop.wait(chance.uniform(0.5, 3.0))


def attempt_status(node):
    return wait_for_value(f"the status of {node.address}", lambda: attempt(lambda: node.admin.Status()).node_id)


def wait_for_value(what, ask):
    found = []
    wait_for(what, lambda: found.append(ask()) or found[-1])
    return found[-1]


def read_all(node):
    """All rows that one node shows, by a scan that goes on where it was cut."""
    rows, start = {}, b""
    while True:
        try:
            for chunk in node.kv.Scan(timeout=120, start=start):
                for row in chunk.rows:
                    rows[row.key] = row.value
                    start = row.key + b"\0"
            return rows
        except grpc.RpcError as error:
            if error.code() not in RETRY:
                raise
            print(f"scan through {node.address} goes on after: {flotilla_grpc.reason(error)}", flush=True)
            time.sleep(0.5)


def verify(nodes, records, acknowledged):
    """The acknowledged records that every node shows as they were written; and rows that nobody wrote."""
    intact, strangers = set(acknowledged), 0
    for node in nodes:
        rows = read_all(node)
        strangers += sum(1 for key, value in rows.items() if records.get(key) != value)
        intact = {key for key in intact if rows.get(key) == records[key]}
        print(f"{node.address} shows {len(rows)} records", flush=True)
    return intact, strangers


def run(arguments, stores, cluster_at=Cluster):
    records = packages(arguments.records)
    keys = sorted(records)
    splits = [keys[len(keys) * n // (arguments.splits + 1)] for n in range(1, arguments.splits + 1)]
    print(f"{len(records)} records, {sum(map(len, records.values())) >> 20} MiB; stores in {stores}", flush=True)
    with cluster_at(stores) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        split(nodes, splits)
        wait_for("three voters for every range", lambda: replicated(nodes[0], len(splits) + 5), 120, 0.5)
        progress, pace, stop = Progress(splits), Pace(len(records), arguments.kills), threading.Event()
        work = queue.Queue()
        for index, (key, value) in enumerate(records.items()):
            work.put((index, key, value))
        writers = [
            threading.Thread(target=write, args=(nodes, work, pace, progress, stop, arguments.pause), daemon=True)
            for _ in range(arguments.writers)
        ]
        for writer in writers:
            writer.start()
        samples = [b""] + splits
        kill_again_and_again(cluster, nodes, samples, arguments.kills, pace, progress, stop)
        for writer in writers:
            writer.join(timeout=600)
        stop.set()
        pace.end()
        gap = progress.longest_gap()
        for why, count in progress.retries.most_common(8):
            print(f"tried again {count} times: {why}")
        intact, strangers = verify(nodes, records, progress.acknowledged)
        rows = cluster.checksums()
        print(f"{len(rows)} replicas hashed, each range at one applied index with one hash", flush=True)
    acknowledged = len(progress.acknowledged)
    lost = acknowledged - len(intact)
    print(
        f"result acknowledged={acknowledged} verified={len(intact)} lost={lost} longest_gap_ms={round(gap * 1000)} "
        f"kills={arguments.kills}",
        flush=True,
    )
    if progress.failure:
        raise Failed(f"a writer met an error that no retry helps: {progress.failure}")
    if strangers:
        raise Failed(f"{strangers} rows hold what nobody wrote")
    if any(writer.is_alive() for writer in writers):
        raise Failed("writers did not come to an end")
    if acknowledged < arguments.acknowledged:
        raise Failed(f"only {acknowledged} records were acknowledged; {arguments.acknowledged} were wanted")
    return 1 if lost else 0


def options(parser):
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--records", type=int, default=1_000_000, help="at most so many records of the index")
    parser.add_argument("--acknowledged", type=int, default=30_000, help="fewer acknowledged records are a failure")
    parser.add_argument("--splits", type=int, default=8)
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--pause", type=float, default=0.005, help="seconds between two records of one writer")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options(parser)
    return enter(parser, run, "load")


if __name__ == "__main__":
    sys.exit(main())
