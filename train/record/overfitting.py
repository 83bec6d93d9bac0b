"""A note on over-fitting: held-out FVU rises while that of the training batches falls."""

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

# Held-out FVU of a good run moves by a few thousandths of itself between checkpoints.
_MIN_RISE = 1.01


@dataclass(frozen=True)
class _Checkpoint:
    step: int
    held_out_fvu: float
    batch_fvu: float


class OverfittingWatch:
    """Compares every checkpoint with the best one since the process started. It gives one note at most."""

    def __init__(self) -> None:
        self._sum: Float[Tensor, ""] | None = None
        self._count = 0
        self._best: _Checkpoint | None = None
        self._has_spoken = False

    def add(self, batch_fvu: Float[Tensor, ""]) -> None:
        """Count a step. The number stays on its device, so that nothing waits for it."""
        self._sum = batch_fvu.double() if self._sum is None else self._sum + batch_fvu
        self._count += 1

    def checkpoint(self, *, step: int, held_out_fvu: float) -> str | None:
        """Take the steps since the last checkpoint together; returns the note, or None."""
        if self._sum is None:
            return None
        now = _Checkpoint(step, held_out_fvu, batch_fvu=float(self._sum) / self._count)
        self._sum = None
        self._count = 0

        best = self._best
        if best is None or now.held_out_fvu < best.held_out_fvu:
            self._best = now
            return None
        is_worse = now.held_out_fvu > _MIN_RISE * best.held_out_fvu and now.batch_fvu < best.batch_fvu
        if self._has_spoken or not is_worse:
            return None
        self._has_spoken = True
        return (
            f"Over-fitting: from step {best.step:,} to {step:,} held-out FVU rose from {best.held_out_fvu:.4f} to "
            f"{now.held_out_fvu:.4f} while the FVU of the training batches fell from {best.batch_fvu:.4f} to "
            f"{now.batch_fvu:.4f}. Harvest more text, take fewer steps, or set train.save_best."
        )
