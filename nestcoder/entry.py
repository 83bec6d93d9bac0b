"""Runs the command line, and turns errors into three lines and an exit code."""

import os
import sys

import click

from common.errors import CapacityError, DamagedError, DiskError, NestcoderError
from common.processes.garbage import leave_garbage, no_collections
from nestcoder.streams import protect_standard_streams
from nestcoder.text import printable

_LONGEST = 1000
"""The most characters of a line in a message; a name of thousands of characters does not help."""


def run(arguments: list[str] | None = None) -> None:
    """Run one command and exit with its code."""
    leave_garbage()
    with no_collections():
        from nestcoder.cli import command_line

    protect_standard_streams()
    try:
        command_line.main(args=arguments, standalone_mode=False)
        sys.stdout.flush()
    except NestcoderError as error:
        _leave(str(error), error.exit_code)
    except click.ClickException as error:
        print(printable(_usage_text(error)), file=sys.stderr)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort) as error:
        _leave_interrupted(error)
    except (OSError, MemoryError, RuntimeError) as error:
        stated = _stated(error)
        if stated is None:
            raise
        _leave(str(stated), stated.exit_code)


def _leave(message: str, code: int) -> None:
    """Print the error as three lines (what, where, what to do) and leave."""
    first, *rest = (
        line if len(line) <= _LONGEST else f"{line[:_LONGEST]}..." for line in printable(message).split("\n")
    )
    print("\n".join([f"nestcoder: {first}", *(f"  {line}" for line in rest)]), file=sys.stderr)
    sys.exit(code)


def _usage_text(error: click.ClickException) -> str:
    """The command's usage, and click's message about a wrong option or argument."""
    context = error.ctx if isinstance(error, click.UsageError) else None
    if context is None:
        return f"Error: {error.format_message()}"
    return f"{context.get_usage()}\nTry '{context.command_path} --help' for help.\n\nError: {error.format_message()}"


def _leave_interrupted(error: BaseException) -> None:
    """Leave after Ctrl-C. click raises Abort also for a file that ended too early, which is damage."""
    if isinstance(error.__cause__, EOFError):
        what = f"A file ends too early ({error.__cause__})."
        _leave(str(DamagedError(what, remedy="Fetch or write the file again.")), DamagedError.exit_code)
    # 130 is the exit code with which a shell reports a process that Ctrl-C ended.
    _leave("Interrupted; run the same command again to go on.", 130)


def _stated(error: Exception) -> NestcoderError | None:
    """The error for a problem of files, disk, network or memory that no stage has caught; None for a bug."""
    if isinstance(error, OSError):
        reason = os.strerror(error.errno) if error.errno else str(error)
        return DiskError(
            f"The system refused: {reason}.",
            where=error.filename or "",
            remedy="Correct this and run the same command again. Nothing that was finished is lost.",
        )
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        first = (str(error).splitlines() or [""])[0]
        return CapacityError(f"Out of memory. {first}".strip(), remedy="Use smaller batches, or another device.")
    return None
