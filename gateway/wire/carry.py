"""Frames in a folder: the same bytes as over HTTPS, in files that FAT32 takes. Pure; upload writes and reads them.

Specification. <folder>/ebbgate-<stream>-frames/ holds

    objects.frames                                 tag tables and key statements, whole frames one after the other
    <generation>-<first block>.frames              segments and blocks in order of block, whole frames, at most PART_BYTES_MAX
    SHA256SUMS                                     "<64 hex>  <name>" a line, as sha256sum -c reads it; covers what is complete

<generation> is ten digits, "-", eight hex digits; <first block> sixteen digits. All names are lower case (but SHA256SUMS) without
characters that FAT refuses. Each file is published by rename, SHA256SUMS after each of them: a stick pulled out early holds whole
files, and at most one file (hidden, ending in .tmp) that nobody reads.
"""

from __future__ import annotations

import re
from typing import Final

from buffer import limits

PART_BYTES_MAX: Final = 256 * 1024**2  # far below FAT32's 4 GiB: what a pulled-out stick costs
STICK_FILE_BYTES_MAX: Final = 4 * 1024**3  # what FAT32 holds: more was not written by us
SUMS: Final = "SHA256SUMS"
SUMS_BYTES_MAX: Final = 1024 * 1024
OBJECTS: Final = "objects.frames"
NAME: Final = re.compile(r"objects\.frames|\d{10}-[0-9a-f]{8}-\d{16}\.frames")
STICK: Final = re.compile(rf"ebbgate-({limits.ID_PATTERN})-frames")
_SUM_LINE: Final = re.compile(r"([0-9a-f]{64})  (" + NAME.pattern + r")")


def directory_name(stream: str) -> str:
    """Return the name of the directory of one stream."""
    return f"ebbgate-{stream}-frames"


def part_name(generation: int, first_block: int) -> str:
    """Return the name of a file of frames."""
    return f"{generation >> 32:010d}-{generation & 0xFFFFFFFF:08x}-{first_block:016d}.frames"


def format_sums(sums: dict[str, str]) -> bytes:
    """Return SHA256SUMS of name -> SHA-256 in hex."""
    return "".join(f"{digest}  {name}\n" for name, digest in sorted(sums.items())).encode()


def parse_sums(text: str) -> dict[str, str]:
    """Return name -> SHA-256 of the lines that are ours; others are left out."""
    return {found[2]: found[1] for line in text.splitlines() if (found := _SUM_LINE.fullmatch(line))}
