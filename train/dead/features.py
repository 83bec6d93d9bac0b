"""Which features are dead: the number of tokens since each last fired. Part of every checkpoint.

On a GPU the host does not wait for the number of dead features. A step has room for a number that is known before it:
the dead features come first in that room, and the others in it have no effect.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

WINDOW = 16
"""Steps with the same room: the host may be so many steps ahead of a GPU before it waits for a count."""
# A smaller room would not make a step faster, and fewer sizes mean fewer recorded graphs.
_MIN_ROOM = 64


def count_tokens_(since_fired: Int[Tensor, " dict_size"], fired: Bool[Tensor, " dict_size"], *, tokens: int) -> None:
    """Count a batch of ``tokens`` rows: 0 for the features that fired in it, so many more for the others."""
    since_fired.add_(tokens).masked_fill_(fired, 0)


def dead_share(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int) -> Float[Tensor, ""]:
    """The share of the dictionary that is dead."""
    return (since_fired >= after_tokens).double().mean()


def dead_count(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int) -> int:
    """How many features are dead. Waits for the device."""
    return int((since_fired >= after_tokens).sum())


@dataclass(frozen=True)
class Dead:
    """The dead features, ascending, and after them others that fill a step's room.

    ``counts`` says which of ``features`` are dead; None if all are, because the room is as large as their number.
    """

    features: Int[Tensor, " room"]
    counts: Bool[Tensor, " room"] | None = None

    @staticmethod
    def among(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int, room: int, exact: bool) -> "Dead":
        """``exact``: ``room`` is their number. If the room is too small, some of them are left out."""
        if not room:
            return Dead(since_fired.new_empty(0))
        is_dead = since_fired >= after_tokens
        # Stable, so both the dead and the others ascend; no feature comes twice.
        features = is_dead.logical_not().to(torch.uint8).sort(stable=True).indices[:room]
        return Dead(features, None if exact else is_dead[features])

    def number(self) -> Float[Tensor, ""]:
        """How many are dead, on the device."""
        if self.counts is None:
            return torch.full((), float(len(self.features)), dtype=torch.float64, device=self.features.device)
        return self.counts.double().sum()

    def or_else(self, columns: Float[Tensor, "rows room"], value: float) -> Float[Tensor, "rows room"]:
        """``columns``, with ``value`` where a feature is not dead."""
        return columns if self.counts is None else columns.masked_fill(~self.counts, value)

    def silent(self, fired: Bool[Tensor, " dict_size"]) -> "Dead":
        """Without those that fired in this step."""
        is_silent = ~fired[self.features]
        if self.counts is None:
            return Dead(self.features[is_silent])
        return Dead(self.features, self.counts & is_silent)

    def give_(self, array: Tensor, values: Tensor, *, mask: Bool[Tensor, " room"] | None = None) -> None:
        """Replace the dead features' rows of ``array`` by those of ``values``, in place; only ``mask``, if given."""
        chosen = mask if self.counts is None else (self.counts if mask is None else self.counts & mask)
        if chosen is not None:
            before = array[self.features]
            values = torch.where(chosen.view(-1, *(1,) * (before.dim() - 1)), values.to(array.dtype), before)
        array[self.features] = values.to(array.dtype)


class Room:
    """For how many dead features a step on a GPU has room, known without waiting for the GPU. Part of every checkpoint.

    The room decides the shapes of a step, and so its last bits: therefore it depends on the steps only, not on when
    the GPU answers. At the start of a window of ``WINDOW`` steps the GPU counts the features that can be dead before
    the *next* window ends. The host reads that number at the start of the next window, when it has long arrived.
    """

    def __init__(self, now: int, coming: int) -> None:
        self._now = now
        self._coming: int | _Sent = coming

    @staticmethod
    def first(since_fired: Int[Tensor, " dict_size"], *, after_tokens: int, batch_rows: int) -> "Room":
        """For a training that starts, or goes on from a checkpoint without a room. Waits for the device."""
        room = room_for(int(_can_die(since_fired, after_tokens, batch_rows)), dict_size=len(since_fired))
        return Room(room, room)

    def size_at(self, step: int, since_fired: Int[Tensor, " dict_size"], *, after_tokens: int, batch_rows: int) -> int:
        """The room of step ``step``; called once for every step, in order."""
        if step % WINDOW == 0:
            self._now = self._arrived()
            self._coming = _Sent.from_count(_can_die(since_fired, after_tokens, batch_rows), dict_size=len(since_fired))
        return self._now

    def record(self) -> list[int]:
        """The rooms of this window and of the next one, for a checkpoint."""
        self._coming = self._arrived()
        return [self._now, self._coming]

    def _arrived(self) -> int:
        return self._coming.arrived() if isinstance(self._coming, _Sent) else self._coming


@dataclass(frozen=True)
class _Sent:
    """A count on its way to the host."""

    count: Int[Tensor, ""]
    event: torch.Event | None
    dict_size: int

    @staticmethod
    def from_count(count: Int[Tensor, ""], *, dict_size: int) -> "_Sent":
        if not count.is_cuda:
            return _Sent(count, None, dict_size)
        return _Sent(count.to("cpu", non_blocking=True), torch.cuda.current_stream().record_event(), dict_size)

    def arrived(self) -> int:
        if self.event:
            self.event.synchronize()
        return room_for(int(self.count), dict_size=self.dict_size)


def room_for(count: int, *, dict_size: int) -> int:
    """Room for ``count`` features: a power of two, so that there are few forms of a step; 0 for 0."""
    return min(dict_size, max(_MIN_ROOM, 1 << (count - 1).bit_length())) if count else 0


def _can_die(since_fired: Int[Tensor, " dict_size"], after_tokens: int, batch_rows: int) -> Int[Tensor, ""]:
    """The largest number of features that can be dead within the next two windows: those that have nearly been silent
    for long enough."""
    return (since_fired >= after_tokens - 2 * WINDOW * batch_rows).sum()
