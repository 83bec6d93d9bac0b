"""summary.txt: the metrics of one transcoder in words, on how much text they were measured, and which of them to
quote."""

from collections.abc import Mapping, Sequence
from typing import Any

from evaluate.metrics.concentration import NAMED_ROWS

Metrics = Mapping[str, Any]

FEW_DOCUMENTS = 30
"""Intervals resample documents: with fewer than this many they are rough."""

FORMS = {
    "without_largest_rows": "w/o largest",
    "whitened": "whitened",
    "mean_dimension": "dim. mean",
    "median_dimension": "dim. median",
    "mean_token": "token mean",
    "median_token": "token median",
}
"""Forms of the FVU beside the pooled one, in the order of the table, with the heads of their columns."""

_GUIDANCE = {
    "transcoder": """How to read this: FVU 0 is perfect, 1 is the held-out mean. A transcoder earns its features where
it beats the best affine map. Low FVU is easier in the first and last layers than between them: others found about
.08 in layer 0, .34 in 6, .49 in 12 and .18 in 25 for Google's transcoders of Gemma-2-2B. Figures of different layers,
models or L0 do not compare.""",
    "sae": """How to read this: FVU 0 is perfect, 1 is the held-out mean. An autoencoder earns its features where it
beats as many principal axes. Figures of different sites, layers, models or L0 do not compare.""",
}
"""By kind."""


def summary(metrics: Metrics) -> str:
    """The whole text."""
    transcoder = metrics["transcoder"]
    kind = transcoder.get("kind", "transcoder")
    cache = metrics["cache"]
    lines = [
        f"{cache['model']}, layer {cache['layer']}: {cache['source_site']} -> {cache['target_site']}",
        f"{kind} {transcoder['name']}: {transcoder['dict_size']:,} features, {_rule(transcoder)}",
        f"{metrics['tokens_used']:,} held-out tokens of {metrics['documents']:,} documents"
        f" ({metrics['tokens_masked']:,} special tokens left out), {metrics['evaluated_at']}",
        *provenance_lines(cache),
        "",
        *prefix_table(metrics),
        *_caution(metrics["documents"]),
        "",
        *_forms_lines(metrics),
        *_language_model_lines(metrics["language_model"], documents=metrics["documents"]),
        "",
        *_quote_lines(metrics),
        "",
        *_concentration_lines(metrics["concentration"]),
        *_baseline_lines(metrics["baselines"]),
        *_feature_lines(metrics),
        *_absorption_lines(metrics["absorption_first_letter"]),
        "",
        _GUIDANCE[kind],
    ]
    return "\n".join(lines) + "\n"


def provenance_lines(cache: Metrics) -> list[str]:
    """A warning if nobody has proved what the rows of the cache are; else nothing."""
    if cache.get("provenance") is None:
        return []
    return [f"Provenance {cache['provenance']}: these rows came from elsewhere, and no harvest proved which they are."]


def interval_text(interval: Sequence[float] | None, *, documents: int, form: str = "{:.4f} - {:.4f}") -> str:
    """An interval, with a ~ if it was measured on few documents."""
    if interval is None:
        return "none"
    return form.format(*interval) + ("~" if documents < FEW_DOCUMENTS else "")


def share(value: float | None) -> str:
    """A fraction in per cent; ``?`` if it is not known."""
    return "?" if value is None else f"{value:.1%}"


def number(value: float | None, decimals: int = 4) -> str:
    """A number with so many decimals; ``?`` if it is not known."""
    return "?" if value is None else f"{value:.{decimals}f}"


def _caution(documents: int) -> list[str]:
    """A warning if there are few documents."""
    if documents >= FEW_DOCUMENTS:
        return []
    rough = f"~ With {documents} held-out documents the intervals are rough"
    return [f"{rough}, and a dead feature may only lack its kind of text."]


def _rule(transcoder: Mapping[str, Any]) -> str:
    return f"top-k, k = {transcoder['top_k']}" if transcoder["top_k"] else "threshold"


def prefix_table(metrics: Metrics) -> list[str]:
    """A line a prefix: FVU with its interval, cosine, L0 with its 5 % and 95 % points, share of dead features."""
    heading = f"{'features':>9}  {'FVU':>6}  {'95 % interval':<17}{'cosine':>6}  {'L0':>6}  {'5 - 95 %':<11}{'dead':>6}"
    return [heading, *(_prefix_line(metrics, index) for index in range(len(metrics["prefixes"])))]


def _prefix_line(metrics: Metrics, index: int) -> str:
    l0 = metrics["sparsity"]["l0_per_prefix"][index]
    intervals = metrics["fvu_interval_per_prefix"]
    bounds = interval_text(intervals[index] if intervals else None, documents=metrics["documents"])
    dead = metrics["dead_fraction_per_prefix"][index]
    return (
        f"{metrics['prefixes'][index]:>9,}  {metrics['fvu_per_prefix'][index]:6.4f}  {bounds:<17}"
        f"{metrics['cosine_per_prefix'][index]:6.3f}  {l0['mean']:6.1f}  {l0['p5']:.0f} - {l0['p95']:<7.0f}"
        f"{share(dead):>6}"
    )


def _forms_lines(metrics: Metrics) -> list[str]:
    """The other forms of the FVU, a line a prefix; then the intervals of the whole dictionary's."""
    forms = metrics["fvu_forms"]
    spliced = metrics["language_model"]
    heading = f"{'features':>9}" + "".join(f"{head:>14}" for head in FORMS.values())
    lines = ["FVU in its other forms" + (", and what the language model loses" if spliced else "")]
    lines.append(heading + (f"{'delta CE':>14}" if spliced else ""))
    for index, prefix in enumerate(metrics["prefixes"]):
        values = [forms[name]["per_prefix"][index] for name in FORMS]
        delta = f"{spliced['per_prefix'][index]['delta']:>+14.4f}" if spliced else ""
        lines.append(f"{prefix:>9,}" + "".join(f"{number(value):>14}" for value in values) + delta)
    if metrics["fvu_interval_per_prefix"]:
        known = {name: forms[name]["interval_per_prefix"] for name in FORMS}
        bounds = [
            interval_text(intervals[-1] if intervals else None, documents=metrics["documents"], form="{:.3f}-{:.3f}")
            for intervals in known.values()
        ]
        lines.append(f"{'95 %':>9}" + "".join(f"{text:>14}" for text in bounds))
    return lines


def _quote_lines(metrics: Metrics) -> list[str]:
    """Which form to quote."""
    ruled = metrics["concentration"]["warning"] is not None
    if metrics["language_model"]:
        first = "Which to quote: delta CE, the rise of the model's own loss, decides; beside it "
        pooled = "the whitened FVU, because a handful of rows or dimensions rules the pooled one."
        return [first + (pooled if ruled else "the pooled FVU, for comparison with published ones.")]
    lines = ["Which to quote: evaluate with --lm where you can; delta CE, the rise of the model's own loss, decides."]
    if ruled:
        lines += ["Without it: the whitened FVU (every dimension counts the same) and the median over tokens; the"]
        lines += ["pooled FVU only with them beside it, because a handful of rows or dimensions rules it here."]
    else:
        lines += ["Without it: the pooled FVU (what papers report), with the whitened one beside it."]
    return lines


def _concentration_lines(concentration: Mapping[str, Any]) -> list[str]:
    rows = ", ".join(f"{name} of rows {value:.1%}" for name, value in concentration["rows"].items())
    dimensions = ", ".join(
        f"{name} dimension{'s' if name != '1' else ''} {value:.1%}"
        for name, value in concentration["dimensions"].items()
    )
    lines = [f"Share of the target's variance: {rows}; {dimensions}."]
    if concentration["warning"]:
        largest = concentration["largest_rows"][:NAMED_ROWS]
        named = ", ".join(f"{entry['text']!r} ({entry['share']:.1%})" for entry in largest[:5])
        lines.insert(0, f"Warning: {concentration['warning']}")
        lines.append(f"The largest rows are the tokens {named}.")
    return lines


def _baseline_lines(baselines: Mapping[str, Any]) -> list[str]:
    affine = baselines["affine"]
    pca = baselines.get("pca_per_prefix")
    stored = baselines["storage_floor"]
    best = (
        f"{affine:.4f} (fitted to these very rows {baselines['affine_in_sample']:.4f})"
        if affine is not None
        else f"none: {baselines['affine_reason']}"
    )
    if pca:
        axes = ", ".join(f"{rank} {fvu:.4f}" for rank, fvu in zip(baselines["pca_rank_per_prefix"], pca, strict=True))
        best = f"the identity, which says nothing; as many principal axes as features a row: {axes}"
    return [
        f"Without features, FVU: best affine map {best}; bias alone {baselines['bias_only']:.4f}; mean 1.",
        f"Floor, FVU: storing the target in bfloat16 costs {baselines['bf16_floor']:.1e}"
        + (f"; this cache's format cost {stored:.1e}." if stored is not None else "."),
    ]


def _feature_lines(metrics: Metrics) -> list[str]:
    sparsity = metrics["sparsity"]
    redundancy = metrics["redundancy"]
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
    by_prefix = ", ".join(f"{prefix['prefix']:,}: {number(prefix['score'], 3)}" for prefix in absorption["per_prefix"])
    caution = f" Exploratory: {absorption['exploratory']}." if absorption["exploratory"] else ""
    single = absorption["per_prefix"][-1]["k_sparse_f1"]["1"]
    return [
        f"First-letter absorption {absorption['score']:.3f} (by prefix {by_prefix}),"
        f" full {absorption['full_absorption_rate']:.3f}.{caution}",
        f"It is scored in the {absorption['space']}: {absorption['space_reason']}. It rests on"
        f" {absorption['words_right']:,} words of {absorption['letters_counted']} letters;"
        f" F1 of the probes {absorption['probe_f1']:.2f}, of a letter's best single feature {single:.2f}.",
    ]


def _language_model_lines(spliced: Mapping[str, Any] | None, *, documents: int) -> list[str]:
    if spliced is None:
        return []
    zero = spliced["zero"]["cross_entropy"]
    mean = spliced["mean"]["cross_entropy"]
    ablated = f"cross-entropy clean {spliced['clean']:.4f}, target zeroed {zero:.4f}, target at its mean {mean:.4f}"
    heading = f"{'features':>9}  {'CE':>7}  {'delta':>7}  {'95 % interval':<19}  {'KL':>7}  {'top-1':>6}"
    return [
        "",
        f"Spliced into the language model, {spliced['tokens']:,} tokens: {ablated}",
        f"{heading}  recovered of zero, mean ablation",
        *(_spliced_line(prefix, documents=documents) for prefix in spliced["per_prefix"]),
    ]


def _spliced_line(prefix: Mapping[str, Any], *, documents: int) -> str:
    bounds = interval_text(prefix["delta_interval"], documents=documents, form="[{:+.4f}, {:+.4f}]")
    return (
        f"{prefix['prefix']:>9,}  {prefix['cross_entropy']:7.4f}  {prefix['delta']:+7.4f}  {bounds:<19}"
        f"  {prefix['kl']:7.4f}  {share(prefix['top1']):>6}"
        f"  {share(prefix['recovered_zero'])}, {share(prefix['recovered_mean'])}"
    )
