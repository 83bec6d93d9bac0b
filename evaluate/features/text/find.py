"""Finds features by the text of their labels and tokens."""

from dataclasses import dataclass

import numpy as np

from evaluate.features.evidence import Evidence
from evaluate.features.text.labels import NEVER, label_of


@dataclass(frozen=True)
class Hit:
    """A feature that was found. ``share`` of its firings are on tokens that contain the text."""

    feature: int
    label: str
    firings: int
    share: float


def find_features(evidence: Evidence, text: str) -> list[Hit]:
    """Features whose label or most frequent tokens contain ``text``, whatever its case; the most exclusive first."""
    wanted = text.casefold()
    known = [token for token, word in evidence.words.items() if wanted in word.casefold()]
    matching = np.isin(evidence.arrays["on_token"], np.array(known, dtype=np.int64))
    shares = (evidence.arrays["on_share"] * matching).sum(axis=1)
    hits = [
        Hit(feature, label, int(evidence.arrays["firings"][feature]), float(shares[feature]))
        for feature in range(evidence.dict_size)
        if (label := label_of(evidence, feature)) != NEVER and (shares[feature] > 0 or wanted in label.casefold())
    ]
    return sorted(hits, key=lambda hit: (-hit.share, -hit.firings, hit.feature))
