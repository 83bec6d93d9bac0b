"""When over-fitting is noted: held-out FVU up, the batches' FVU down, once."""

import torch

from train.record.overfitting import OverfittingWatch


def checkpoints(*pairs: tuple[float, float]) -> list[str | None]:
    """The notes at checkpoints of (held-out FVU, the batches' FVU), ten steps each."""
    watch = OverfittingWatch()
    found: list[str | None] = []
    for number, (held_out, batch) in enumerate(pairs, start=1):
        for _ in range(10):
            watch.add(torch.tensor(batch))
        found.append(watch.checkpoint(step=10 * number, held_out_fvu=held_out))
    return found


def test_over_fitting_is_noted_once_with_the_numbers() -> None:
    warnings = checkpoints((0.5, 0.5), (0.4, 0.4), (0.41, 0.3), (0.5, 0.2))
    assert warnings[:2] == [None, None]
    assert warnings[2] is not None
    assert warnings[2].startswith(
        "Over-fitting: from step 20 to 30 held-out FVU rose from 0.4000 to 0.4100 while the FVU of the training "
        "batches fell from 0.4000 to 0.3000."
    )
    assert warnings[3] is None


def test_a_rise_of_both_or_within_the_noise_is_no_over_fitting() -> None:
    assert checkpoints((0.4, 0.4), (0.5, 0.5)) == [None, None]
    assert checkpoints((0.4, 0.4), (0.403, 0.3)) == [None, None]


def test_nothing_is_noted_before_a_step() -> None:
    assert OverfittingWatch().checkpoint(step=5, held_out_fvu=0.5) is None
