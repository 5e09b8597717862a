"""The whole of collect in a process of its own, to be killed: python -m tests.support.collect_child SETTINGS [NAME=SECONDS ..].

SETTINGS: a pickled GatewaySettings. NAME: a time limit of the OPC UA source that a test shortens (LIFETIME_S, KEEP_ALIVE_S, ..).
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from gateway.cli.processes import serve
from gateway.collect import service
from gateway.collect.opcua import fill, guarded, link, source, subscribe
from gateway.runtime import real


def shorten(name: str, value: float) -> None:
    """Set a constant in every module that has it."""
    found = [module for module in (fill, guarded, link, source, subscribe) if hasattr(module, name)]
    assert found, name
    for module in found:
        setattr(module, name, type(getattr(module, name))(value))


if __name__ == "__main__":
    for argument in sys.argv[2:]:
        name, _, value = argument.partition("=")
        shorten(name, float(value))
    settings = pickle.loads(Path(sys.argv[1]).read_bytes())
    serve("collect", False, lambda: service.run(real(), settings))
