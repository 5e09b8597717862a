"""The command `ebbgate`: the argument tree and nothing else. Every command's code is imported when it is called.

stdout is data, stderr is messages. Exit codes: 0 good, 1 a finding, 2 usage or configuration, 3 environment.
"""

from __future__ import annotations

import errno
import importlib
import json
import sys
from typing import TYPE_CHECKING, Any, Final

import click

from buffer.errors import CorruptError, StorageFault
from gateway import __version__
from gateway.errors import EXIT_ENVIRONMENT, EXIT_FINDING, EbbgateError

if TYPE_CHECKING:
    from collections.abc import Sequence

EXIT_PIPE: Final = 128 + 13  # who read our output had enough, as head does: 128 + SIGPIPE, as every program says it

# name -> (module, one line for --help). The line stands here so that --help imports no command.
COMMANDS: Final = {
    "demo": ("demo", "A simulated plant, five processes, a console and an outage: one command, no set-up."),
    "init": ("setup", "Write a configuration and keys: init gateway, init receiver."),
    "ca": ("authority", "The site's small certificate authority: init, sign, code, serve, revoke, list."),
    "enroll": ("identity", "Enrol this gateway with a one-time code from the CA."),
    "identity": ("identity", "Keys and certificates of this machine: show, install, renew, rotate."),
    "check": ("contact", "Explain every mistake in the configuration and test every source."),
    "trust": ("discover", "Show an OPC UA server's certificate and pin it; and ours, where the server does not trust us."),
    "browse": ("discover", "List what an OPC UA server has, as a tag table ready for use."),
    "read": ("discover", "Read one address of a source, to compare with the machine's own display."),
    "pause": ("contact", "Leave a source alone: Ebbgate disconnects within a second."),
    "resume": ("contact", "Connect to a paused source again."),
    "fill": ("fill", "Ask an OPC UA server's history for what the ring has nothing of."),
    "collect": ("processes", "Read the sources into the ring (OT process)."),
    "upload": ("processes", "Push the ring to the receiver (OT process)."),
    "receive": ("processes", "Take batches, verify them, land them (IT process)."),
    "deliver": ("processes", "Fill lake and historians from the landing (IT process)."),
    "console": ("processes", "Serve the read-only pages (IT process)."),
    "run": ("processes", "Start the processes of one side together: run gateway, run site."),
    "status": ("ledger", "How the processes on this machine are doing."),
    "ledger": ("ledger", "What is missing, and why."),
    "query": ("store", "One SELECT over the ring, with DuckDB, in a process that cannot write."),
    "ring": ("store", "Look into the ring: info, check, export."),
    "verify": ("store", "Confirm every frame of a landing, ring, stick or file, offline, with public keys alone."),
    "export": ("carry", "Write the ring's frames onto a stick, where there is no link (OT side)."),
    "import": ("carry", "Send the frames on a stick to the receiver (IT side)."),
    "import-identity": ("carry", "Make the identity that import shows to the receiver."),
}


class _Lazy(click.Group):
    """Imports a command's module only when that command is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002 -- click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"gateway.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = getattr(module, f"{cmd_name.replace('-', '_')}_command")
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (_, line) in COMMANDS.items()])


@click.command(cls=_Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(__version__, prog_name="ebbgate")
def tree() -> None:
    """Ebbgate: a store-and-forward one-way gateway. Reads PLCs and SCADA, keeps every reading, pushes them out; nothing comes in.

    First time?  ebbgate demo
    """


def main(arguments: Sequence[str] | None = None) -> None:
    """Run one command; every expected failure becomes one message and an exit code."""
    try:
        _run(arguments)
    except SystemExit:
        if type(sys.stdout).__name__.endswith("PacifyFlushWrapper"):  # click saw a broken pipe, and says 1: that is a finding here
            sys.exit(EXIT_PIPE)
        raise


def _run(arguments: Sequence[str] | None) -> None:
    try:
        sys.exit(tree.main(args=arguments, prog_name="ebbgate", standalone_mode=False) or 0)
    except click.exceptions.Abort:
        sys.exit(130)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except EbbgateError as error:
        fail(str(error), error.exit_code)
    except StorageFault as error:
        hint = "" if error.errno == errno.EBUSY else "\n  Check the disk and the owner and mode of that path."
        fail(f"storage: {error}{hint}", EXIT_ENVIRONMENT)
    except CorruptError as error:
        fail(f"corrupt: {error}", EXIT_FINDING)
    except PermissionError as error:
        fail(f"{error.filename}: permission denied\n  Run this as the user that owns the file.", EXIT_ENVIRONMENT)
    except BrokenPipeError:
        sys.exit(EXIT_PIPE)
    except KeyboardInterrupt:
        sys.exit(130)


def fail(message: str, code: int) -> None:
    """Say it on stderr and leave."""
    click.echo(f"ebbgate: {message}", err=True)
    sys.exit(code)


def emit(data: Any, as_json: bool, lines: Sequence[str]) -> None:  # noqa: ANN401 -- whatever json can write
    """Print `data` as one JSON object, or `lines` for people."""
    if as_json:
        click.echo(json.dumps(data, ensure_ascii=False, default=str))
        return
    for line in lines:
        click.echo(line)


def printable(text: str) -> str:
    """Return plant text safe for a terminal: control characters (C0, C1, DEL) become U+FFFD."""
    return "".join("\ufffd" if ord(c) < 32 or 127 <= ord(c) < 160 else c for c in text)  # noqa: PLR2004


def printable_lines(text: str) -> str:
    """Return text of several lines safe for a terminal, line ends kept."""
    return "\n".join(printable(line) for line in text.split("\n"))
