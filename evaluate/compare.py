"""Two dictionaries side by side: the same rows, mask, target and metrics, and the differences with paired intervals.

    difference = ours - theirs, at each of our prefixes against their whole dictionary
    interval   = the central 95 % of (ours_b - theirs_b) over bootstrap replicates b of the documents

Replicate b weights the same documents alike for both (see ``bootstrap``), so what both find hard cancels. Ours is
measured once more at k = their L0, where it selects by top-k: a lower FVU bought with more features is no better
dictionary.

"Ours" is the transcoder that is evaluated, "theirs" the reference that it is compared with.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from jaxtyping import Float

from evaluate.measure import Measurement, measure
from evaluate.metrics.bootstrap import intervals
from evaluate.metrics.inputs import MetricInputs
from evaluate.reference import Reference, reference_fields
from evaluate.replay import Replay
from transcoder.transcoder import Transcoder

VERSION = 1
"""Of comparison.json."""

_CHECK_STARTS = 16
_CHECK_ROWS = 256
"""Before everything is measured, L0 is checked at so many places of the held-out text, on so many rows each."""

LOWER_IS_BETTER = ("fvu", "fvu_without_largest_rows", "fvu_whitened", "fvu_mean_dimension", "fvu_median_dimension",
                   "fvu_mean_token", "fvu_median_token", "delta_cross_entropy")  # fmt: skip
"""Metrics that are compared, if both dictionaries have them."""


@dataclass(frozen=True)
class Comparison:
    """``document`` is comparison.json; ``reference`` is google_metrics.json (or other_metrics.json)."""

    document: dict[str, Any]
    reference: dict[str, Any]


def compare(
    evaluated: Measurement, reference: Reference, *, replay: Replay, inputs: MetricInputs, force: bool
) -> Comparison:
    """Measure ``reference`` on the rows of ``evaluated``.

    Raises MismatchError if the reference does not get the kind of rows that it was trained on.
    """
    measured = measure(replay, _for_reference(inputs, reference.dictionary.on(replay.device)))
    l0 = float(measured.metrics["l0"])
    convention = reference.convention(l0, force=force) + _doubt(float(measured.metrics["fvu"]))
    matched = None
    reason = _no_match(evaluated.dictionary, l0)
    if reason is None:
        at_reference_l0 = evaluated.dictionary.at_top_k(max(1, round(l0)))
        matched = measure(replay, _for_reference(inputs, at_reference_l0))
    fields = reference_fields(reference) | {"convention": convention}
    return Comparison(
        document=_document(evaluated, measured, matched=matched, reason=reason, fields=fields, inputs=inputs),
        reference={"version": VERSION, "dictionary": fields, **measured.metrics},
    )


def early_l0(replay: Replay, dictionary: Transcoder) -> float:
    """Mean L0 of a few rows from the whole split, the same in every process."""
    total = len(replay.held_out.view)
    starts = range(0, total, max(_CHECK_ROWS, total // _CHECK_STARTS))
    batches = [replay.batch(dictionary, start, min(start + _CHECK_ROWS, total)) for start in starts]
    counted = [batch for batch in batches if batch]
    firing = sum(int((batch.selection.values > 0).sum()) for batch in counted)
    return firing / max(1, sum(len(batch.row) for batch in counted))


def difference(
    evaluated: Float[np.ndarray, " replicates"], reference: Float[np.ndarray, " replicates"]
) -> dict[str, Any]:
    """Ours minus the reference: the estimate (first in both) and the central 95 % of the paired replicates."""
    gap = evaluated - reference
    interval = intervals(gap[1:, None])
    value = float(gap[0])
    return {"value": value if np.isfinite(value) else None, "interval": interval[0] if interval else None}


def verdicts(differences: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Which of the two is better (lower) by each form; null if the interval contains 0, or there is no interval.

    ``disagree``: two forms name different ones.
    """
    better: dict[str, str | None] = {}
    for name in LOWER_IS_BETTER:
        if name in differences:
            low, high = differences[name]["interval"] or (0.0, 0.0)
            better[name] = "ours" if high < 0 else "theirs" if low > 0 else None
    return {"better": better, "disagree": {"ours", "theirs"} <= set(better.values())}


def _for_reference(inputs: MetricInputs, dictionary: Transcoder) -> MetricInputs:
    return replace(inputs, dictionary=dictionary, is_reference=True)


def _doubt(fvu: float) -> str:
    """A doubt that the right L0 does not remove: on rows of another model or layer the same number of features may
    fire, and explain nothing."""
    if fvu < 1:
        return ""
    return f", but its FVU of {fvu:.2f} is no better than the mean's: it may be of another model or layer"


def _no_match(evaluated: Transcoder, l0: float) -> str | None:
    """Why ours cannot be measured at the reference's L0; None if it can."""
    top_k = evaluated.rule.row_limit
    if top_k is None:
        return "ours selects by a threshold, which has no k to set"
    if max(1, round(l0)) == top_k:
        return f"ours has k = {top_k}, which is their L0 already"
    if round(l0) > evaluated.dict_size:
        return f"their L0 of {l0:.1f} is more than our {evaluated.dict_size} features"
    return None


def _document(
    evaluated: Measurement,
    reference: Measurement,
    *,
    matched: Measurement | None,
    reason: str | None,
    fields: dict[str, Any],
    inputs: MetricInputs,
) -> dict[str, Any]:
    trained = {"ours": evaluated.dictionary.tokens_trained, "theirs": reference.dictionary.tokens_trained}
    return {
        "version": VERSION,
        "compared_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "difference_is": "ours minus theirs; intervals are 95 %, paired over documents",
        "rows": {
            "cache": inputs.reader.fingerprint,
            "documents": evaluated.metrics["documents"],
            "tokens_used": evaluated.metrics["tokens_used"],
            "tokens_masked": evaluated.metrics["tokens_masked"],
            "target": inputs.reader.identity.get("target_site"),
        },
        "tokens_trained": trained,
        "ours": {
            "name": evaluated.dictionary.name,
            "top_k": evaluated.dictionary.rule.row_limit,
            "per_prefix": _rows(evaluated, reference),
        },
        "ours_at_their_l0": {
            "top_k": matched.dictionary.rule.row_limit if matched else None,
            "reason": reason,
            "per_prefix": _rows(matched, reference) if matched else None,
        },
        "theirs": fields | _prefix_fields(reference, -1),
        "not_compared": _missing(trained, evaluated, reference),
    }


def _rows(measurement: Measurement, reference: Measurement) -> list[dict[str, Any]]:
    """A line for each prefix: its metrics, the differences from the whole reference, and which is better by each
    form."""
    rows: list[dict[str, Any]] = []
    shared = [name for name in measurement.replicates if name in reference.replicates]
    for index in range(len(measurement.dictionary.prefixes)):
        differences = {
            name: difference(measurement.replicates[name][:, index], reference.replicates[name][:, -1])
            for name in shared
        }
        rows.append(_prefix_fields(measurement, index) | {"difference": differences} | verdicts(differences))
    return rows


def _prefix_fields(measurement: Measurement, index: int) -> dict[str, Any]:
    """Everything measured of one prefix."""
    metrics = measurement.metrics
    interval = metrics["fvu_interval_per_prefix"]
    prefix = measurement.dictionary.prefixes[index]
    groups = [group for group in metrics["sparsity"]["density_by_group"] if group["end"] <= prefix]
    absorption = metrics["absorption_first_letter"].get("per_prefix")
    spliced = metrics["language_model"]
    return {
        "prefix": prefix,
        "fvu": metrics["fvu_per_prefix"][index],
        "fvu_interval": interval[index] if interval else None,
        **{f"fvu_{name}": form["per_prefix"][index] for name, form in metrics["fvu_forms"].items()},
        "cosine": metrics["cosine_per_prefix"][index],
        "l0": metrics["l0_per_prefix"][index],
        "dead_fraction": metrics["dead_fraction_per_prefix"][index],
        "dense_fraction": sum(group["dense"] for group in groups) / prefix,
        "redundancy": metrics["redundancy"]["per_prefix"][index],
        "absorption_first_letter": absorption[index]["score"] if absorption else None,
        "delta_cross_entropy": spliced["per_prefix"][index]["delta"] if spliced else None,
    }


def _missing(trained: Mapping[str, int | None], evaluated: Measurement, reference: Measurement) -> dict[str, str]:
    """Every metric that one of the two does not have, and why."""
    missing: dict[str, str] = {}
    for owner, measurement in (("ours", evaluated), ("theirs", reference)):
        absorption = measurement.metrics["absorption_first_letter"]
        if absorption["score"] is None:
            missing[f"{owner}: absorption_first_letter"] = str(absorption["reason"])
        if measurement.metrics["dead_fraction"] is None:
            missing[f"{owner}: dead_fraction"] = str(measurement.metrics["sparsity"]["dead_reason"])
        if trained[owner] is None:
            missing[f"{owner}: tokens_trained"] = "its files do not say"
    return missing
