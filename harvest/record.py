"""The proof file of a cache, ``proof-<rank>.json``: all site proofs, and how many rows of the text were left out.

It has the first proof and the language model's own loss, like the manifest; ``samples``, the proofs of later batches by
the number of contexts before them; and ``skipped_rows``. It is written before the rows of these batches are committed,
and a run that goes on adds to it. So a complete cache always has it, and it is the same however often the harvest was
killed.
"""

import json
from pathlib import Path
from typing import Any

from common import disk
from harvest.model.proof import SiteProof


class ProofFile:
    """The proof file of one layer and one process."""

    def __init__(self, folder: Path, *, rank: int, record: dict[str, Any]) -> None:
        self._path = folder / f"proof-{rank:05d}.json"
        self._record = record
        self._samples: dict[str, Any] = _samples_of(self._path, record)
        self._skipped_rows = 0

    def add_sample(self, contexts: int, proof: SiteProof) -> None:
        """Add the proof of the batch after so many contexts, and write the file."""
        self._samples[str(contexts)] = {"errors": proof.errors, "rows": proof.rows}
        self.write(self._skipped_rows)

    def write(self, skipped_rows: int) -> None:
        """Write the file; ``skipped_rows`` were left out of the text so far."""
        self._skipped_rows = skipped_rows
        samples = {key: self._samples[key] for key in sorted(self._samples, key=int)}
        document = self._record | {"samples": samples, "skipped_rows": skipped_rows}
        disk.write_file(self._path, json.dumps(document, indent=1).encode() + b"\n")


def _samples_of(path: Path, record: dict[str, Any]) -> dict[str, Any]:
    """The samples of an earlier run of the same harvest; none if the file is missing or of another harvest."""
    try:
        document: Any = json.loads(path.read_bytes())
        samples = {str(int(key)): value for key, value in document["samples"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    same = all(document.get(key) == value for key, value in json.loads(json.dumps(record)).items())
    return samples if same else {}
