"""Batches that fit in free memory."""

from pathlib import Path

from evaluate.memory import batch_rows_for, bytes_a_row
from transcoder.formats.native import load_transcoder


def test_the_batch_fits_in_free_memory(toy_transcoder: Path) -> None:
    dictionary = load_transcoder(toy_transcoder)
    rows = batch_rows_for(dictionary, "cpu")
    assert rows & (rows - 1) == 0
    assert bytes_a_row(dictionary) > 4 * dictionary.dict_size
