"""Whose fault it is, and what to do: every message a person sees says both.

Exit codes: 0 good, 1 a finding, 2 usage or configuration, 3 environment.
"""

from __future__ import annotations

from typing import Final

EXIT_FINDING: Final = 1
EXIT_USAGE: Final = 2
EXIT_ENVIRONMENT: Final = 3


class EbbgateError(Exception):
    """Base. `remedy` is one sentence in the imperative: what the reader should do now."""

    exit_code = EXIT_ENVIRONMENT

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(f"{message}\n  {remedy}" if remedy else message)
        self.message = message
        self.remedy = remedy


class ConfigError(EbbgateError):
    """The person who wrote a file or a command line: names file, line or cell."""

    exit_code = EXIT_USAGE


class PlantError(EbbgateError):
    """A PLC, SCADA server or its network. Ours to bear: back off, say so, go on."""


class PeerError(EbbgateError):
    """The receiver, the link or a device between. Ours to bear: back off, say so, go on."""


class TrustError(EbbgateError):
    """A key, certificate or signature is missing, wrong, expired or revoked."""


class WriteRefused(EbbgateError):
    """Our own guard stopped something that is not a read. A defect or an attack; nothing was sent."""

    exit_code = EXIT_FINDING
