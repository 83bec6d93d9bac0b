"""Evidence made by hand, so small that every number of every export is known: three features over twelve tokens."""

import numpy as np
import pytest

from evaluate.features.evidence import Evidence

TOKENS = [0, 1, 2, 3, 1, 2, 0, 3, 1, 2, 4, 1]
"""Two contexts of six; token 0 is special."""
WORDS = {0: "<s>", 1: " import", 2: " num", 3: "py\n", 4: "\\xE2"}
DENSE = {4: {0: 2.0, 1: 0.5}, 1: {0: 1.0}, 8: {0: 0.25}, 9: {1: 4.0}}
"""Values by row and feature; feature 2 never fires."""


@pytest.fixture(scope="session")
def small() -> Evidence:
    features, nobody = 3, np.full((3, 1), -1)
    values = np.zeros((12, features), dtype=np.float32)
    for row, own in DENSE.items():
        for feature, value in own.items():
            values[row, feature] = value
    firing = [np.flatnonzero(values[:, feature]) for feature in range(features)]
    largest = values.max(axis=0)
    counts = np.array([len(rows) for rows in firing])
    table = {"token": [[1], [1], [-1]], "count": [[3], [1], [0]], "share": [[1.0], [0.5], [0.0]]}
    table |= {"lift": [[2.5], [1.25], [0.0]], "recall": [[0.75], [0.25], [0.0]]}
    arrays = {
        "firings": counts,
        "mean": values.sum(axis=0) / np.maximum(1, counts),
        "largest": largest,
        "fvu_lost": np.array([0.125, 0.0625, 0.0]),
        "fvu_lost_prefix": np.array([0.25, 0.0625, 0.0]),
        "histogram": np.array([[1, 1, 0, 1], [1, 0, 0, 1], [0, 0, 0, 0]]),
        "intervals": np.array([[2, 1], [1, 1], [0, 0]]),
        "percentiles": np.repeat(largest[:, None], 99, axis=1),
        "positions": np.ones((3, 2), dtype=np.int64),
        "positions_base": np.array([4, 6]),
        "cluster": np.array([0, -1, -1]),
        "map": np.array([[0.0, 1.0], [0.5, 0.25], [1.0, 0.0]]),
        "context_strongest": np.array([[4, 8], [9, 4], [-1, -1]]),
        "context_interval_0": np.array([[8], [4], [-1]]),
        "context_interval_1": np.array([[4], [9], [-1]]),
        "context_uniform": np.array([[1], [9], [-1]]),
        "context_silent": np.array([[11], [-1], [-1]]),
        **{f"{near}_{name}": np.array(column) for near in ("before", "on", "after") for name, column in table.items()},
        **{f"{kind}_feature": np.array([[1], [0], [1]]) for kind in ("decoder", "encoder")},
        **{f"{kind}_score": np.array([[0.5], [0.5], [-0.25]]) for kind in ("decoder", "encoder")},
        "near_feature": np.array([[1], [0], [-1]]),
        "near_score": np.array([[0.25], [0.25], [0.0]]),
        "near_count": np.array([[1], [1], [0]]),
        "coarser_feature": nobody,
        "coarser_count": nobody,
        "coarser_decoder_cosine": nobody.astype(float),
        "coarser_encoder_cosine": nobody.astype(float),
        "raised_token": np.array([[2], [3], [1]]),
        "raised_logit": np.array([[1.5], [0.75], [0.5]]),
        "lowered_token": np.array([[4], [4], [4]]),
        "lowered_logit": np.array([[-1.0], [-0.5], [-0.25]]),
        "logit_histogram": np.array([[1, 0, 3, 1], [2, 1, 1, 1], [1, 1, 1, 2]]),
        "text_token": np.array(TOKENS),
        "text_document": np.array([7] * 6 + [9] * 6),
        "text_position": np.array([*range(6), *range(6)]),
        "entry_offsets": np.concatenate([[0], np.cumsum(counts)]),
        "entry_row": np.concatenate(firing),
        "entry_value": np.concatenate([values[rows, feature] for feature, rows in enumerate(firing)]),
    }
    head = {
        "transcoder": {"name": "main", "dict_size": 3, "prefixes": [1, 3], "weights": None},
        "cache": {"fingerprint": "f" * 32, "model": "owner/tiny", "layer": 8, "dataset": {"kind": "stdlib"}},
        "settings": {"context_tokens": 2},
        "special_ids": [0],
        "tokens": 10,
        "documents": 2,
    }
    return Evidence(head=head, arrays=arrays, words=WORDS)
