#!/usr/bin/env python3
"""How long writes to a range fail after kill -9 of the node that leads it; all other ranges idle, default settings."""

import argparse
import statistics
import sys
import time

import grpc

import flotilla_grpc
from cluster import Cluster, Failed, enter, wait_for
from load import RequestIds, leader_of, replicated, split, verify, wait_for_value, attempt, RETRY


def first_success(nodes, ids, key, value, seconds=30):
    """Seconds until a write through a living node succeeds, each try with a short deadline."""
    start, turn, request_id = time.monotonic(), 0, ids.next()
    while time.monotonic() - start < seconds:
        turn += 1
        try:
            nodes[turn % len(nodes)].kv.Put(timeout=1, key=key, value=value, request_id=request_id)
            return time.monotonic() - start
        except grpc.RpcError as error:
            if error.code() not in RETRY:
                raise
            time.sleep(0.01)
    raise Failed(f"no write succeeded for {seconds} s")


def run(arguments, stores):
    ids, gaps, records = RequestIds(), [], {}
    with Cluster(stores) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        key = b"written"
        split(nodes, [b"a", b"b", key, b"x", b"y"])
        wait_for("three voters for every range", lambda: replicated(nodes[0], 10), 120, 0.5)
        stores_of = {
            wait_for_value("a status", lambda n=node: attempt(lambda: n.admin.Status()).node_id): index
            for index, node in enumerate(nodes)
        }
        for number in range(arguments.runs):
            row = b"written/%d" % number
            records[row] = b"%d" % number
            first_success(nodes, ids, key, b"before")
            leader = stores_of[wait_for_value("a leader", lambda: leader_of(nodes, key))]
            alive = [node for index, node in enumerate(nodes) if index != leader]
            cluster.nodes[leader].kill()
            gap = first_success(alive, ids, row, records[row])
            gaps.append(gap)
            cluster.nodes[leader].start()
            wait_for("the node serves again", cluster.nodes[leader].serves, seconds=90)
            print(f"run {number + 1}: node {leader + 1} killed, writes succeed again after {gap:.2f} s", flush=True)
        records[key] = b"before"
        intact, _ = verify(nodes, records, set(records))
    lost = len(records) - len(intact)
    median, worst = statistics.median(gaps), max(gaps)
    print(f"median {median:.2f} s, worst {worst:.2f} s over {len(gaps)} kills")
    print(f"result acknowledged={len(records)} verified={len(intact)} lost={lost} longest_gap_ms={round(worst * 1000)}")
    return 1 if lost else 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    return enter(parser, run, "failover")


if __name__ == "__main__":
    sys.exit(main())
