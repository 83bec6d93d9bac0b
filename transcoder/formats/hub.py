"""Dictionaries on the Hugging Face Hub: listed, downloaded one file at a time, and resumed after an interruption.

``huggingface_hub`` lists, names and authorises. But since its version 2 an interrupted download starts again, and these
files have 300 MB. So the bytes are downloaded here, from where the last run stopped, into ``<name>.<etag>.part``, which
is renamed when the size is right (and the SHA-256, if the Hub gives it as the etag).
"""

import hashlib
import os
from dataclasses import dataclass, field
from pathlib import Path

from common import disk
from common.errors import DamagedError, DiskError
from common.hub_errors import hub_errors
from common.processes import locks
from common.progress import Progress, Silent
from transcoder.formats.peers.gemma_scope import REPOSITORY, Choice, find_choices, nearest

# Each try goes on where the last one stopped: five are enough for a bad connection, and end soon for a dead one.
TRIES = 5
_REMEDY = "Check the network (and HF_TOKEN) and run again, or download one params.npz and give its path."


@dataclass(frozen=True)
class HubRepository:
    """Files are stored below ``folder`` as in the repository; the Hub's own endpoint and cache if not given."""

    name: str = REPOSITORY
    endpoint: str | None = None
    folder: Path | None = None
    progress: Progress = field(default_factory=Silent)

    def paths(self) -> list[str]:
        """Every file of the repository. DiskError: it cannot be listed."""
        from huggingface_hub import HfApi

        with hub_errors("model", self.name, remedy=_REMEDY):
            return HfApi(endpoint=self.endpoint).list_repo_files(self.name)

    def fetch_nearest(self, *, layer: int, dict_size: int, l0: float) -> tuple[Path, Choice]:
        """The dictionary to compare with, and which one it is."""
        choice = nearest(find_choices(self.paths()), layer=layer, dict_size=dict_size, l0=l0)
        return self.fetch(choice.path), choice

    def fetch(self, path: str) -> Path:
        """The complete local copy of one file. DiskError: the Hub or the disk failed. DamagedError: the bytes are
        wrong."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url

        target = self._folder() / path
        if target.is_file():
            return target
        with locks.lock(target.with_name("download.lock")), hub_errors("model", self.name, remedy=_REMEDY):
            url = hf_hub_url(self.name, path, endpoint=self.endpoint)
            about = get_hf_file_metadata(url)
            partial = target.with_name(f"{target.name}.{(about.etag or 'unnamed')[:64]}.part")
            self._complete(url, partial, about.size)
            _check_hash(partial, about.etag)
            disk.move(partial, target)
        return target

    def _complete(self, url: str, partial: Path, size: int | None) -> None:
        """Append to ``partial`` up to ``size`` bytes. A connection that breaks after some progress is resumed."""
        self.progress.begin(f"download {partial.name}", total=size or 0, unit="bytes", done=disk.size_bytes(partial))
        for left in reversed(range(TRIES)):
            before = disk.size_bytes(partial)
            try:
                self._append(url, partial, size)
                break
            except (OSError, DiskError):
                raise
            except Exception:
                if not left or disk.size_bytes(partial) == before:
                    raise
        self.progress.end()

    def _append(self, url: str, partial: Path, size: int | None) -> None:
        from huggingface_hub import get_session
        from huggingface_hub.utils import build_hf_headers

        have = disk.size_bytes(partial)
        if have == size:
            return
        headers = build_hf_headers() | ({"Range": f"bytes={have}-"} if have else {})
        with get_session().stream("GET", url, headers=headers, follow_redirects=True) as answer:
            answer.raise_for_status()
            # A server without ranges sends the whole file, with status 200. Pieces are written at once, so none is
            # lost.
            with partial.open("ab" if answer.status_code == 206 else "wb") as file:
                for piece in answer.iter_bytes():
                    file.write(piece)
                    self.progress.advance(len(piece))
                file.flush()
                os.fsync(file.fileno())
        if size is not None and disk.size_bytes(partial) != size:
            got = disk.size_bytes(partial)
            disk.remove(partial)
            raise DiskError(
                f"{got:,} bytes came instead of the {size:,} that were announced.", where=url, remedy=_REMEDY
            )

    def _folder(self) -> Path:
        from huggingface_hub import constants

        return (self.folder or Path(constants.HF_HOME) / "nestcoder") / self.name


def _check_hash(partial: Path, etag: str | None) -> None:
    """The Hub's etag of a large file is its SHA-256; of a small one it is a git hash, which is not checked."""
    if etag is None or len(etag) != 64:
        return
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != etag:
        disk.remove(partial)
        what = "The SHA-256 of the downloaded file is not the one that the Hub announced."
        raise DamagedError(what, where=partial, remedy=_REMEDY)
