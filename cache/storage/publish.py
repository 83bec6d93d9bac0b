"""Commits a cache to a remote store as well: each segment's files when it is committed here, then the journal.

Whatever the remote journal names is complete there. A rerun uploads what an earlier run did not; on a new machine it
begins with the remote manifest and journal, and goes on from there.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cache.format.journal import Commit, Journal, journal_path, parse_journal
from cache.format.manifest import MANIFEST, Manifest, parse_manifest, read_manifest
from cache.format.seal import is_partition_complete, journal_of, seal_path
from cache.storage.remote_store import RemoteStore, url_of
from common import disk
from common.errors import MismatchError

# An object store answers one request in tens of milliseconds; eight at once use the bandwidth.
_CONNECTIONS = 8


def open_publisher(path: Path, url: str, manifest: Manifest, *, partition: int) -> "Publisher | None":
    """The publisher of the cache in ``path`` below ``url`` ('' for none). Fetches a journal that is only there.

    Raises MismatchError if there is another cache at that URL.
    """
    if not url:
        return None
    publisher = Publisher(path, url_of(path, url), manifest, partition=partition)
    publisher.fetch_index()
    return publisher


def publish_complete(path: Path, url: str, *, partition: int) -> None:
    """Upload what the remote cache is missing of a partition that is complete in ``path``.

    Raises as ``open_publisher``, and DiskError.
    """
    manifest = read_manifest(path)
    if publisher := open_publisher(path, url, manifest, partition=partition):
        publisher.catch_up(journal_of(path, manifest, partition))


def withdraw(path: Path, url: str) -> None:
    """Remove the cache below ``url`` that belongs to ``path``: first its manifest, without which nothing is read."""
    store = RemoteStore(url_of(path, url))
    store.remove(MANIFEST)
    store.remove()


class Publisher:
    """Copies what is committed in the local cache ``path`` to ``url``, shards first and the journal last."""

    def __init__(self, path: Path, url: str, manifest: Manifest, *, partition: int) -> None:
        self._path = path
        self._store = RemoteStore(url)
        self._manifest = manifest
        self._partition = partition

    def fetch_index(self) -> None:
        """Copy manifest and journal to this disk if only the remote cache has them, so that a new machine can go on."""
        if self._store.has(MANIFEST):
            self._refuse_another(parse_manifest(self._store.read(MANIFEST), location=f"{self._store.url}/{MANIFEST}"))
        for name in (journal_path(self._partition), MANIFEST):
            if not (self._path / name).exists() and self._store.has(name):
                disk.write_file(self._path / name, self._store.read(name), tag=f"part-{self._partition:05d}")

    def _refuse_another(self, there: Manifest) -> None:
        own = self._manifest
        if (there.fingerprint, there.geometry.codec) != (own.fingerprint, own.geometry.codec):
            what = f"There is another cache at the remote URL: {there.fingerprint}, codec {there.geometry.codec}."
            remedy = "Choose another cache.remote, or give --fresh to replace the cache there too."
            raise MismatchError(what, where=self._store.url, remedy=remedy)

    def catch_up(self, journal: Journal) -> None:
        """Upload the manifest, and every segment that is missing in the remote journal or differs there."""
        if not self._store.has(MANIFEST):
            self._send([*self._manifest.files])
            self._send([MANIFEST])
        there, known = self._remote_journal()
        for key, commit in journal.commits.items():
            if known.get(key) != commit and all((self._path / entry.path).exists() for entry in commit.files):
                self._send([entry.path for entry in commit.files])
        if there != journal.path.read_bytes():
            self._send([journal_path(self._partition)])
        if is_partition_complete(journal, self._manifest, self._partition):
            self.publish_seal()

    def publish_seal(self) -> None:
        """Upload the seal of a partition that is complete."""
        if (self._path / seal_path(self._partition)).exists():
            self._send([seal_path(self._partition)])

    def _remote_journal(self) -> tuple[bytes, dict[tuple[str, int], Commit]]:
        """The bytes of the remote journal, and the commits in it."""
        name = journal_path(self._partition)
        if not self._store.has(name):
            return b"", {}
        data = self._store.read(name)
        journal = parse_journal(
            data,
            self._path / name,
            geometry=self._manifest.geometry,
            fingerprint=self._manifest.fingerprint,
            partition=self._partition,
        )
        return data, journal.commits

    def publish(self, commit: Commit) -> None:
        """Upload a segment that was just committed here."""
        self._send([entry.path for entry in commit.files])
        self._send([journal_path(self._partition)])

    def _send(self, names: Sequence[str]) -> None:
        with ThreadPoolExecutor(_CONNECTIONS) as pool:
            list(pool.map(self._send_file, names))

    def _send_file(self, name: str) -> None:
        self._store.write(name, (self._path / name).read_bytes())
