"""One table over the layers of a run, for the terminal."""

from collections.abc import Mapping
from typing import Any

from evaluate.report.summary import FEW_DOCUMENTS, interval_text, number, share

Metrics = Mapping[str, Any]


def table_of_runs(results: Mapping[int, Metrics]) -> str:
    """A line for each prefix, and the baselines."""
    spliced = any(metrics["language_model"] for metrics in results.values())
    heading = f"layer  {'features':>9}  {'FVU':>6}  {'95 % interval':<16}  {'whitened':>8}"
    heading += f"  {'cosine':>6}  {'L0':>6}  {'dead':>6}"
    lines = [heading + ("  delta CE" if spliced else "")]
    for layer, metrics in results.items():
        lines += [_run_line(layer, metrics, index) for index in range(len(metrics["prefixes"]))]
        affine = metrics["baselines"]["affine"]
        if affine is not None:
            lines.append(f"{layer:>5}  {'affine':>9}  {affine:6.4f}  the best affine map of the source")
        pca = metrics["baselines"].get("pca_per_prefix")
        if pca:
            rank = metrics["baselines"]["pca_rank_per_prefix"][-1]
            lines.append(f"{layer:>5}  {'PCA':>9}  {pca[-1]:6.4f}  the first {rank} principal axes")
        lines.append(f"{layer:>5}  {'mean':>9}  {1:6.4f}  on {metrics['tokens_used']:,} held-out tokens")
        if "comparison" in metrics:
            lines.append(_reference_line(layer, metrics))
    lines += [
        f"layer {layer}: {metrics['concentration']['warning']}"
        for layer, metrics in results.items()
        if metrics["concentration"]["warning"]
    ]
    if any(metrics["documents"] < FEW_DOCUMENTS for metrics in results.values()):
        lines.append(f"~ rough: of fewer than {FEW_DOCUMENTS} documents")
    return "\n".join(lines)


def _run_line(layer: int, metrics: Metrics, index: int) -> str:
    intervals = metrics["fvu_interval_per_prefix"]
    bounds = interval_text(intervals[index], documents=metrics["documents"]) if intervals else ""
    whitened = metrics["fvu_forms"]["whitened"]["per_prefix"][index]
    spliced = metrics["language_model"]
    delta = f"  {spliced['per_prefix'][index]['delta']:+8.4f}" if spliced else ""
    return (
        f"{layer:>5}  {metrics['prefixes'][index]:>9,}  {metrics['fvu_per_prefix'][index]:6.4f}  {bounds:<16}"
        f"  {number(whitened):>8}  {metrics['cosine_per_prefix'][index]:6.3f}  {metrics['l0_per_prefix'][index]:6.1f}"
        f"  {share(metrics['dead_fraction_per_prefix'][index]):>6}{delta}"
    )


def _reference_line(layer: int, metrics: Metrics) -> str:
    reference = metrics["comparison"]["theirs"]
    interval = reference["fvu_interval"]
    bounds = interval_text(interval, documents=metrics["documents"]) if interval else ""
    delta = reference["delta_cross_entropy"]
    return (
        f"{layer:>5}  {'theirs':>9}  {reference['fvu']:6.4f}  {bounds:<16}  {number(reference['fvu_whitened']):>8}"
        f"  {reference['cosine']:6.3f}  {reference['l0']:6.1f}  {share(reference['dead_fraction']):>6}"
        + (f"  {delta:+8.4f}" if delta is not None else "")
        + f"  {reference['name']}, {reference['dict_size']:,} features"
    )
