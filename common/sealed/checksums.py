"""checksums.json: sizes and hashes of the other files in a folder, written with them and compared later.

    checksums.json   {"files": {"metrics.json": {"bytes": 2041, "xxh3_128": "..."}, ...}, "xxh3_128": "..."}

The last hash is that of the list itself, so a changed list is found too.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common.errors import DamagedError
from common.hashing import canonical_json, hash_bytes

CHECKSUMS_FILE = "checksums.json"


def checksums_of(files: Mapping[str, bytes]) -> bytes:
    """The contents of checksums.json for files by name."""
    entries = {name: {"bytes": len(data), "xxh3_128": hash_bytes(data)} for name, data in sorted(files.items())}
    document = {"files": entries, "xxh3_128": _hash_of(entries)}
    return json.dumps(document, indent=1).encode() + b"\n"


def read_checksums(folder: Path) -> dict[str, dict[str, Any]]:
    """The list in ``folder``, by file name. Raises DamagedError when it is missing or not what was written."""
    path = folder / CHECKSUMS_FILE
    try:
        document = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise DamagedError("The list of checksums is missing.", where=path) from None
    except (ValueError, RecursionError):
        raise DamagedError("The list of checksums is not JSON.", where=path) from None
    entries = document.get("files") if isinstance(document, dict) else None
    if not isinstance(entries, dict) or document.get("xxh3_128") != (_hash_of(entries) or 0):
        raise DamagedError("The list of checksums does not match its own checksum.", where=path)
    return entries


def _hash_of(entries: Mapping[str, Any]) -> str | None:
    try:
        return hash_bytes(canonical_json(entries))
    except ValueError:  # NaN, which is never written
        return None


def faults_of(folder: Path) -> list[str]:
    """The faults of the files in checksums.json of ``folder``, one sentence each; none if all are undamaged.

    Raises DamagedError as ``read_checksums``.
    """
    faults: list[str] = []
    for name, entry in read_checksums(folder).items():
        path = folder / name
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            faults.append(f"{path}: missing")
            continue
        if entry != {"bytes": len(data), "xxh3_128": hash_bytes(data)}:
            faults.append(f"{path}: damaged, its bytes are not what was written")
    return faults
