"""Three nodes of a cluster as separate processes on this machine, from deploy/three-nodes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
BINARY = ROOT / "bin" / "flotilla"


class Failed(Exception):
    """What the test waits for did not happen."""


def wait_for(what, holds, seconds=60, pause=0.05):
    """Polls until `holds` is true; returns the seconds that took."""
    start = time.monotonic()
    while True:
        if holds():
            return time.monotonic() - start
        if time.monotonic() - start > seconds:
            raise Failed(f"{seconds} s passed without: {what}")
        time.sleep(pause)


def enter(parser, run, name):
    """A script's way in: a directory for the stores, unless --stores names one, and an exit status."""
    parser.add_argument("--stores", help="where the nodes keep their stores; a directory of its own by default")
    arguments = parser.parse_args()
    try:
        if arguments.stores:
            return run(arguments, arguments.stores)
        with tempfile.TemporaryDirectory(prefix=f"flotilla-{name}-") as stores:
            return run(arguments, stores)
    except Failed as error:
        print(f"failed: {error}", file=sys.stderr)
        return 1


def settings(number):
    """The variables of deploy/three-nodes/nodeN.env."""
    lines = (ROOT / "deploy" / "three-nodes" / f"node{number}.env").read_text().splitlines()
    pairs = (line.split("=", 1) for line in lines if "=" in line and not line.lstrip().startswith("#"))
    return {name.strip(): value.strip().strip('"') for name, value in pairs}


class Process:
    """One node. It is this script's child: nobody else's process is ever signalled."""

    def __init__(self, number, stores, extra=()):
        self.number = number
        self.settings = settings(number)
        self.store = pathlib.Path(stores) / f"node{number}"
        self.log = pathlib.Path(stores) / f"node{number}.log"
        self.extra = list(extra)
        self.child = None

    @property
    def listen(self):
        return self.settings["FLOTILLA_LISTEN"]

    @property
    def http(self):
        return self.settings["FLOTILLA_HTTP"]

    @property
    def pid(self):
        return self.child.pid

    def start(self):
        environment = dict(os.environ, **self.settings, FLOTILLA_STORE=str(self.store))
        with open(self.log, "ab") as log:
            command = [str(BINARY), "start", "--insecure", *self.extra]
            self.child = subprocess.Popen(command, env=environment, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def kill(self):
        """kill -9, and the process is gone when this returns."""
        self.child.send_signal(signal.SIGKILL)
        self.child.wait()

    def stop(self):
        if self.child and self.child.poll() is None:
            self.child.terminate()
            try:
                self.child.wait(30)
            except subprocess.TimeoutExpired:
                self.kill()

    def ended(self):
        return self.child.poll() is not None

    def serves(self):
        if self.ended():
            raise Failed(f"node {self.number} ended with status {self.child.returncode}; see {self.log}")
        try:
            with urllib.request.urlopen(f"http://{self.http}/healthz", timeout=2) as answer:
                return answer.status == 200
        except (urllib.error.URLError, OSError):
            return False

    def metrics(self):
        """All samples of /metrics: {name with labels: value}."""
        with urllib.request.urlopen(f"http://{self.http}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if line and not line.startswith("#"))
        return {name: float(value) for name, value in pairs}

    def cpu_seconds(self):
        fields = pathlib.Path(f"/proc/{self.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def resident_bytes(self):
        return int(pathlib.Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Cluster:
    """Three nodes, started, joined and initialised."""

    def __init__(self, stores, extra=()):
        pathlib.Path(stores).mkdir(parents=True, exist_ok=True)
        self.nodes = [Process(number, stores, extra) for number in (1, 2, 3)]

    def __enter__(self):
        try:
            for node in self.nodes:
                node.start()
            wait_for("a cluster", self._initialised, seconds=60, pause=0.5)
            for node in self.nodes:
                wait_for(f"node {node.number} serves", node.serves, seconds=60)
        except BaseException:
            self.__exit__()
            raise
        return self

    def crash(self, node):
        """What happens to a node that is to die."""
        node.kill()

    def revive(self, node):
        """How it comes back."""
        node.start()

    def _initialised(self):
        done = self.cli("init", "--host", self.nodes[0].listen, check=False)
        return done.returncode == 0

    def __exit__(self, *_):
        for node in self.nodes:
            node.stop()

    @property
    def addresses(self):
        return [node.listen for node in self.nodes]

    @staticmethod
    def cli(*arguments, check=True):
        return subprocess.run([str(BINARY), *arguments], capture_output=True, text=True, check=check, timeout=900)

    def checksums(self, host=None):
        """`flotilla debug checksum`: one row per replica; raises if replicas disagree."""
        done = self.cli("debug", "checksum", "--json", "--host", host or self.addresses[0], check=False)
        if done.returncode != 0:
            raise Failed(f"replicas do not agree, or were not reached: {done.stdout[-2000:]} {done.stderr[-2000:]}")
        return [json.loads(line) for line in done.stdout.splitlines()]
