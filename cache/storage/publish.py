"""Commits a cache to a remote store as well: each segment's files when it is committed here, the journal after them.

What the remote journal names is there, whole. A rerun uploads what an earlier run did not; on a new machine it begins
with the remote manifest and journal, and goes on from there.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.format.journal import Commit, Journal, journal_of, journal_path, read_journal
from cache.format.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from cache.storage.remote import Remote, url_of
from common import disk
from common.errors import MismatchError

_CONNECTIONS = 8


def open_publisher(path: Path, url: str, manifest: Manifest, *, part: int) -> "Publisher | None":
    """The publisher of the cache in ``path`` below ``url``, '' for none. What only the remote side has is fetched.

    Raises MismatchError where another cache lies there.
    """
    if not url:
        return None
    publisher = Publisher(path, url_of(path, url), manifest, part=part)
    publisher.fetch_promises()
    return publisher


def publish_whole(path: Path, url: str, *, part: int) -> None:
    """Upload what is missing afar of a part that is complete here. Raises as ``open_publisher``, and DiskError."""
    manifest = read_manifest(path)
    if publisher := open_publisher(path, url, manifest, part=part):
        publisher.catch_up(journal_of(path, manifest, part))


def withdraw(path: Path, url: str) -> None:
    """Remove the cache of the same place below ``url``: its manifest first, without which nothing there is read."""
    remote = Remote(url_of(path, url))
    remote.remove(MANIFEST)
    remote.remove()


class Publisher:
    """Copies what is committed in the local cache ``path`` to ``url``, shards first and the journal last."""

    def __init__(self, path: Path, url: str, manifest: Manifest, *, part: int) -> None:
        self._path, self._remote, self._manifest, self._part = path, Remote(url), manifest, part

    def fetch_promises(self) -> None:
        """Bring manifest and journal here when only the remote side has them, so that a new machine can go on."""
        if self._remote.has(MANIFEST):
            self._refuse_another(parse_manifest(self._remote.read(MANIFEST), where=f"{self._remote.url}/{MANIFEST}"))
        for name in (journal_path(self._part), MANIFEST):
            if not (self._path / name).exists() and self._remote.has(name):
                disk.write_file(self._path / name, self._remote.read(name), tag=f"part-{self._part:05d}")

    def _refuse_another(self, there: Manifest) -> None:
        ours = self._manifest
        if (there.fingerprint, there.geometry.codec) != (ours.fingerprint, ours.geometry.codec):
            what = f"Another cache lies at the remote URL: {there.fingerprint}, codec {there.geometry.codec}."
            remedy = "Choose another cache.remote, or --fresh to begin anew there too."
            raise MismatchError(what, where=self._remote.url, remedy=remedy)

    def catch_up(self, journal: Journal) -> None:
        """Upload the manifest and whatever was committed here and not there, or otherwise."""
        if not self._remote.has(MANIFEST):
            self._send([*self._manifest.files])
            self._send([MANIFEST])
        said, known = self._said()
        for key, commit in journal.commits.items():
            if known.get(key) != commit and all((self._path / entry.path).exists() for entry in commit.files):
                self._send([entry.path for entry in commit.files])
        if said != journal.path.read_bytes():
            self._send([journal_path(self._part)])

    def _said(self) -> tuple[bytes, dict[tuple[str, int], Commit]]:
        """The remote journal, and what it says is there."""
        name = journal_path(self._part)
        if not self._remote.has(name):
            return b"", {}
        data, copy = self._remote.read(name), self._path / "locks" / f"remote-{self._part:05d}.jsonl"
        disk.write_file(copy, data)
        geometry, fingerprint = self._manifest.geometry, self._manifest.fingerprint
        return data, read_journal(copy, geometry=geometry, fingerprint=fingerprint, part=self._part).commits

    def publish(self, commit: Commit) -> None:
        """Upload a segment that the local journal has just come to name."""
        self._send([entry.path for entry in commit.files])
        self._send([journal_path(self._part)])

    def _send(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._send_one, names))

    def _send_one(self, name: str) -> None:
        self._remote.write(name, (self._path / name).read_bytes())
