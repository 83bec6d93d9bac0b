"""Neuronpedia's import folder: its files, and each line the same as the golden one."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluate.export.neuronpedia import activation_records, feature_record, model_id, neuronpedia_files

GOLDEN = Path(__file__).with_name("golden") / "neuronpedia.json"
DATE = "2026-11-27T00:00:00+00:00"


def _written(evidence, decoder=None) -> dict[str, list[dict]]:
    files = {name: b"".join(pieces) for name, pieces in neuronpedia_files([(evidence, decoder)], created_at=DATE)}
    texts = {name: gzip.decompress(data) if name.endswith(".gz") else data for name, data in files.items()}
    return {name: [json.loads(line) for line in text.splitlines()] for name, text in texts.items()}


def test_every_line_is_the_golden_one(small) -> None:
    assert _written(small, np.array([[0.5, -1.25], [0.0, 2.0], [1e-5, 3.0]])) == json.loads(GOLDEN.read_text())


def test_the_lines_of_real_evidence_agree_with_each_other(toy) -> None:
    records = activation_records(toy.evidence, 40, DATE)
    feature = feature_record(toy.evidence, None, 40, DATE)
    assert len({record["id"] for record in records}) == len(records)
    assert records[0]["maxValue"] == feature["maxActApprox"]
    assert records[0]["binContains"] == -1
    for record in records:
        assert record["values"][record["maxValueTokenIndex"]] == record["maxValue"]
        assert record["values"][record["qualifyingTokenIndex"]] > 0
        if record["binContains"] != -1:
            assert record["binMin"] <= record["values"][record["qualifyingTokenIndex"]] * 1.001
            assert record["values"][record["qualifyingTokenIndex"]] <= record["binMax"] * 1.001
    shares = {record["binMin"]: record["binContains"] for record in records if record["binContains"] != -1}
    assert sum(shares.values()) <= 1.001


def test_without_the_transcoder_and_without_logits_their_fields_are_empty(toy) -> None:
    record = feature_record(toy.evidence, None, 40, DATE)
    assert (record["hasVector"], record["vector"], record["hookName"]) == (False, [], None)
    assert record["logits_hist_data_bar_heights"] == []


def test_a_name_has_only_the_characters_that_neuronpedia_allows(toy) -> None:
    head = toy.evidence.head | {"cache": toy.evidence.head["cache"] | {"model": "owner/Llama-3.2 1B"}}
    assert model_id(replace(toy.evidence, head=head)) == "Llama-3-2-1B"


def test_a_token_that_postgres_cannot_store_is_written_as_its_byte(small) -> None:
    words = dict(small.words) | {2: "a\0b"}
    record = feature_record(replace(small, words=words), None, 0, DATE)
    assert record["pos_str"] == ["a\\x00b"]
    assert "a\\x00b" in activation_records(replace(small, words=words), 0, DATE)[0]["tokens"]
