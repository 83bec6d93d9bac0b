"""Verify and repair a cache at a URL; every file is read completely, and no copy is kept.

Damaged segments are revoked: the next harvest with that ``cache.remote`` uploads them again.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cache.format.array import STORE
from cache.format.journal import journal_line, journal_path, revoke_line
from cache.format.manifest import MANIFEST, parse_manifest
from cache.remote_reader import open_remote
from cache.storage.remote_store import RemoteStore
from cache.tools.index import ExpectedFile, Fault, read_index
from cache.tools.repair import Repair
from cache.tools.verify import Verification
from common.errors import DamagedError
from common.hashing import hash_bytes
from common.progress import Progress, Silent

# As for sending (``publish``): most of the time is waiting for the store's answer.
_CONNECTIONS = 8


def verify_remote(url: str, *, progress: Progress | None = None) -> Verification:
    """Check every file of the cache at ``url``. Raises what ``open_remote`` raises: it must be complete."""
    began = time.monotonic()
    progress = progress or Silent()
    reader = open_remote(url)
    index = read_index(reader.path)
    wanted = list(index.files.values())
    faults = list(index.faults)
    progress.begin("verify", total=index.bytes, unit="bytes")
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for expected, fault in zip(wanted, pool.map(partial(_check, reader.copies.store), wanted), strict=True):
            progress.advance(expected.entry.size_bytes)
            faults += [fault] if fault else []
    progress.end()
    return Verification(
        path=url,
        fingerprint=reader.fingerprint,
        fast=False,
        files=len(wanted),
        bytes=index.bytes,
        seconds=time.monotonic() - began,
        segments=index.segments,
        faults=tuple(faults),
        leftovers=(),
    )


def repair_remote(url: str, *, progress: Progress | None = None) -> Repair:
    """Verify the cache at ``url`` and revoke damaged segments; remove the manifest if a file that it lists is damaged.

    Raises DiskError, and DamagedError for a manifest or journal that cannot be read.
    """
    store = RemoteStore(url)
    try:
        found = verify_remote(url, progress=progress)
    except DamagedError as error:
        name = str(error.where).removeprefix(f"{store.url}/")
        if not name.startswith(f"{STORE}/"):
            raise
        store.remove(MANIFEST)
        return Repair(url, (Fault("damaged", name, error.what),), (), (), (), 0)
    manifest = parse_manifest(store.read(MANIFEST), location=f"{url}/{MANIFEST}")
    for partition in range(manifest.geometry.partitions):
        own = [
            lost
            for lost in found.damaged_segments
            if lost[1] in manifest.geometry.partition_segments(lost[0], partition)
        ]
        if own:
            data = store.read(journal_path(partition))
            lines = enumerate(own, start=data.count(b"\n"))
            revoked = [journal_line(revoke_line(number, *lost)) for number, lost in lines]
            store.write(journal_path(partition), b"".join([data, *revoked]))
    if any(fault.path in manifest.files for fault in found.faults):
        store.remove(MANIFEST)  # the next harvest sends it again, with the files that it lists
    rows = sum(manifest.geometry.groups[group].rows_in(number) for group, number in found.damaged_segments)
    return Repair(url, found.faults, (), (), found.damaged_segments, rows)


def _check(store: RemoteStore, expected: ExpectedFile) -> Fault | None:
    entry = expected.entry
    name = entry.path
    try:
        data = store.read(name) if entry.size_bytes else b""
    except DamagedError:
        return Fault("missing", name, segment=expected.segment)
    if len(data) != entry.size_bytes:
        return Fault("truncated", name, f"{len(data)} of {entry.size_bytes} bytes", segment=expected.segment)
    return None if hash_bytes(data) == entry.xxh3 else Fault("damaged", name, segment=expected.segment)
