"""Ebbgate: a store-and-forward one-way gateway for industrial sites. Processes and the words they share."""

from __future__ import annotations

from typing import Final

__version__: Final = "0.1.0"
