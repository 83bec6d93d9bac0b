"""The evidence in Markdown, fit for a paper's appendix: the run, its prefixes, and a few features of each prefix.

The features are chosen without looking at them: in each prefix group, evenly over how often they fire, of those that
fire in several documents.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from evaluate.features.contexts import NO_ROW, STRONGEST
from evaluate.features.evidence import Evidence
from evaluate.features.text.clusters import cluster_list
from evaluate.features.text.labels import visible
from evaluate.features.text.page import feature_page
from evaluate.report.samples import chosen_features
from evaluate.report.summary import provenance_lines

REPORT_FILE = "report.md"
_PER_GROUP = 4
"""Features of each prefix group that are shown."""
_CLUSTERS = 12
"""Clusters that are listed: the largest ones."""
_DOCUMENTS = 3
"""Documents in which a chosen feature fires at least, and contexts that are shown of it."""
_SHOWN_BESIDE = 10
"""Tokens shown on either side."""
_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~])")


def as_markdown(evidence: Evidence) -> str:
    """The whole report."""
    lines = [*_heading(evidence), "", *_prefixes(evidence), "", *_plots(), "", *_clusters(evidence), ""]
    for feature in _chosen(evidence):
        lines += [*_feature(evidence, feature), ""]
    return "\n".join(lines)


def _heading(evidence: Evidence) -> list[str]:
    head = evidence.head
    name = head["transcoder"]["name"]
    cache = head["cache"]
    rows = "training" if head["settings"]["split"] == "train" else "held-out"
    logits = head["logits"]
    return [
        f"# Features of {_plain(str(cache['model']))}, layer {cache['layer']}, transcoder {_plain(name)}",
        "",
        f"{evidence.dict_size:,} features over {evidence.tokens:,} {rows} tokens of {head['documents']:,} documents; "
        f"special tokens count nowhere. {head['l0']:.1f} features fire on a token. "
        + (f"Logits are by the unembedding of {_plain(logits['from'])}." if logits else "No unembedding was at hand."),
        "",
        f"Weights {(head['transcoder']['weights'] or {}).get('xxh3_128', 'unknown')}, cache {cache['fingerprint']}. "
        "`index.html` beside this file shows every feature.",
        *(line for caution in provenance_lines(cache) for line in ("", f"**{_plain(caution)}**")),
    ]


def _prefixes(evidence: Evidence) -> list[str]:
    firings = evidence.arrays["firings"]
    rows: list[str] = []
    start = 0
    for end, fvu in zip(evidence.prefixes, evidence.head["fvu_per_prefix"], strict=True):
        own = firings[start:end]
        density = np.median(own[own > 0]) / evidence.tokens if own.any() else 0.0
        rows.append(f"| {end:,} | {fvu:.4f} | {len(own):,} | {(own == 0).mean():.1%} | {density:.3%} |")
        start = end
    return [
        "| prefix | FVU | features it adds | of these silent | median density |",
        "|---:|---:|---:|---:|---:|",
        *rows,
    ]


def _plots() -> list[str]:
    return [
        "![features by density, largest value and what they explain](distributions.svg)",
        "",
        "![map of the features, coloured by prefix](map.svg)",
    ]


def _clusters(evidence: Evidence) -> list[str]:
    """The largest clusters: features that fire on the same rows or write alike."""
    found = cluster_list(evidence)
    rows = [
        f"| {cluster.number} | {cluster.size:,} | {', '.join(map(_code, map(evidence.word, cluster.tokens)))} |"
        for cluster in found[:_CLUSTERS]
    ]
    return [f"{len(found):,} clusters; the largest:", "", "| cluster | features | tokens |", "|---:|---:|---|", *rows]


def _code(text: str) -> str:
    """A token as code inside a table, where a bar would end the cell."""
    shown = visible(text).replace("|", "\\|")
    return _plain(visible(text)) if "`" in shown else f"`{shown}`"


def _chosen(evidence: Evidence) -> list[int]:
    ends = evidence.prefixes
    groups = [range(start, end) for start, end in zip((0, *ends[:-1]), ends, strict=True)]
    rows = evidence.arrays[f"context_{STRONGEST}"][:, :_DOCUMENTS]
    documents = np.where(rows == NO_ROW, NO_ROW, evidence.text.document[np.maximum(rows, 0)])
    return chosen_features(evidence.arrays["firings"], documents, groups=groups, count=_PER_GROUP)


def _feature(evidence: Evidence, feature: int) -> list[str]:
    page = feature_page(evidence, feature)
    facts = (
        f"prefix {page['prefix']:,}; fires on {page['density']:.3%} of tokens; largest {page['largest']:.4g}; "
        f"FVU grows by {page['fvu_lost']:.2g} without it"
    )
    coarser = page["relatives"]["coarser"][:2]
    shown = page["contexts"][STRONGEST][:_DOCUMENTS]
    named = ", ".join(f"{evidence.layer}/{relative['feature']} (P {relative['given']:.2f})" for relative in coarser)
    return [
        f"## {page['id']}: {_plain_outside_code(page['label'])}",
        "",
        facts + (f"; coarser: {named}" if named else ""),
        "",
        *(f"- {context['values'][context['at']]:.3g}: {_context(context)}" for context in shown),
    ]


def _context(context: Mapping[str, Any]) -> str:
    """The tokens near the strongest one, which is bold."""
    strongest_index = context["at"]
    tokens = [_plain(visible(token)) for token in context["tokens"]]
    before = tokens[max(0, strongest_index - _SHOWN_BESIDE) : strongest_index]
    strongest = tokens[strongest_index]
    after = tokens[strongest_index + 1 :][:_SHOWN_BESIDE]
    # Markdown has no emphasis that begins or ends with a blank.
    bare = strongest.strip()
    marked = strongest.replace(bare, f"**{bare}**") if bare else strongest
    return f"{''.join(before)}{marked}{''.join(after)}".strip()


def _plain(text: str) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", text)


def _plain_outside_code(label: str) -> str:
    """A label, whose tokens between backticks stay code; a token with a backtick in it makes all of it plain."""
    pieces = label.split("`")
    if len(pieces) % 2 == 0:
        return _plain(label)
    return "`".join(piece if index % 2 else _plain(piece) for index, piece in enumerate(pieces))
