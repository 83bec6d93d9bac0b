"""Batches that fit in free memory."""

from pathlib import Path

from evaluate.memory import batch_rows_for, bytes_a_row
from evaluate.reference import of_transcoder
from transcoder.transcoder import load_transcoder


def test_the_batch_fits_in_free_memory(toy_transcoder: Path) -> None:
    dictionary = of_transcoder(load_transcoder(toy_transcoder), name="toy")
    rows = batch_rows_for(dictionary, "cpu")
    assert rows & (rows - 1) == 0
    assert bytes_a_row(dictionary) > 4 * dictionary.dict_size
