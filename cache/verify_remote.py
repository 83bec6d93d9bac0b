"""Whether every file of a remote cache is what its journals promise; each is read whole from there, none is kept."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from cache.checksum import file_hash
from cache.errors import DamagedError
from cache.progress import Progress, Silent
from cache.remote import Remote, open_remote
from cache.verify import Fault, Promise, Verification, read_promises

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


def _check(remote: Remote, promise: Promise) -> Fault | None:
    name, entry = promise.entry.path, promise.entry
    try:
        data = remote.read(name) if entry.size_bytes else b""
    except DamagedError:
        return Fault("missing", name, segment=promise.segment)
    if len(data) != entry.size_bytes:
        return Fault("truncated", name, f"{len(data)} of {entry.size_bytes} bytes", segment=promise.segment)
    return None if file_hash([data]) == entry.xxh3 else Fault("damaged", name, segment=promise.segment)
