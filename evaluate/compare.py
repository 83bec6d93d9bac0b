"""Two dictionaries side by side: the same rows, mask, target and metrics, and the differences with paired intervals.

    difference = ours - theirs, at each of our prefixes against the whole of theirs
    interval   = the central 95 % of (ours_b - theirs_b) over bootstrap replicates b of the documents

Replicate b weights the same documents alike for both (see ``fvu``), so what both find hard cancels. Ours is judged
once more at k = their L0, where it selects by top-k: a lower FVU bought with more features is no better dictionary.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from cache.reader import CacheReader
from evaluate.config import EvaluateSettings
from evaluate.measure import Judgement, judge
from evaluate.metrics.fvu import intervals
from evaluate.reference import Other, heading
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder

VERSION = 1
CHECK_PLACES, CHECK_ROWS = 16, 256
"""Where, and how many rows each, the L0 is held against the promised one before everything is measured."""

Replicates = Float[np.ndarray, "replicates_plus_one prefixes"]


@dataclass(frozen=True)
class Judged:
    """A dictionary and what was found of it; ``absorption`` as in metrics.json."""

    dictionary: Transcoder
    judgement: Judgement
    absorption: Mapping[str, Any]


@dataclass(frozen=True)
class Comparison:
    """``document`` is comparison.json; ``theirs`` is google_metrics.json (or other_metrics.json)."""

    document: dict[str, Any]
    theirs: dict[str, Any]


def compare(
    ours: Judged,
    other: Other,
    *,
    replay: Replay,
    reader: CacheReader,
    settings: EvaluateSettings,
    absorption: Callable[[Transcoder], dict[str, Any]],
    force: bool,
) -> Comparison:
    """Judge ``other`` on the rows of ``ours``. MismatchError when it is not fed what it was trained on."""
    theirs = _judged(
        other.dictionary.to(replay.device), replay=replay, reader=reader, settings=settings, absorption=absorption
    )
    l0 = float(theirs.judgement.metrics["l0"])
    convention = other.convention(l0, force=force) + _doubt(float(theirs.judgement.metrics["fvu"]))
    matched, reason = None, _no_match(ours.dictionary, l0)
    if reason is None:
        again = ours.dictionary.at_top_k(max(1, round(l0)))
        matched = _judged(again, replay=replay, reader=reader, settings=settings, absorption=absorption)
    metrics = theirs.judgement.metrics | {"absorption_first_letter": theirs.absorption}
    said = heading(other) | {"convention": convention}
    return Comparison(
        document=_document(ours, theirs, matched=matched, reason=reason, said=said, reader=reader),
        theirs={"version": VERSION, "dictionary": said, **metrics},
    )


def early_l0(replay: Replay, dictionary: Transcoder) -> float:
    """Mean L0 of a few rows from all over the split, the same on every rank."""
    total = len(replay.held_out.view)
    starts = range(0, total, max(CHECK_ROWS, total // CHECK_PLACES))
    batches = [replay.batch(dictionary, start, min(start + CHECK_ROWS, total)) for start in starts]
    found = [batch for batch in batches if batch]
    firing = sum(int((batch.selection.values > 0).sum()) for batch in found)
    return firing / max(1, sum(len(batch.row) for batch in found))


def difference(ours: Float[np.ndarray, " replicates"], theirs: Float[np.ndarray, " replicates"]) -> dict[str, Any]:
    """Ours minus theirs: the estimate, which comes first in both, and the central 95 % of the paired replicates."""
    gap = ours - theirs
    interval = intervals(gap[1:, None])
    return {"value": float(gap[0]), "interval": interval[0] if interval else None}


def replicates_of(judgement: Judgement) -> dict[str, Replicates]:
    """FVU, cosine and L0 of every prefix: the estimate, then the replicates."""
    fit = {name: array.cpu().numpy() for name, array in judgement.states["fit"].items()}
    tokens = fit["N"][:, None]
    return {"fvu": judgement.fvu, "cosine": fit["C"] / tokens, "l0": fit["L"] / tokens}


def _judged(
    dictionary: Transcoder,
    *,
    replay: Replay,
    reader: CacheReader,
    settings: EvaluateSettings,
    absorption: Callable[[Transcoder], dict[str, Any]],
) -> Judged:
    judgement = judge(replay, dictionary, reader=reader, settings=settings, baselines=False)
    return Judged(dictionary, judgement, absorption(dictionary))


def _doubt(fvu: float) -> str:
    """What an L0 as promised cannot tell: rows of another model or layer fire as many features, and explain nothing."""
    if fvu < 1:
        return ""
    return f", but its FVU of {fvu:.2f} is no better than the mean's: it may be of another model or layer"


def _no_match(ours: Transcoder, l0: float) -> str | None:
    """Why ours cannot be judged at their L0; None when it can."""
    top_k = ours.rule.row_limit
    if top_k is None:
        return "ours selects by a threshold, which has no k to set"
    if max(1, round(l0)) == top_k:
        return f"ours has k = {top_k}, which is their L0 already"
    if round(l0) > ours.dict_size:
        return f"their L0 of {l0:.1f} is more than our {ours.dict_size} features"
    return None


def _document(
    ours: Judged,
    theirs: Judged,
    *,
    matched: Judged | None,
    reason: str | None,
    said: dict[str, Any],
    reader: CacheReader,
) -> dict[str, Any]:
    metrics = ours.judgement.metrics
    trained = {"ours": ours.dictionary.tokens_trained, "theirs": theirs.dictionary.tokens_trained}
    return {
        "version": VERSION,
        "compared_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "difference_is": "ours minus theirs; intervals are 95 %, paired over documents",
        "rows": {
            "cache": reader.fingerprint,
            "tokens_used": metrics["tokens_used"],
            "tokens_masked": metrics["tokens_masked"],
            "target": reader.identity.get("target_site"),
        },
        "tokens_trained": trained,
        "ours": {
            "name": ours.dictionary.name,
            "top_k": ours.dictionary.rule.row_limit,
            "per_prefix": _rows(ours, theirs),
        },
        "ours_at_their_l0": {
            "top_k": matched.dictionary.rule.row_limit if matched else None,
            "reason": reason,
            "per_prefix": _rows(matched, theirs) if matched else None,
        },
        "theirs": said | _figures_at(theirs, -1),
        "not_compared": _missing(trained, ours, theirs),
    }


def _rows(one: Judged, theirs: Judged) -> list[dict[str, Any]]:
    mine, other = replicates_of(one.judgement), replicates_of(theirs.judgement)
    return [
        _figures_at(one, place)
        | {"difference": {name: difference(mine[name][:, place], other[name][:, -1]) for name in mine}}
        for place in range(len(one.dictionary.prefixes))
    ]


def _figures_at(one: Judged, place: int) -> dict[str, Any]:
    """Everything measured of one prefix."""
    metrics, absorption = one.judgement.metrics, one.absorption.get("per_prefix")
    interval, prefix = metrics["fvu_interval_per_prefix"], one.dictionary.prefixes[place]
    groups = [group for group in metrics["sparsity"]["density_by_group"] if group["end"] <= prefix]
    return {
        "prefix": prefix,
        "fvu": metrics["fvu_per_prefix"][place],
        "fvu_interval": interval[place] if interval else None,
        "cosine": metrics["cosine_per_prefix"][place],
        "l0": metrics["l0_per_prefix"][place],
        "dead_fraction": metrics["dead_fraction_per_prefix"][place],
        "dense_fraction": sum(group["dense"] for group in groups) / prefix,
        "redundancy": metrics["redundancy"]["per_prefix"][place],
        "absorption_first_letter": absorption[place]["score"] if absorption else None,
    }


def _missing(trained: Mapping[str, int | None], ours: Judged, theirs: Judged) -> dict[str, str]:
    """Every figure that is null on either side, and why."""
    found: dict[str, str] = {}
    for side, one in (("ours", ours), ("theirs", theirs)):
        if one.absorption.get("score") is None:
            found[f"{side}: absorption_first_letter"] = str(one.absorption.get("reason"))
        if one.judgement.metrics["dead_fraction"] is None:
            found[f"{side}: dead_fraction"] = str(one.judgement.metrics["sparsity"]["dead_reason"])
        if trained[side] is None:
            found[f"{side}: tokens_trained"] = "its files do not say"
    return found
