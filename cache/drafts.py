"""Drafts: when a writer saves the rows of segments that are not full yet, and how much time that may take.

A segment takes 14 minutes on a laptop. So when the oldest unsaved row is a minute old, the writer appends the rows to
drafts, one for the segment that is filling in each group. A writer that goes on later fills its segments from them. On
a fast machine segments are full earlier, and nothing is written twice.
"""

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cache.format.journal import Point
from cache.format.layout import GROUPS
from cache.partition import Partition
from cache.storage.draft import Draft, draft_path, remove_drafts
from cache.storage.segment import SegmentBuffer
from common.errors import DiskError
from common.progress import Progress

_SECONDS = 60.0
"""The age at which rows are saved. A kill costs no more work than that."""
_SECONDS_AT_END = 5.0
"""The age at which an interrupted writer saves them: computing younger rows again is quicker than saving them."""
_SHARE = 0.05
"""The largest share of its time that a process spends on drafts. On a slow disk they are written less often."""


class _Spent:
    """The time that this process spent on drafts. Writers of several layers share one disk, so they share the count."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.seconds = 0.0

    def may_spend(self) -> bool:
        """Whether another draft stays within the share."""
        return self.seconds <= _SHARE * (time.monotonic() - self.began)


_spent = _Spent()


class Drafts:
    """The drafts of a partition's segments. ``buffer_of`` a group is the buffer that has the rows."""

    def __init__(self, partition: Partition, buffer_of: Callable[[str], SegmentBuffer], progress: Progress) -> None:
        self._partition = partition
        self._buffer_of = buffer_of
        self._progress = progress
        self._drafts: dict[str, Draft] = {}
        self._oldest: dict[str, float] = {}
        """When the oldest row of each group came that is neither committed nor in a draft."""
        self._given_up = False

    def restore(self) -> dict[str, Point]:
        """Fill the buffers with the rows that an earlier writer saved; returns where the text goes on, by group."""
        for group in GROUPS:
            missing = self._partition.missing(group)
            if missing and self._path(group, missing[0]).is_file():
                draft = self._draft(group, missing[0])
                draft.restore(missing[0])
                if draft.point and self._partition.locate(group, _count(draft.point, group)) == (
                    missing[0],
                    draft.rows,
                ):
                    self._drafts[group] = draft
        kept = {draft.path for draft in self._drafts.values()}
        remove_drafts(self._partition.path, self._partition.number, keep=kept)
        rows = sum(draft.rows for draft in self._drafts.values())
        if rows:
            self._progress.note(f"Kept {rows:,} rows of segments that were not full in {self._partition.path}.")
        return {group: draft.point for group, draft in self._drafts.items() if draft.point}

    def arrived(self, group: str) -> None:
        """Rows were put into a group's buffer."""
        self._oldest.setdefault(group, time.monotonic())

    def keep_if_due(self, point: Point) -> None:
        """Save the rows before ``point`` if some of them are old enough."""
        if self._age() >= _SECONDS and _spent.may_spend():
            began = time.monotonic()
            self._keep(point)
            _spent.seconds += time.monotonic() - began

    def keep_at_end(self, point: Point) -> None:
        """Save the rows before ``point``: the writer stops in the middle of a segment."""
        if self._age() >= _SECONDS_AT_END:
            self._keep(point)

    def _age(self) -> float:
        return -1.0 if self._given_up or not self._oldest else time.monotonic() - min(self._oldest.values())

    def _keep(self, point: Point) -> None:
        self._oldest.clear()
        try:
            for group in GROUPS:
                self._keep_group(group, point)
        except DiskError as error:
            # Nothing needs a draft, and the cache may still fit on a disk that has no room for drafts as well.
            self._give_up(error.what)

    def _keep_group(self, group: str, point: Point) -> None:
        segment, rows = self._partition.locate(group, _count(point, group))
        if self._given_up or segment not in self._partition.missing(group):
            return
        draft = self._drafts.get(group)
        if draft is None or draft.path != self._path(group, segment):
            draft = self._drafts[group] = self._draft(group, segment)
        is_here = rows == 0 or self._buffer_of(group).filling == segment
        if not is_here or rows < draft.rows or point == draft.point:
            return
        if self._partition.spare_bytes < (rows - draft.rows) * draft.row_bytes:
            self._give_up("The disk has no room for them.")
            return
        draft.add(rows, point)

    def _give_up(self, reason: str) -> None:
        self._given_up = True
        self._progress.note(f"From now on rows are saved only when their segment is full. {reason}")
        with suppress(DiskError):
            for draft in self._drafts.values():
                draft.remove()

    def drop(self, group: str) -> None:
        """Remove the draft of a group's segment, which is committed."""
        self._oldest.pop(group, None)
        draft = self._drafts.pop(group, None)
        if draft:
            with suppress(DiskError):
                draft.remove()

    def _draft(self, group: str, segment: int) -> Draft:
        whose = {
            "fingerprint": self._partition.manifest.fingerprint,
            "part": self._partition.number,
            "group": group,
            "segment": segment,
        }
        return Draft(self._path(group, segment), self._buffer_of(group), whose, tag=self._partition.tag)

    def _path(self, group: str, segment: int) -> Path:
        return draft_path(self._partition.path, self._partition.number, group, segment)


def _count(point: Point, group: str) -> int:
    return point.train if group == "train" else point.held_out
