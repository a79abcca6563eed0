"""The load run with power cuts: each store lies on a file system of its own, which is shut down without writing anything
back before its node is killed. What was not synced is gone then, as behind a power cut; a killed process alone loses
nothing that it wrote. Every fourth cut takes all three nodes at once.

Needs root, for loop mounts, and says so."""

import argparse
import fcntl
import os
import pathlib
import struct
import subprocess
import sys

from cluster import Cluster, Failed, enter, wait_for
from load import options, run

# _IOR('X', 125, __u32) of ext4, with EXT4_GOING_FLAGS_NOLOGFLUSH: as if the power were gone.
SHUTDOWN, NO_LOG_FLUSH = 0x8004587D, 2
# Sparse: it takes on this disk what is written to it.
DISK_BYTES = 16 << 30


def system(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip()}")


class Disk:
    """A file system in a file."""

    def __init__(self, image, mount):
        self.image, self.mount = image, mount
        mount.mkdir(parents=True)
        with open(image, "wb") as file:
            file.truncate(DISK_BYTES)
        system("mkfs.ext4", "-q", "-F", str(image))

    def attach(self):
        system("mount", "-o", "loop", str(self.image), str(self.mount))

    def cut(self):
        """Nothing reaches the disk any more."""
        fd = os.open(self.mount, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, SHUTDOWN, struct.pack("I", NO_LOG_FLUSH))
        finally:
            os.close(fd)

    def detach(self):
        wait_for(f"{self.mount} is free", lambda: subprocess.run(["umount", str(self.mount)], capture_output=True).returncode == 0)


class Cuttable(Cluster):
    """Three nodes whose disks lose what was not synced."""

    def __init__(self, stores):
        super().__init__(stores)
        self.disks, self.cuts = {}, 0
        for node in self.nodes:
            disk = Disk(pathlib.Path(stores) / f"disk{node.number}.img", pathlib.Path(stores) / f"disk{node.number}")
            disk.attach()
            self.disks[node.number] = disk
            # The root of a file system holds things that are not a store's.
            node.store = disk.mount / "store"

    def crash(self, node):
        self.cuts += 1
        for node in self.nodes if self.cuts % 4 == 0 else [node]:
            self.disks[node.number].cut()
            node.kill()
            self.disks[node.number].detach()

    def revive(self, node):
        for node in self.nodes:
            if node.ended():
                self.disks[node.number].attach()
                node.start()

    def __exit__(self, *_):
        super().__exit__()
        for disk in self.disks.values():
            subprocess.run(["umount", str(disk.mount)], capture_output=True)


def main():
    if os.geteuid() != 0:
        print("failed: loop mounts need root: run it with sudo", file=sys.stderr)
        return 1
    parser = argparse.ArgumentParser(description=__doc__)
    options(parser)
    return enter(parser, lambda arguments, stores: run(arguments, stores, Cuttable), "power")


if __name__ == "__main__":
    sys.exit(main())
