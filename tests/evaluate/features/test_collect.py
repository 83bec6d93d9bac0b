"""Collecting: the same bytes from any division of the rows, and only the rows that were asked for."""

import numpy as np

from common.progress import Silent
from evaluate.features.collect import block_starts, encode_part, evidence_of


def test_any_division_into_parts_gives_the_same_evidence(toy) -> None:
    starts = block_starts(toy.reader, toy.settings)
    parts = [
        encode_part(toy.reader, toy.trained, toy.settings, numbers, progress=Silent())
        for numbers in (starts[4:], starts[:1], starts[1:4])
    ]
    blocks = [block for blocks_of in parts for block in blocks_of]
    merged = evidence_of(blocks, toy.reader, toy.trained, toy.settings)
    assert merged.head == toy.evidence.head
    for name, array in toy.evidence.arrays.items():
        assert array.tobytes() == merged.arrays[name].tobytes(), name


def test_training_rows_and_fewer_rows_can_be_asked_for(toy) -> None:
    settings = toy.settings.model_copy(update={"split": "train", "rows": 300})
    starts = block_starts(toy.reader, settings)
    blocks = encode_part(toy.reader, toy.trained, settings, starts, progress=Silent())
    evidence = evidence_of(blocks, toy.reader, toy.trained, settings)
    view = toy.reader.split("train")
    assert np.array_equal(evidence.arrays["text_token"], view.tokens[:300])
    assert evidence.tokens == int((view.tokens[:300] != 0).sum())
    assert evidence.arrays["firings"].sum() / evidence.tokens == evidence.head["l0"]
