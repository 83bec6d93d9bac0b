"""The ``browse`` command: writes the page of a runs folder, or serves it on this machine while runs go on."""

from pathlib import Path

from common.errors import UsageError
from nestcoder.invocation import CommandResult, Invocation


def write(invocation: Invocation) -> CommandResult:
    """Write the page into the runs folder and show its path."""
    from evaluate.browse.page import write_page

    path = write_page(_runs(invocation))
    return CommandResult({"page": str(path)}, f"runs: {path}")


def serve(invocation: Invocation, port: int) -> None:
    """Serve the page until Ctrl-C."""
    from evaluate.browse.serve import make_server

    with make_server(_runs(invocation), port) as server:
        url = f"http://{server.server_address[0]}:{server.server_address[1]}/"
        invocation.show(CommandResult({"url": url}, f"runs: {url} (only on this machine; Ctrl-C ends it)"))
        server.serve_forever()


def _runs(invocation: Invocation) -> Path:
    runs = Path(invocation.settings.runs)
    if not runs.is_dir():
        remedy = "Run harvest and train first, or name another folder with --set runs=FOLDER."
        raise UsageError("There is no runs folder here.", where=runs, remedy=remedy)
    return runs
