"""python -m tests.faults.device_fault ROOT KEY DIRECTORY CASE: a ring meets a device that takes no more; one JSON line.

Cases: "moves" (the sync of one journal fails once: the block goes elsewhere), "dies" (the same, and the process dies before it could
write the block elsewhere), "read-only" (the file system's own journal cannot be written: the kernel turns it read-only).
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

from buffer.errors import StorageFault
from buffer.storage import PosixStorage
from buffer.types import make_columns
from gateway.trust.keys import load_signer
from tests.faults import ring_work
from tests.faults.block_device import Device

GOOD = 5  # commits before the fault
EXT4_JOURNAL_MAGIC = bytes.fromhex("c03b3998")


def main() -> None:
    root, key, directory, case = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    disk = Device(directory, root.parent)
    ring = ring_work.open_ring(root, load_signer(key), 2**30)
    ring.commit(ring_work.instant())

    def commit(n: int) -> None:
        ring.append(make_columns([16], [10**18 + n], [1], [n], [0]), 0, ring_work.POSITION.pack(n))
        ring.commit(ring_work.instant())

    for n in range(GOOD):
        commit(n)
    active = ring._journals.active
    assert active is not None
    salted = (root / active.facts.name.path).read_bytes()[4096 : 4096 + 16]  # magic, version, kind, this file's salt: every block of it, and of it alone
    disk.poison(EXT4_JOURNAL_MAGIC if case == "read-only" else salted)
    if case == "dies":
        real = PosixStorage.fdatasync

        def last_sync(self, handle):
            try:
                real(self, handle)
            except StorageFault:
                os.kill(os.getpid(), signal.SIGKILL)

        PosixStorage.fdatasync = last_sync
    told, fault = GOOD - 1, ""
    try:
        for n in range(GOOD, GOOD + 40):
            commit(n)
            told = n
            if n % 4 == 0:
                ring._roll = True
    except StorageFault as error:
        fault = str(error)
    print(json.dumps({"told": told, "failed_syncs": ring.counters.failed_syncs, "fault": fault}), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    main()
