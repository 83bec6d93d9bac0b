"""A comparison for readers: one table, the differences in words, and a plot of FVU against L0 for both dictionaries."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from common.run_layout import METRICS_FILE
from evaluate.compare import Comparison
from evaluate.report.plots import as_files, new_figure, plot_interval
from evaluate.report.report import as_json
from evaluate.report.summary import FEW_DOCUMENTS, FORMS, number, share

Document = Mapping[str, Any]

NAMES = {
    "fvu": "FVU",
    **{f"fvu_{form}": f"FVU {head}" for form, head in FORMS.items()},
    "delta_cross_entropy": "delta CE",
    "cosine": "cosine",
    "l0": "L0",
}
"""What the summary calls the numbers of comparison.json."""

_DECIDES = "The rise of the model's own loss decides: delta CE if it was measured; otherwise evaluate with --lm."


def as_text(document: Document) -> str:
    """The comparison in the summary: the metrics of both, ours minus theirs, and where the forms of FVU disagree."""
    rows = document["rows"]
    reference = document["theirs"]
    lines = [
        f"Compared with {reference['name']} ({reference['origin']})",
        f"on the same {rows['tokens_used']:,} held-out tokens, target {rows['target']}; special tokens are left out.",
        f"{reference['convention']}.",
        "",
        f"{'':<22}{'features':>9}{'L0':>8}{'FVU':>8}{'whitened':>10}{'tok. med.':>10}{'delta CE':>10}{'cosine':>8}"
        f"{'dead':>8}{'dense':>8}{'twins':>8}{'absorbed':>10}",
        *(_line(label, values) for label, values in _labelled(document)),
        "",
        "Ours minus theirs, 95 % intervals paired over documents"
        + (f" (rough: {rows['documents']} documents):" if rows["documents"] < FEW_DOCUMENTS else ":"),
        *(_difference(label, values) for label, values in _labelled(document) if "difference" in values),
        "",
        *_verdict_lines(document),
        f"Tokens trained on: ours {_count(document, 'ours')}, theirs {_count(document, 'theirs')}.",
    ]
    matched = document["ours_at_their_l0"]
    if matched["reason"]:
        lines.append(f"Ours was not measured again at their L0: {matched['reason']}.")
    lines += [f"Not compared: {name}: {reason.rstrip('.')}." for name, reason in document["not_compared"].items()]
    return "\n".join(lines) + "\n"


def _labelled(document: Document) -> list[tuple[str, Mapping[str, Any]]]:
    """Every line of the table: ours by prefix, ours at their L0 by prefix, theirs."""
    evaluated = document["ours"]
    matched = document["ours_at_their_l0"]
    return [
        *((str(evaluated["name"])[:21], values) for values in evaluated["per_prefix"]),
        *((f"  at k = {matched['top_k']}", values) for values in matched["per_prefix"] or []),
        (str(document["theirs"]["name"])[:21], document["theirs"]),
    ]


def _line(label: str, values: Mapping[str, Any]) -> str:
    delta = values["delta_cross_entropy"]
    return (
        f"{label:<22}{values['prefix']:>9,}{values['l0']:>8.1f}{values['fvu']:>8.4f}"
        f"{number(values['fvu_whitened']):>10}{number(values['fvu_median_token']):>10}"
        f"{'-' if delta is None else f'{delta:+.4f}':>10}{values['cosine']:>8.3f}"
        f"{share(values['dead_fraction']):>8}{share(values['dense_fraction']):>8}"
        f"{share(values['redundancy']['twin_share']):>8}{number(values['absorption_first_letter'], 3):>10}"
    )


_SHOWN_DIFFERENCES = {"fvu": 4, "fvu_whitened": 4, "delta_cross_entropy": 4, "cosine": 4, "l0": 1}
"""Of the differences in comparison.json, those in the summary, with their decimal places."""


def _difference(label: str, values: Mapping[str, Any]) -> str:
    differences = values["difference"]
    texts = [
        f"{NAMES[name]} {_difference_text(differences[name], decimals)}"
        for name, decimals in _SHOWN_DIFFERENCES.items()
        if name in differences
    ]
    return f"{label:<22}{values['prefix']:>9,}  {', '.join(texts)}"


def _difference_text(value: Mapping[str, Any], decimals: int) -> str:
    if value["value"] is None:
        return "?"
    bounds = value["interval"]
    interval = f" [{bounds[0]:+.{decimals}f}, {bounds[1]:+.{decimals}f}]" if bounds else ""
    return f"{value['value']:+.{decimals}f}{interval}"


def _verdict_lines(document: Document) -> list[str]:
    """Whether the forms agree on who is better: the whole dictionaries, and ours at their L0."""
    matched = document["ours_at_their_l0"]
    rows = {f"{document['ours']['name']}": document["ours"]["per_prefix"][-1]}
    if matched["per_prefix"]:
        rows[f"{document['ours']['name']} at k = {matched['top_k']}"] = matched["per_prefix"][-1]
    lines: list[str] = []
    for name, row in rows.items():
        better = {
            owner: [NAMES[form] for form, winner in row["better"].items() if winner == owner]
            for owner in ("ours", "theirs")
        }
        if row["disagree"]:
            lines.append(
                f"The forms disagree on {name}: ours is better by {', '.join(better['ours'])}; theirs by"
                f" {', '.join(better['theirs'])}. {_DECIDES}"
            )
        elif any(better.values()):
            owner = "ours" if better["ours"] else "theirs"
            lines.append(f"{name}: {owner} is better by {', '.join(better[owner])}; no form says otherwise.")
        else:
            lines.append(f"{name}: no form tells the two apart.")
    return lines


def _count(document: Document, owner: str) -> str:
    tokens = document["tokens_trained"][owner]
    return "not known" if tokens is None else f"{tokens:,}"


def comparison_files(comparison: Comparison, report: Mapping[str, bytes], *, label: str) -> dict[str, bytes]:
    """What a comparison adds to a report, by file name: the documents, the plot, and the table under the summary."""
    return {
        "comparison.json": as_json(comparison.document),
        "ours_metrics.json": report[METRICS_FILE],
        f"{label}_metrics.json": as_json(comparison.reference),
        "summary.txt": report["summary.txt"] + b"\n" + as_text(comparison.document).encode(),
        **as_files("fvu_against_l0", fvu_against_l0(comparison.document)),
    }


def fvu_against_l0(document: Document) -> Figure:
    """Ours as a line over its prefixes, and again at their L0 if it was measured there; theirs as a point."""
    evaluated = document["ours"]
    matched = document["ours_at_their_l0"]
    reference = document["theirs"]
    figure, axes = new_figure(f"the same {document['rows']['tokens_used']:,} held-out tokens")
    series = [(evaluated["name"], evaluated["per_prefix"], "o-")]
    if matched["per_prefix"]:
        series.append((f"{evaluated['name']} at k = {matched['top_k']}", matched["per_prefix"], "o--"))
    series.append((reference["name"], [reference], "s"))
    for name, points, style in series:
        l0 = [point["l0"] for point in points]
        fvu = [point["fvu"] for point in points]
        intervals = [point["fvu_interval"] for point in points]
        plot_interval(axes, l0, fvu, interval=intervals if all(intervals) else None, fmt=style, label=str(name))
    for point in evaluated["per_prefix"]:
        position = (point["l0"], point["fvu"])
        axes.annotate(f"{point['prefix']:,}", position, xytext=(0, 10), textcoords="offset points", ha="center")
    axes.margins(x=0.08)
    axes.set(xlabel="features that fire on a token (mean L0)", ylabel="FVU on held-out rows", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
