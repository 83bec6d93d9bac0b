"""The real Hub client against a server on this machine: the listing, the choice, the download, and its continuation."""

import hashlib
import json
from collections.abc import Generator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import ClassVar

import pytest

from common.errors import DamagedError, DiskError
from transcoder.formats.hub import HubRepository

NAME, COMMIT = "google/gemma-scope-2b-pt-transcoders", "a" * 40
FILES = {
    "README.md": b"read me",
    "layer_8/width_16k/average_l0_52/params.npz": b"low",
    "layer_8/width_16k/average_l0_92/params.npz": b"high" * 1000,
}


class Hub(BaseHTTPRequestHandler):
    """The part of the Hub that listing and downloading need; keeps the ranges that were requested."""

    ranges: ClassVar[list[str | None]] = []
    cut_after: ClassVar[int | None] = None
    announced: ClassVar[str | None] = None

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        resolved = f"/{NAME}/resolve/main/"
        if self.path.startswith((f"/api/models/{NAME}/tree", f"/api/models/{NAME}/revision")):
            tree = [{"type": "file", "path": path, "size": len(data), "oid": "0" * 40} for path, data in FILES.items()]
            return self._send(json.dumps(tree).encode(), body=body)
        if self.path.startswith(f"/api/models/{NAME}"):
            siblings = [{"rfilename": path} for path in FILES]
            return self._send(json.dumps({"id": NAME, "sha": COMMIT, "siblings": siblings}).encode(), body=body)
        data = FILES.get(self.path.removeprefix(resolved)) or FILES.get(self.path.split(f"/resolve/{COMMIT}/")[-1])
        if data is None:
            return self.send_error(404)
        if body:
            type(self).ranges.append(self.headers.get("Range"))
        return self._send(data, body=body)

    def _send(self, data: bytes, *, body: bool) -> None:
        start = int((self.headers.get("Range") or "bytes=0-")[6:].split("-")[0])
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{self.announced or hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            self.wfile.write(data[start:] if self.cut_after is None else data[start : start + self.cut_after])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def endpoint() -> Generator[str]:
    Hub.ranges, Hub.cut_after, Hub.announced = [], None, None
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


def test_the_nearest_is_listed_chosen_and_fetched_once(endpoint: str, tmp_path: Path) -> None:
    hub = HubRepository(endpoint=endpoint, folder=tmp_path)
    for _ in range(2):
        path, choice = hub.fetch_nearest(layer=8, dict_size=18_432, l0=96.0)
        assert choice.l0 == 92
        assert path.read_bytes() == FILES[choice.path]
        assert path.parent.name == "average_l0_92"
    assert len(Hub.ranges) == 1


def test_an_interrupted_download_goes_on_at_the_same_byte(endpoint: str, tmp_path: Path) -> None:
    path = "layer_8/width_16k/average_l0_92/params.npz"
    Hub.cut_after = 500
    hub = HubRepository(endpoint=endpoint, folder=tmp_path)
    with pytest.raises(DiskError, match="the Hub cannot be reached"):
        hub.fetch(path)
    assert not (tmp_path / NAME / path).exists()
    Hub.cut_after = None
    assert hub.fetch(path).read_bytes() == FILES[path]
    assert Hub.ranges == [None, *(f"bytes={start}-" for start in (500, 1000, 1500, 2000, 2500))]


def test_other_bytes_than_announced_are_refused(endpoint: str, tmp_path: Path) -> None:
    path = "layer_8/width_16k/average_l0_52/params.npz"
    hub = HubRepository(endpoint=endpoint, folder=tmp_path)
    Hub.announced = "0" * 64
    with pytest.raises(DamagedError, match="SHA-256"):
        hub.fetch(path)
    Hub.announced = None
    assert hub.fetch(path).read_bytes() == FILES[path]


def test_a_hub_that_cannot_be_reached_is_a_typed_error(endpoint: str, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="the Hub cannot be reached"):
        HubRepository(endpoint=endpoint, folder=tmp_path).fetch("nothing.npz")
    with pytest.raises(DiskError, match="the Hub cannot be reached"):
        HubRepository(name="google/nothing", endpoint=endpoint, folder=tmp_path).paths()
