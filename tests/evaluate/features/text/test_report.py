"""The report in Markdown: what was counted, and texts that Markdown shows unchanged."""

from dataclasses import replace

from evaluate.features.text.report import as_markdown


def test_the_report_states_the_run_and_shows_features_of_every_prefix(toy) -> None:
    text = as_markdown(toy.evidence)
    assert text.startswith("# Features of toy, layer 3, transcoder transcoder")
    for end, fvu in zip(toy.trained.prefixes, toy.evidence.head["fvu_per_prefix"], strict=True):
        assert f"| {end:,} | {fvu:.4f} |" in text
        assert f"\nprefix {end:,}; fires on" in text
    assert text == as_markdown(toy.evidence)


def test_unproved_rows_are_named(toy) -> None:
    assert "Provenance" not in as_markdown(toy.evidence)
    cache = toy.evidence.head["cache"] | {"provenance": "unproved"}
    assert "**Provenance unproved: " in as_markdown(replace(toy.evidence, head={**toy.evidence.head, "cache": cache}))


def test_a_token_cannot_become_markup(toy) -> None:
    hostile = replace(toy.evidence, words=dict.fromkeys(toy.evidence.words, " *<img src=x>_[a](b)"))
    lines = [line for line in as_markdown(hostile).splitlines() if line.startswith("- ")]
    assert lines
    for line in lines:
        assert "\\<img" in line
        assert "](b)" not in line.replace("\\]", "")
