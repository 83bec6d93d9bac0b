"""What an evaluation leaves behind, and how a person reads it.

A report folder holds metrics.json (docs/metrics.md is its contract), summary.txt, samples.json and samples.txt, figures
as PNG and SVG, and with a comparison what ``evaluate.compare`` adds. It appears whole or not at all; an evaluation that
stood there before is moved aside to a folder that bears its date, never overwritten.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import disk
from common.checksums import CHECKSUMS_FILE, checksums_of
from common.errors import DamagedError

VERSION = 1
METRICS_FILE = "metrics.json"

_FEW_DOCUMENTS = 30

_GUIDANCE = """How to read this: FVU 0 is perfect, 1 is the held-out mean. A transcoder earns its features where it
beats the best affine map. Low FVU is easier in the first and last layers than between them: others found about .08 in
layer 0, .34 in 6, .49 in 12 and .18 in 25 for Google's transcoders of Gemma-2-2B. Figures of different layers, models
or L0 do not compare."""


def as_json(document: Mapping[str, Any]) -> bytes:
    """Plain JSON; NaN and infinity, which are not JSON, are refused."""
    return json.dumps(document, indent=1, allow_nan=False).encode() + b"\n"


def write_report(out: Path, files: Mapping[str, bytes]) -> Path | None:
    """Put ``files`` into the folder ``out``; where an earlier evaluation was moved to, if there was one."""
    aside, earlier = out.with_name(f".{out.name}.unfinished"), None
    disk.remove(aside)
    for name, data in (*files.items(), (CHECKSUMS_FILE, checksums_of(files))):
        disk.write_file(aside / name, data)
    if out.exists():
        earlier = _dated(out)
        disk.move(out, earlier)
    disk.move(aside, out)
    return earlier


def _dated(out: Path) -> Path:
    """A free name for an old report: its own with its date."""
    stamp = str(read_metrics(out).get("evaluated_at", "undated")).replace(":", "").replace("+0000", "Z")
    names = (
        out.with_name(f"{out.name}.{stamp}{suffix}") for suffix in ("", *(f".{count}" for count in range(2, 1000)))
    )
    return next(name for name in names if not name.exists())


def read_metrics(folder: Path) -> dict[str, Any]:
    """metrics.json of a report; empty where there is none. Raises DamagedError for a file that is not one."""
    path = folder / METRICS_FILE
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_bytes())
    except ValueError as error:
        raise DamagedError(f"metrics.json is not JSON: {error}", where=path) from None
    return found if isinstance(found, dict) else {}


def summary(metrics: Mapping[str, Any]) -> str:
    """summary.txt: the numbers of one transcoder for a person, with what they rest on."""
    transcoder, cache = metrics["transcoder"], metrics["cache"]
    lines = [
        f"{cache['model']}, layer {cache['layer']}: {cache['source_site']} -> {cache['target_site']}",
        f"transcoder {transcoder['name']}: {transcoder['dict_size']:,} features, {_rule(transcoder)}",
        f"{metrics['tokens_used']:,} held-out tokens of {metrics['documents']:,} documents"
        f" ({metrics['tokens_masked']:,} special tokens left out), {metrics['evaluated_at']}",
        "",
        *prefix_table(metrics),
        *_caution(metrics["documents"]),
        "",
        *_baseline_lines(metrics["baselines"]),
        *_feature_lines(metrics),
        *_absorption_lines(metrics["absorption_first_letter"]),
        *_language_model_lines(metrics["language_model"]),
        "",
        _GUIDANCE,
    ]
    return "\n".join(lines) + "\n"


def _caution(documents: int) -> list[str]:
    """Intervals resample documents, so a few of them carry an interval badly."""
    if documents >= _FEW_DOCUMENTS:
        return []
    rough = f"With {documents} held-out documents the intervals are rough"
    return [f"{rough}, and a dead feature may only lack its kind of text."]


def _rule(transcoder: Mapping[str, Any]) -> str:
    return f"top-k, k = {transcoder['top_k']}" if transcoder["top_k"] else "threshold"


def prefix_table(metrics: Mapping[str, Any]) -> list[str]:
    """A line a prefix: FVU with its interval, cosine, L0 with its 5 % and 95 % points, share of dead features."""
    heading = f"{'features':>9}  {'FVU':>6}  {'95 % interval':<16}{'cosine':>6}  {'L0':>6}  {'5 - 95 %':<11}{'dead':>6}"
    return [heading, *(_prefix_line(metrics, place) for place in range(len(metrics["prefixes"])))]


def _prefix_line(metrics: Mapping[str, Any], place: int) -> str:
    l0 = metrics["sparsity"]["l0_per_prefix"][place]
    interval = metrics["fvu_interval_per_prefix"]
    bounds = "{:.4f} - {:.4f}".format(*interval[place]) if interval else "none"
    dead = metrics["dead_fraction_per_prefix"][place]
    return (
        f"{metrics['prefixes'][place]:>9,}  {metrics['fvu_per_prefix'][place]:6.4f}  {bounds:<16}"
        f"{metrics['cosine_per_prefix'][place]:6.3f}  {l0['mean']:6.1f}  {l0['p5']:.0f} - {l0['p95']:<7.0f}"
        f"{share(dead):>6}"
    )


def share(value: float | None) -> str:
    """A fraction in per cent; ``?`` where it is not known."""
    return "?" if value is None else f"{value:.1%}"


def _baseline_lines(baselines: Mapping[str, Any]) -> list[str]:
    affine, stored = baselines["affine"], baselines["storage_floor"]
    said = (
        f"{affine:.4f} (fitted to these very rows {baselines['affine_in_sample']:.4f})"
        if affine is not None
        else f"none: {baselines['affine_reason']}"
    )
    return [
        f"Without features, FVU: best affine map {said}; bias alone {baselines['bias_only']:.4f}; mean 1.",
        f"Floor, FVU: storing the target in bfloat16 costs {baselines['bf16_floor']:.1e}"
        + (f"; this cache's format cost {stored:.1e}." if stored is not None else "."),
    ]


def _feature_lines(metrics: Mapping[str, Any]) -> list[str]:
    sparsity, redundancy = metrics["sparsity"], metrics["redundancy"]
    dead = sparsity["dead_reason"] or f"did not fire in {sparsity['dead_tokens']:,} tokens"
    dense = share(metrics["dense_fraction"])
    return [
        f"Features: {share(metrics['dead_fraction'])} dead ({dead}); {dense} fire on more than 10 % of tokens.",
        f"Redundancy: mean largest decoder cosine {_cosine(redundancy['mean_max_cosine'])};"
        f" {share(redundancy['twin_share'])} have a twin above 0.9.",
    ]


def _cosine(value: float | None) -> str:
    return "none, of a single feature" if value is None else f"{value:.3f}"


def _absorption_lines(absorption: Mapping[str, Any]) -> list[str]:
    if absorption["score"] is None:
        return [f"First-letter absorption: not measured: {absorption['reason']}."]
    by_prefix = ", ".join(f"{prefix['prefix']:,}: {prefix['score']:.3f}" for prefix in absorption["per_prefix"])
    caution = f" Exploratory: {absorption['exploratory']}." if absorption["exploratory"] else ""
    single = absorption["per_prefix"][-1]["k_sparse_f1"]["1"]
    return [
        f"First-letter absorption {absorption['score']:.3f} (by prefix {by_prefix}),"
        f" full {absorption['full_absorption_rate']:.3f}.{caution}",
        f"It rests on {absorption['words_right']:,} words of {absorption['letters_counted']} letters;"
        f" F1 of the probes {absorption['probe_f1']:.2f}, of a letter's best single feature {single:.2f}.",
    ]


def _language_model_lines(spliced: Mapping[str, Any] | None) -> list[str]:
    if spliced is None:
        return []
    clean, zero, mean = spliced["clean"], spliced["zero"]["cross_entropy"], spliced["mean"]["cross_entropy"]
    ablated = f"cross-entropy clean {clean:.4f}, MLP zeroed {zero:.4f}, MLP at its mean {mean:.4f}"
    heading = f"{'features':>9}  {'CE':>7}  {'delta':>7}  {'95 % interval':<18}  {'KL':>7}"
    return [
        "",
        f"Spliced into the language model, {spliced['tokens']:,} tokens: {ablated}",
        f"{heading}  recovered of zero, mean ablation",
        *map(_spliced_line, spliced["per_prefix"]),
    ]


def _spliced_line(prefix: Mapping[str, Any]) -> str:
    bounds = "[{:+.4f}, {:+.4f}]".format(*prefix["delta_interval"]) if prefix["delta_interval"] else "none"
    return (
        f"{prefix['prefix']:>9,}  {prefix['cross_entropy']:7.4f}  {prefix['delta']:+7.4f}  {bounds:<18}"
        f"  {prefix['kl']:7.4f}  {share(prefix['recovered_zero'])}, {share(prefix['recovered_mean'])}"
    )


def table_of_runs(results: Mapping[int, Mapping[str, Any]]) -> str:
    """One table over layers: a line a prefix, and what no features reach."""
    spliced = any(metrics["language_model"] for metrics in results.values())
    heading = f"layer  {'features':>9}  {'FVU':>6}  {'95 % interval':<15}  {'cosine':>6}  {'L0':>6}  {'dead':>6}"
    lines = [heading + ("  delta CE" if spliced else "")]
    for layer, metrics in results.items():
        lines += [_run_line(layer, metrics, place) for place in range(len(metrics["prefixes"]))]
        affine = metrics["baselines"]["affine"]
        if affine is not None:
            lines.append(f"{layer:>5}  {'affine':>9}  {affine:6.4f}  the best affine map of the source")
        lines.append(f"{layer:>5}  {'mean':>9}  {1:6.4f}  on {metrics['tokens_used']:,} held-out tokens")
        if "comparison" in metrics:
            lines.append(_their_line(layer, metrics["comparison"]["theirs"]))
    return "\n".join(lines)


def _their_line(layer: int, theirs: Mapping[str, Any]) -> str:
    bounds = "{:.4f} - {:.4f}".format(*theirs["fvu_interval"]) if theirs["fvu_interval"] else ""
    return (
        f"{layer:>5}  {'theirs':>9}  {theirs['fvu']:6.4f}  {bounds:<15}  {theirs['cosine']:6.3f}  {theirs['l0']:6.1f}"
        f"  {share(theirs['dead_fraction']):>6}  {theirs['name']}, {theirs['dict_size']:,} features"
    )


def _run_line(layer: int, metrics: Mapping[str, Any], place: int) -> str:
    interval = metrics["fvu_interval_per_prefix"]
    bounds = "{:.4f} - {:.4f}".format(*interval[place]) if interval else ""
    spliced = metrics["language_model"]
    delta = f"  {spliced['per_prefix'][place]['delta']:+8.4f}" if spliced else ""
    return (
        f"{layer:>5}  {metrics['prefixes'][place]:>9,}  {metrics['fvu_per_prefix'][place]:6.4f}  {bounds:<15}"
        f"  {metrics['cosine_per_prefix'][place]:6.3f}  {metrics['l0_per_prefix'][place]:6.1f}"
        f"  {share(metrics['dead_fraction_per_prefix'][place]):>6}{delta}"
    )
