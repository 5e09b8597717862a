"""python -m gateway.cli: the same as `ebbgate`."""

from __future__ import annotations

from gateway.cli import main

main()
