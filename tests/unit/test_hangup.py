"""A SIGHUP that comes before collect listens to it ends nothing: the configuration is read after it anyway."""

from __future__ import annotations

import subprocess
import sys

import pytest

STARTED = """
import os, signal
from gateway.cli import processes
def serve(*arguments):
    os.kill(os.getpid(), signal.SIGHUP)
    print("goes on")
processes.serve = serve
import gateway.config
gateway.config.load_gateway = lambda config: None
import gateway.groups
gateway.groups.collecting = lambda settings: []
processes.{command}
"""


@pytest.mark.parametrize("command", ["collect_command.callback(None, '', False)", "run_gateway.callback('none', False)"])
def test_a_hangup_during_the_start_ends_nothing(command: str) -> None:
    done = subprocess.run([sys.executable, "-c", STARTED.format(command=command)], capture_output=True, text=True, check=False, timeout=60)
    assert (done.stdout.strip(), done.returncode) == ("goes on", 0), done.stderr
