"""Whether every file of a remote cache is what its journals promise; each is read whole from there, none is kept.

What is not can be taken back: the next harvest with that ``cache.storage.remote`` uploads it again.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cache.format.journal import journal_line, journal_path, revoke_line
from cache.format.layout import STORE
from cache.format.manifest import MANIFEST, parse_manifest
from cache.storage.remote import Remote, open_remote
from cache.tools.repair import Repair
from cache.tools.verify import Fault, Promise, Verification, read_promises
from common.errors import DamagedError
from common.hashing import file_hash
from common.progress import Progress, Silent

_CONNECTIONS = 8


def verify_remote(url: str, *, progress: Progress | None = None) -> Verification:
    """Check every file of the cache at ``url``. Raises what ``open_remote`` raises: it must be complete."""
    began, said = time.monotonic(), progress or Silent()
    reader = open_remote(url)
    promises = read_promises(reader.path)
    wanted, faults = list(promises.files.values()), list(promises.faults)
    said.begin("verify", total=sum(promise.entry.size_bytes for promise in wanted), unit="bytes")
    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        for promise, fault in zip(wanted, pool.map(partial(_check, reader.copies.remote), wanted), strict=True):
            said.advance(promise.entry.size_bytes)
            faults += [fault] if fault else []
    said.end()
    return Verification(
        path=url,
        fingerprint=reader.fingerprint,
        fast=False,
        files=len(wanted),
        bytes=sum(promise.entry.size_bytes for promise in wanted),
        seconds=time.monotonic() - began,
        segments=promises.segments,
        faults=tuple(faults),
        leftovers=(),
    )


def repair_remote(url: str, *, progress: Progress | None = None) -> Repair:
    """Verify the cache at ``url`` and take back what is damaged: its segments, or, where one of the files that the
    manifest binds is, the manifest. Raises DiskError, and DamagedError for a manifest or journal that does not read.
    """
    remote = Remote(url)
    try:
        found = verify_remote(url, progress=progress)
    except DamagedError as error:
        name = str(error.where).removeprefix(f"{remote.url}/")
        if not name.startswith(f"{STORE}/"):
            raise
        remote.remove(MANIFEST)
        return Repair(url, (Fault("damaged", name, error.what),), (), (), (), 0)
    manifest = parse_manifest(remote.read(MANIFEST), where=f"{url}/{MANIFEST}")
    for part in range(manifest.geometry.parts):
        own = [lost for lost in found.damaged_segments if lost[1] in manifest.geometry.part_segments(lost[0], part)]
        if own:
            data = remote.read(journal_path(part))
            lines = enumerate(own, start=data.count(b"\n"))
            revoked = [journal_line(revoke_line(number, *lost)) for number, lost in lines]
            remote.write(journal_path(part), b"".join([data, *revoked]))
    if any(fault.path in manifest.files for fault in found.faults):
        remote.remove(MANIFEST)  # the next harvest sends it again, and what it binds
    rows = sum(manifest.geometry.groups[group].rows_in(number) for group, number in found.damaged_segments)
    return Repair(url, found.faults, (), (), found.damaged_segments, rows)


def _check(remote: Remote, promise: Promise) -> Fault | None:
    name, entry = promise.entry.path, promise.entry
    try:
        data = remote.read(name) if entry.size_bytes else b""
    except DamagedError:
        return Fault("missing", name, segment=promise.segment)
    if len(data) != entry.size_bytes:
        return Fault("truncated", name, f"{len(data)} of {entry.size_bytes} bytes", segment=promise.segment)
    return None if file_hash([data]) == entry.xxh3 else Fault("damaged", name, segment=promise.segment)
