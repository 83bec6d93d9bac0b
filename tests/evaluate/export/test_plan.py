"""Plans of exports against what the exports then write."""

from pathlib import Path

import pytest

from common.progress import Silent
from evaluate.export.circuit_tracer import circuit_tracer_files
from evaluate.export.neuronpedia import neuronpedia_files
from evaluate.export.plain import jsonl_files, parquet_files
from evaluate.export.plan import plan_delphi, plan_pages
from evaluate.export.replayed import delphi_of_layer
from evaluate.features.config import FeatureSettings


@pytest.mark.parametrize("to", ["circuit-tracer", "neuronpedia", "jsonl", "parquet"])
def test_bytes_are_about_those_of_the_export(toy, tmp_path: Path, to: str) -> None:
    decoder = toy.trained.W_dec.detach().numpy()
    files = {
        "circuit-tracer": lambda: circuit_tracer_files([toy.evidence]),
        "neuronpedia": lambda: neuronpedia_files([(toy.evidence, decoder)], created_at="now"),
        "jsonl": lambda: jsonl_files([toy.evidence]),
        "parquet": lambda: parquet_files([toy.evidence]),
    }[to]()
    written = sum(len(piece) for _, pieces in files for piece in pieces)
    plan = plan_pages(toy.evidence, decoder, to, tmp_path / "out")
    assert plan.bytes_about == pytest.approx(written, rel=0.25)
    assert plan.features == (toy.evidence.arrays["firings"] > 0).sum()
    assert not any(tmp_path.iterdir())


def test_delphi_is_planned_from_the_rows(toy, toy_cache: Path, toy_transcoder: Path, tmp_path: Path) -> None:
    request = {"cache": toy_cache, "transcoder": toy_transcoder, "settings": FeatureSettings(), "device": "cpu"}
    plan = plan_delphi(**request, layer=3, out=tmp_path / "out")
    written = sum(len(piece) for _, pieces in delphi_of_layer(**request, progress=Silent()) for piece in pieces)
    assert written / 3 < plan.bytes_about < written * 3
    assert (plan.rows, plan.features) == (1600, 64)
    assert not any(tmp_path.iterdir())
