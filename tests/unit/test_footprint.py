"""What keeps long-lived processes small is in force where it must be."""

from __future__ import annotations

import subprocess
import sys

DELIVER = """
import gateway.config
from gateway.cli import processes
gateway.config.load_site = lambda config: None
def serve(*arguments):
    import pyarrow
    print(pyarrow.default_memory_pool().backend_name)
processes.serve = serve
processes.deliver_command.callback(None, False)
"""
UPLOAD = """
import gc
import gateway.upload.service
from gateway import footprint
before = len(gc.get_objects())
footprint.give_back()
print(before > 20_000 and len(gc.get_objects()) < 1_000)
assert gc.get_freeze_count() > 20_000
"""


def said(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout.strip()


def test_arrow_shares_the_heap_of_deliver():
    assert said(DELIVER) == "system"


def test_what_lives_after_a_start_is_not_looked_at_again():
    assert said(UPLOAD) == "True"


SWEPT = """
import gc, weakref
from gateway import footprint
footprint.give_back()
class Connection: pass
one = Connection()
one.itself = one
gone = weakref.ref(one)
del one
assert gone() is not None
footprint.sweep()
print(gone() is None)
"""


def test_a_sweep_finds_what_a_dead_connection_left():
    assert said(SWEPT) == "True"
