"""A comparison for people: one table, the differences in words, and FVU against L0 with both dictionaries."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from evaluate.compare import Comparison
from evaluate.report.plots import as_files, new_figure, plot_interval
from evaluate.report.report import METRICS_FILE, as_json, share

Document = Mapping[str, Any]


def as_text(document: Document) -> str:
    """What the summary says of a comparison: every figure of both, then ours minus theirs."""
    rows, theirs = document["rows"], document["theirs"]
    lines = [
        f"Compared with {theirs['name']} ({theirs['origin']})",
        f"on the same {rows['tokens_used']:,} held-out tokens, target {rows['target']}; special tokens are left out.",
        f"{theirs['convention']}.",
        "",
        f"{'':<22}{'features':>9}{'L0':>8}{'FVU':>8}{'cosine':>8}{'dead':>8}{'dense':>8}{'twins':>8}{'absorbed':>10}",
        *(_line(label, figures) for label, figures in _labelled(document)),
        "",
        "Ours minus theirs, 95 % intervals paired over documents:",
        *(_difference(label, figures) for label, figures in _labelled(document) if "difference" in figures),
        "",
        f"Tokens trained on: ours {_count(document, 'ours')}, theirs {_count(document, 'theirs')}.",
    ]
    matched = document["ours_at_their_l0"]
    if matched["reason"]:
        lines.append(f"Ours was not judged again at their L0: {matched['reason']}.")
    lines += [f"Not compared: {name}: {reason.rstrip('.')}." for name, reason in document["not_compared"].items()]
    return "\n".join(lines) + "\n"


def _labelled(document: Document) -> list[tuple[str, Mapping[str, Any]]]:
    """Every line of the table: ours by prefix, ours at their L0 by prefix, theirs."""
    ours, matched = document["ours"], document["ours_at_their_l0"]
    return [
        *((str(ours["name"])[:21], figures) for figures in ours["per_prefix"]),
        *((f"  at k = {matched['top_k']}", figures) for figures in matched["per_prefix"] or []),
        (str(document["theirs"]["name"])[:21], document["theirs"]),
    ]


def _line(label: str, figures: Mapping[str, Any]) -> str:
    absorbed = figures["absorption_first_letter"]
    return (
        f"{label:<22}{figures['prefix']:>9,}{figures['l0']:>8.1f}{figures['fvu']:>8.4f}{figures['cosine']:>8.3f}"
        f"{share(figures['dead_fraction']):>8}{share(figures['dense_fraction']):>8}"
        f"{share(figures['redundancy']['twin_share']):>8}{'?' if absorbed is None else f'{absorbed:.3f}':>10}"
    )


def _difference(label: str, figures: Mapping[str, Any]) -> str:
    gaps = figures["difference"]
    said = [f"FVU {_gap(gaps['fvu'], 4)}", f"cosine {_gap(gaps['cosine'], 4)}", f"L0 {_gap(gaps['l0'], 1)}"]
    return f"{label:<22}{figures['prefix']:>9,}  {', '.join(said)}"


def _gap(gap: Mapping[str, Any], places: int) -> str:
    value, bounds = gap["value"], gap["interval"]
    return f"{value:+.{places}f}" + (f" [{bounds[0]:+.{places}f}, {bounds[1]:+.{places}f}]" if bounds else "")


def _count(document: Document, side: str) -> str:
    tokens = document["tokens_trained"][side]
    return "not known" if tokens is None else f"{tokens:,}"


def comparison_files(comparison: Comparison, report: Mapping[str, bytes], *, label: str) -> dict[str, bytes]:
    """What a comparison adds to a report, by file name: the documents, the figure, and the table under the summary."""
    return {
        "comparison.json": as_json(comparison.document),
        "ours_metrics.json": report[METRICS_FILE],
        f"{label}_metrics.json": as_json(comparison.theirs),
        "summary.txt": report["summary.txt"] + b"\n" + as_text(comparison.document).encode(),
        **as_files("fvu_against_l0", fvu_against_l0(comparison.document)),
    }


def fvu_against_l0(document: Document) -> Figure:
    """Ours as a line over its prefixes, again at their L0 where it was judged there, theirs as a point."""
    ours, matched, theirs = document["ours"], document["ours_at_their_l0"], document["theirs"]
    figure, axes = new_figure(f"the same {document['rows']['tokens_used']:,} held-out tokens")
    series = [(ours["name"], ours["per_prefix"], "o-")]
    if matched["per_prefix"]:
        series.append((f"{ours['name']} at k = {matched['top_k']}", matched["per_prefix"], "o--"))
    series.append((theirs["name"], [theirs], "s"))
    for name, points, style in series:
        l0, fvu = ([point[figure_name] for point in points] for figure_name in ("l0", "fvu"))
        known = [point["fvu_interval"] for point in points]
        plot_interval(axes, l0, fvu, interval=known if all(known) else None, fmt=style, label=str(name))
    for point in ours["per_prefix"]:
        place = (point["l0"], point["fvu"])
        axes.annotate(f"{point['prefix']:,}", place, xytext=(0, 10), textcoords="offset points", ha="center")
    axes.margins(x=0.08)
    axes.set(xlabel="features that fire on a token (mean L0)", ylabel="FVU on held-out rows", ylim=(0, None))
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure
