"""The page of a runs folder over HTTP, on this machine alone, for runs that are still going on.

Only GET and HEAD, only on 127.0.0.1, and only these paths: the page, its data, the files of reports and of feature
pages that the page links to. A path is looked up among them, never opened as it was asked for, and a link that leads
out of the runs folder is none of them. A request whose Host names another machine is refused, so that no page of the
web can read runs through a name that it points here.
"""

import json
import threading
import time
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from common.errors import UsageError
from evaluate.browse.files import report_files
from evaluate.browse.page import page
from evaluate.browse.runs import runs_below

LOOPBACK = "127.0.0.1"
_FRESH_SECONDS = 1.0
"""How long what was found in the runs folder is shown before it is looked at again."""
_KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
}
_PAGE_PATTERNS = ("*.html", "*.md", "pages/*", "data/*.js")


class Shelf:
    """What a server may give out, by path; looked for anew when what is known is older than a second."""

    def __init__(self, runs: Path) -> None:
        self.runs = runs
        self._lock = threading.Lock()
        self._found: dict[str, Any] = {}
        self._files: dict[str, Path] = {}
        self._looked_at = float("-inf")

    def found(self) -> dict[str, Any]:
        """What lies in the runs folder."""
        self._look()
        return self._found

    def file(self, path: str) -> Path | None:
        """The file that this path names, None where it names none that may be given."""
        self._look()
        return self._files.get(path)

    def _look(self) -> None:
        with self._lock:
            if time.monotonic() - self._looked_at > _FRESH_SECONDS:
                self._found = runs_below(self.runs)
                self._files = {f"/{path.relative_to(self.runs).as_posix()}": path for path in self._linked()}
                self._looked_at = time.monotonic()

    def _linked(self) -> list[Path]:
        """The files of every report and of all feature pages that lie within the runs folder."""
        files: list[Path] = []
        for run in self._found["dictionaries"]:
            for path in run["report"][:1]:
                files += report_files((self.runs / path).parent)
            # A cross-layer transcoder's page leads to those of its layers.
            for page_file in filter(None, [run["features"], *(own["features"] for own in run.get("per_layer", []))]):
                folder = (self.runs / page_file).parent
                files += [path for pattern in _PAGE_PATTERNS for path in folder.glob(pattern)]
        top = self.runs.resolve()
        return [path for path in files if path.suffix in _KINDS and path.resolve().is_relative_to(top)]


def make_server(runs: Path, port: int) -> ThreadingHTTPServer:
    """A server of ``runs`` on ``port`` (0: any that is free), not yet serving. Raises UsageError for a taken port."""
    shelf = Shelf(runs)

    class Handler(_Handler):
        def __init__(self, *arguments: Any) -> None:
            self.shelf = shelf
            super().__init__(*arguments)

    try:
        return ThreadingHTTPServer((LOOPBACK, port), Handler)
    except (OSError, OverflowError) as error:
        remedy = "Give another --port, or none: then a free one is taken."
        raise UsageError(f"Port {port} cannot be used: {error}.", where=LOOPBACK, remedy=remedy) from None


class _Handler(BaseHTTPRequestHandler):
    """Answers with the page, its data, or one of the shelf's files."""

    shelf: Shelf
    timeout = 30

    def do_GET(self) -> None:
        """Answer with a head and a body."""
        self._answer(with_body=True)

    def do_HEAD(self) -> None:
        """Answer with a head alone."""
        self._answer(with_body=False)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """Requests are not news."""

    def version_string(self) -> str:
        """What the answer says of the server."""
        return "nestcoder"

    def _answer(self, *, with_body: bool) -> None:
        status, kind, body = self._found()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")
        self.send_header("X-Frame-Options", "DENY")
        self.end_headers()
        if with_body:
            self.wfile.write(body)

    def _found(self) -> tuple[HTTPStatus, str, bytes]:
        port = self.connection.getsockname()[1]
        if self.headers.get("Host") not in {f"{name}:{port}" for name in (LOOPBACK, "localhost")}:
            return HTTPStatus.FORBIDDEN, _KINDS[".txt"], b"This server answers to 127.0.0.1 alone.\n"
        path = unquote(urlsplit(self.path).path)
        if path in ("/", "/index.html"):
            return HTTPStatus.OK, _KINDS[".html"], page(self.shelf.found(), live=True).encode()
        if path == "/runs.json":
            return HTTPStatus.OK, _KINDS[".json"], json.dumps(self.shelf.found(), allow_nan=False).encode()
        file = self.shelf.file(path)
        try:
            if file is not None:
                return HTTPStatus.OK, _KINDS[file.suffix], file.read_bytes()
        except OSError:
            # It was there a second ago: a later evaluation has moved it.
            pass
        return HTTPStatus.NOT_FOUND, _KINDS[".txt"], b"There is nothing of this name here.\n"
