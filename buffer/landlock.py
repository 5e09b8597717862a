"""Taking from this process the right to write, for good: Landlock (Linux 5.13 and later, landlock(7)). Standard library only.

Call it while the process has one thread and before numpy or duckdb are imported: threads that run already would escape.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from typing import TYPE_CHECKING, Final

from buffer.errors import StorageFault

if TYPE_CHECKING:
    from collections.abc import Iterable

ABI_MIN: Final = 3  # Linux 6.2: older ones let truncate(2) through
_ABI_NET: Final = 4
_ABI_SCOPED: Final = 6
_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same numbers on every architecture
_GET_ABI: Final = 1
_PATH_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_WRITE_FILE, _REMOVE_DIR, _REMOVE_FILE = 1 << 1, 1 << 4, 1 << 5
_MAKE_ANY: Final = sum(1 << bit for bit in range(6, 13))  # character, directory, regular, socket, fifo, block, symbolic link
_REFER, _TRUNCATE = 1 << 13, 1 << 14
_WRITES: Final = _WRITE_FILE | _REMOVE_DIR | _REMOVE_FILE | _MAKE_ANY | _REFER | _TRUNCATE
_TCP: Final = 1 | 2  # bind, connect
_SCOPES: Final = 1 | 2  # abstract unix sockets, signals


def _syscall(number: int, *arguments: object) -> int:
    return int(ctypes.CDLL(None, use_errno=True).syscall(ctypes.c_long(number), *arguments))


def landlock_abi() -> int:
    """Return what the kernel offers, 0 for nothing."""
    return max(0, _syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(_GET_ABI)))


def forbid_writes(except_beneath: Iterable[str]) -> None:
    """Take from this process and its children every write outside these directories, TCP too where the kernel can.

    Files that are open already stay as they are. Cannot be undone. Raise StorageFault where it does not take hold.
    """
    abi = landlock_abi()
    if abi < ABI_MIN:
        message = f"this kernel offers Landlock ABI {abi}, needed is {ABI_MIN} (Linux 6.2)"
        raise StorageFault(message, path="landlock", errno=errno.ENOSYS)
    attributes = struct.pack("QQQ", _WRITES, _TCP if abi >= _ABI_NET else 0, _SCOPES if abi >= _ABI_SCOPED else 0)
    length = 8 * (1 + (abi >= _ABI_NET) + (abi >= _ABI_SCOPED))
    ruleset = _checked("create", _syscall(_CREATE_RULESET, attributes, ctypes.c_size_t(length), ctypes.c_uint32(0)))
    try:
        for directory in except_beneath:
            _allow(ruleset, directory)
        libc = ctypes.CDLL(None, use_errno=True)
        _checked("no_new_privs", libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
        _checked("restrict", _syscall(_RESTRICT_SELF, ctypes.c_int(ruleset), ctypes.c_uint32(0)))
    finally:
        os.close(ruleset)


def _allow(ruleset: int, directory: str) -> None:
    try:
        fd = os.open(directory, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise StorageFault(error.strerror or "cannot be opened", path=directory, errno=error.errno) from error
    try:
        rule = struct.pack("=Qi", _WRITES, fd)
        _checked("add rule", _syscall(_ADD_RULE, ctypes.c_int(ruleset), ctypes.c_int(_PATH_BENEATH), rule, ctypes.c_uint32(0)))
    finally:
        os.close(fd)


def _checked(step: str, result: int) -> int:
    if result < 0:
        code = ctypes.get_errno()
        message = f"{step}: {os.strerror(code)}"
        raise StorageFault(message, path="landlock", errno=code)
    return result
