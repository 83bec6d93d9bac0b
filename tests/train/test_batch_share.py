"""What of a batch is a process's; ``parts_checks.py`` trains with it."""

import torch

from common.distributed import ALONE
from train.arrays.batch_share import BatchShare


def test_one_process_has_the_whole_batch() -> None:
    share = BatchShare.of(7, ALONE, torch.device("cpu"))
    assert share == BatchShare(rows=7, batch_rows=7)
    assert (share.fraction, share.rows_before(torch.device("cpu"))) == (1, 0)


def test_a_process_without_rows_counts_nothing() -> None:
    assert BatchShare(0, 12).fraction == 0
    assert BatchShare(3, 12).fraction == 0.25
    assert BatchShare(0, 0).fraction == 0
