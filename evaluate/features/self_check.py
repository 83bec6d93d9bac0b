"""Encodes some contexts anew and compares every value with what the evidence says."""

from typing import Any

import numpy as np
import torch
from jaxtyping import Float

from cache.reader import CacheReader
from common.errors import MismatchError, NumericalError
from evaluate.features.contexts import NO_ROW
from evaluate.features.evidence import Evidence
from evaluate.features.firings import entry_hashes
from transcoder.transcoder import Transcoder

TOLERANCE = 1e-3
"""Of the feature's largest value: float32 products of blocks of other sizes differ by less."""


def check_evidence(evidence: Evidence, reader: CacheReader, transcoder: Transcoder) -> dict[str, Any]:
    """How many contexts and values were compared, and the largest difference as a share of its feature's largest value.

    Raises MismatchError for evidence of another cache, NumericalError where a value differs.
    """
    if evidence.head["cache"]["fingerprint"] != reader.fingerprint:
        raise MismatchError(
            "This evidence was taken from another cache.",
            where=reader.path,
            remedy="Run 'nestcoder features --layer N' again.",
        )
    settings = evidence.head["settings"]
    view = reader.split(settings["split"])
    chosen = _chosen(evidence, settings["checked_contexts"], settings["seed"])
    worst = 0.0
    values = 0
    for feature, row in chosen:
        first, end = evidence.text.window(row, settings["context_tokens"])
        rows = view.rows(slice(first, end), view=transcoder.source_view)
        code = transcoder.sparse_code(rows.source.to(transcoder.W_enc.device)).dense(transcoder.dict_size).cpu()
        difference = _difference(evidence.values(feature, first, end), code, feature)
        worst = max(worst, difference / float(evidence.arrays["largest"][feature]))
        values += end - first
        if worst > TOLERANCE:
            what = f"Feature {feature} has other values near row {row} than the evidence says."
            raise NumericalError(
                what,
                where=reader.path,
                remedy="Run 'nestcoder cache verify' on it; if that finds no fault, report a bug.",
            )
    return {"contexts": len(chosen), "values": values, "largest_difference": worst}


def _difference(stated: Float[np.ndarray, " rows"], code: Float[torch.Tensor, "rows dict_size"], feature: int) -> float:
    """The largest difference, leaving out values that only one has and that no other of their row is weaker than.

    Which of two nearly equal features is a row's last active one may turn with the last bit of a product.
    """
    anew = code[:, feature].numpy()
    weakest = code.masked_fill(code == 0, torch.inf).amin(dim=1).numpy()
    only_one = (stated > 0) != (anew > 0)
    last = only_one & (np.maximum(stated, anew) <= weakest * (1 + TOLERANCE))
    return float(np.abs(stated - anew)[~last].max(initial=0.0))


def _chosen(evidence: Evidence, count: int, seed: int) -> list[tuple[int, int]]:
    """``count`` pairs of feature and row among all contexts, by the smallest hashes."""
    pairs = [
        np.stack([np.nonzero(rows != NO_ROW)[0], rows[rows != NO_ROW]], axis=1)
        for name, rows in evidence.arrays.items()
        if name.startswith("context_")
    ]
    distinct = np.unique(np.concatenate(pairs), axis=0)
    # Salted away from the hashes that chose the contexts: their smallest are not a random choice any more.
    order = np.argsort(entry_hashes(distinct[:, 0], distinct[:, 1], seed + (1 << 20)), kind="stable")
    return [(int(feature), int(row)) for feature, row in distinct[order[:count]]]
