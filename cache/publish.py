"""Commits a cache to a remote store as well: each segment's files when it is committed here, the journal after them.

What the remote journal names is there, whole. A rerun uploads what an earlier run did not; on a new machine it begins
with the remote manifest and journal, and goes on from there.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache import disk
from cache.journal import Commit, Journal, journal_path, read_journal
from cache.manifest import MANIFEST, Manifest
from cache.remote import Remote, url_of

_CONNECTIONS = 8


def open_publisher(path: Path, url: str, *, part: int) -> "Publisher | None":
    """The publisher of the cache in ``path`` below ``url``, '' for none. What only the remote side has is fetched."""
    if not url:
        return None
    publisher = Publisher(path, url_of(path, url), part=part)
    publisher.fetch_promises()
    return publisher


class Publisher:
    """Copies what is committed in the local cache ``path`` to ``url``, shards first and the journal last."""

    def __init__(self, path: Path, url: str, *, part: int) -> None:
        self._path, self._remote, self._part = path, Remote(url), part

    def fetch_promises(self) -> None:
        """Bring manifest and journal here when only the remote side has them, so that a new machine can go on."""
        for name in (journal_path(self._part), MANIFEST):
            if not (self._path / name).exists() and self._remote.has(name):
                disk.write_file(self._path / name, self._remote.read(name))

    def catch_up(self, manifest: Manifest, journal: Journal) -> None:
        """Upload the manifest and whatever was committed here and not there."""
        if not self._remote.has(MANIFEST):
            self._send([*manifest.files])
            self._send([MANIFEST])
        known = self._known(manifest)
        missing = [commit for key, commit in journal.commits.items() if key not in known]
        for commit in missing:
            self._send([entry.path for entry in commit.files])
        if missing or not self._remote.has(journal_path(self._part)):
            self._send([journal_path(self._part)])

    def _known(self, manifest: Manifest) -> set[tuple[str, int]]:
        name = journal_path(self._part)
        if not self._remote.has(name):
            return set()
        copy = self._path / "locks" / f"remote-{self._part:05d}.jsonl"
        disk.write_file(copy, self._remote.read(name))
        geometry, fingerprint = manifest.geometry, manifest.fingerprint
        return set(read_journal(copy, geometry=geometry, fingerprint=fingerprint, part=self._part).commits)

    def publish(self, commit: Commit) -> None:
        """Upload a segment that the local journal has just come to name."""
        self._send([entry.path for entry in commit.files])
        self._send([journal_path(self._part)])

    def _send(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._send_one, names))

    def _send_one(self, name: str) -> None:
        self._remote.write(name, (self._path / name).read_bytes())
