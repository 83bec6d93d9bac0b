"""summary.txt states the numbers of metrics.json and what they are based on; ``?`` or a reason for what is unknown."""

from typing import Any

import pytest

from evaluate.report.summary import FORMS, interval_text, number, prefix_table, provenance_lines, share, summary

SPLICED = {
    "tokens": 5000, "clean": 3.1, "zero": {"cross_entropy": 4.5}, "mean": {"cross_entropy": 4.0},
    "per_prefix": [
        {"prefix": prefix, "cross_entropy": 3.1 + delta, "delta": delta,
         "delta_interval": [delta - 0.001, delta + 0.001],
         "kl": 0.01, "top1": 0.9, "recovered_zero": 0.8, "recovered_mean": None}
        for prefix, delta in ((8, 0.3), (24, 0.2), (64, 0.1))
    ],
}  # fmt: skip


def test_every_prefix_has_its_numbers(toy_metrics: dict[str, Any]) -> None:
    table = prefix_table(toy_metrics)
    assert len(table) == 4
    for line, prefix, fvu, cosine in zip(
        table[1:], toy_metrics["prefixes"], toy_metrics["fvu_per_prefix"], toy_metrics["cosine_per_prefix"], strict=True
    ):
        assert line.split()[:2] == [f"{prefix}", f"{fvu:.4f}"]
        assert f"{cosine:.3f}" in line
    assert all(line in summary(toy_metrics) for line in table)


def test_all_forms_of_the_fvu_are_shown(toy_metrics: dict[str, Any]) -> None:
    text = summary(toy_metrics)
    for name, head in FORMS.items():
        assert head in text
        assert f"{toy_metrics['fvu_forms'][name]['per_prefix'][-1]:.4f}" in text


def test_what_is_not_measured_has_its_reason(toy_metrics: dict[str, Any]) -> None:
    text = summary(toy_metrics)
    assert "First-letter absorption: not measured: " in text
    assert "evaluate with --lm where you can" in text
    toy_metrics["baselines"] |= {"affine": None, "affine_reason": "there are 12 rows"}
    toy_metrics["redundancy"]["mean_max_cosine"] = None
    text = summary(toy_metrics)
    assert "best affine map none: there are 12 rows" in text
    assert "none, of a single feature" in text


def test_the_language_models_loss_decides_if_it_was_measured(toy_metrics: dict[str, Any]) -> None:
    toy_metrics["language_model"] = SPLICED
    text = summary(toy_metrics)
    assert "Spliced into the language model, 5,000 tokens: cross-entropy clean 3.1000" in text
    assert "[+0.0990, +0.1010]" in text
    assert "80.0%, ?" in text
    assert "delta CE, the rise of the model's own loss, decides; beside it the pooled FVU" in text
    toy_metrics["concentration"]["warning"] = "A few rows rule."
    text = summary(toy_metrics)
    assert "Warning: A few rows rule." in text
    assert "beside it the whitened FVU" in text


def test_few_documents_bring_a_caution(toy_metrics: dict[str, Any]) -> None:
    assert "~ With" not in summary(toy_metrics)
    toy_metrics["documents"] = 29
    assert "~ With 29 held-out documents the intervals are rough" in summary(toy_metrics)


def test_the_summary_of_an_autoencoder_has_its_own_sentences(toy_metrics: dict[str, Any]) -> None:
    toy_metrics["transcoder"]["kind"] = "sae"
    toy_metrics["baselines"] |= {"pca_per_prefix": [0.9, 0.5, 0.2], "pca_rank_per_prefix": [2, 5, 20]}
    text = summary(toy_metrics)
    assert "An autoencoder earns its features where it\nbeats as many principal axes." in text
    assert "2 0.9000, 5 0.5000, 20 0.2000" in text


def test_unproved_rows_are_named() -> None:
    assert provenance_lines({"provenance": None}) == []
    assert provenance_lines({"provenance": "unproved"})[0].startswith("Provenance unproved: ")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (interval_text(None, documents=99), "none"),
        (interval_text([0.1, 0.25], documents=30), "0.1000 - 0.2500"),
        (interval_text([0.1, 0.25], documents=29), "0.1000 - 0.2500~"),
        (share(None), "?"),
        (share(0.0312), "3.1%"),
        (number(None), "?"),
        (number(0.25, 3), "0.250"),
    ],
)
def test_numbers_in_words(text: str, expected: str) -> None:
    assert text == expected
