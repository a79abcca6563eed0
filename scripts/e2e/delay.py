#!/usr/bin/env python3
"""A TCP proxy that holds what passes through it for a while, in both directions: what stands between two datacenters.

`Delay` runs it as a process of its own, so that a busy client does not hold it up."""

import asyncio
import collections
import pathlib
import selectors
import subprocess
import sys


class Half(asyncio.Protocol):
    """One end of a connection. What it receives goes to the other end, in order, each chunk after the delay."""

    def __init__(self, seconds, accept=None):
        self.seconds, self.accept = seconds, accept
        self.loop = asyncio.get_running_loop()
        self.transport = self.other = None
        # What is under way to the other end; empty: that nothing more will be sent; None: that the connection is gone.
        self.held = collections.deque()
        self.has_sent_all = False

    def connection_made(self, transport):
        self.transport = transport
        if self.accept:
            self.accept(self)

    def data_received(self, data):
        self._hold(data)

    def eof_received(self):
        self._hold(b"")
        # The other direction may go on.
        return True

    def connection_lost(self, _):
        self._hold(None)

    def _hold(self, data):
        self.held.append(data)
        self.loop.call_later(self.seconds, self._release)

    def _release(self):
        # The oldest, whichever timer this is: timers of the same instant fire in no order.
        data = self.held.popleft()
        if self.other is None or self.other.transport.is_closing():
            self.transport.abort()
        elif data is None:
            self.other.transport.close()
        elif data:
            self.other.transport.write(data)
        else:
            self._close_one_way()

    def _close_one_way(self):
        self.has_sent_all = True
        try:
            self.other.transport.write_eof()
        except OSError:
            # It was reset, and its own end does not know yet.
            self.other.transport.abort()
        if self.other.has_sent_all:
            self.transport.close()

    def pause_writing(self):
        self.other.transport.pause_reading()

    def resume_writing(self):
        self.other.transport.resume_reading()


async def connect(half, port):
    """The way on from a connection that was accepted. It is there before the first chunk is due, or the connection ends."""
    try:
        _, onward = await half.loop.create_connection(lambda: Half(half.seconds), "127.0.0.1", port)
    except OSError:
        half.transport.abort()
        return
    half.other, onward.other = onward, half


async def serve(seconds, targets):
    """Prints the port of each target's proxy, and works until its parent is gone or closes its standard input."""
    loop, tasks, servers = asyncio.get_running_loop(), set(), []
    for target in targets:

        def accept(half, target=target):
            task = loop.create_task(connect(half, target))
            tasks.add(task)
            task.add_done_callback(tasks.discard)

        server = await loop.create_server(lambda accept=accept: Half(seconds, accept), "127.0.0.1", 0)
        servers.append(server)
    print(*(server.sockets[0].getsockname()[1] for server in servers), flush=True)
    await loop.run_in_executor(None, sys.stdin.read)


class Delay:
    """Proxies in front of some ports of this machine."""

    def __init__(self, milliseconds, targets):
        command = [sys.executable, str(pathlib.Path(__file__).resolve()), str(milliseconds), *map(str, targets)]
        self.child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        # Where each of them listens, in the order of the targets.
        self.ports = [int(port) for port in self.child.stdout.readline().split()]

    def stop(self):
        self.child.stdin.close()
        self.child.wait(10)


def main():
    milliseconds, *targets = sys.argv[1:]
    # epoll would round every delay up to whole milliseconds.
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(serve(float(milliseconds) / 1000, [int(target) for target in targets]))


if __name__ == "__main__":
    main()
