"""A configuration read by a child process, for a process that lives for years on a small box.

What reading takes (pydantic, the text of a table, each row on its way to being one: 30 MB for 10,000 tags) ends with the child. Read in the
process itself, the rows that stay lay scattered among it and kept a good part of it: after a SIGHUP a collect of 10,000 tags held 100 to 107 MB.
The settings come back over a pipe, or the error that a person is to see.
"""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from gateway.errors import EbbgateError

if TYPE_CHECKING:
    from gateway.settings import GatewaySettings

COMMAND: Final = (sys.executable, "-P", "-m", "gateway.apart")  # -P: nothing is imported from the working directory
SECONDS_MAX: Final = 120  # a million tags take 60 s on a small box


def load_gateway(config: Path, group: str) -> GatewaySettings:
    """Return the settings of one collect process; raise what reading them raised."""
    try:
        done = subprocess.run([*COMMAND, str(config), group], stdout=subprocess.PIPE, check=False, timeout=SECONDS_MAX)
        found = pickle.loads(done.stdout)  # noqa: S301 -- our own child's, over a pipe that nobody else has
    except (OSError, subprocess.TimeoutExpired, EOFError, pickle.UnpicklingError) as error:
        raise EbbgateError(f"the child that reads {config} did not end well: {error}", "Look into the log; start again with more memory.") from None
    if isinstance(found, Exception):
        raise found
    settings: GatewaySettings = found
    return settings


def _read(config: Path, group: str) -> GatewaySettings | Exception:
    from gateway import config as reading
    from gateway.groups import of_group

    try:
        return of_group(reading.load_gateway(config), group)
    except (EbbgateError, OSError, ValueError) as error:
        return error


if __name__ == "__main__":
    sys.stdout.buffer.write(pickle.dumps(_read(Path(sys.argv[1]), sys.argv[2]), pickle.HIGHEST_PROTOCOL))
