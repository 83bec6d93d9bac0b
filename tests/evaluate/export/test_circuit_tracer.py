"""Packed feature pages: read back by their offsets, and the same as the golden page, field for field."""

import gzip
import json
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluate.export.circuit_tracer import INDEX_FILE, circuit_tracer_files, circuit_tracer_page

GOLDEN = Path(__file__).with_name("golden") / "circuit_tracer.json"
FIELDS = {
    "transcoder_id": str, "index": int, "examples_quantiles": list, "top_logits": list, "bottom_logits": list,
    "act_min": float, "act_max": float, "quantile_values": list, "histogram": list, "activation_frequency": float,
}  # fmt: skip
"""What circuit-tracer's own model of a page asks for."""


def _read_page(data: bytes, offsets: Sequence[int], feature: int) -> dict[str, Any] | None:
    """The page of a feature in a pack's bytes, as the viewer finds it; None if it has none."""
    piece = data[offsets[feature] : offsets[feature + 1]]
    if not piece:
        return None
    (length,) = struct.unpack("<I", piece[:4])
    return json.loads(gzip.decompress(piece[4 : 4 + length]))


def _written(evidence) -> tuple[dict, bytes]:
    files = {name: b"".join(pieces) for name, pieces in circuit_tracer_files([evidence])}
    assert list(files) == ["layer_8.bin", INDEX_FILE]
    return json.loads(gzip.decompress(files[INDEX_FILE])), files["layer_8.bin"]


def test_a_page_is_the_golden_one(small) -> None:
    assert circuit_tracer_page(small, 0) == json.loads(GOLDEN.read_text())


def test_every_page_is_found_by_its_offsets(small) -> None:
    index, data = _written(small)
    entry = index["8"]
    assert entry["filename"] == "layer_8.bin"
    assert len(entry["offsets"]) == small.dict_size + 1
    assert entry["offsets"][-1] == len(data)
    for feature in (0, 1):
        assert _read_page(data, entry["offsets"], feature) == circuit_tracer_page(small, feature)
    # A feature that never fires has no page: its neighbours' offsets are equal.
    assert entry["offsets"][2] == entry["offsets"][3]
    assert _read_page(data, entry["offsets"], 2) is None


def test_a_page_of_real_evidence_has_every_field_and_its_values(toy) -> None:
    page = circuit_tracer_page(toy.evidence, 40)
    assert {name: type(page[name]) for name in page} == FIELDS
    assert len(page["quantile_values"]) == 99
    first = page["examples_quantiles"][0]
    assert first["quantile_name"] == "Top activations"
    assert max(first["examples"][0]["tokens_acts_list"]) == page["act_max"]
    for group in page["examples_quantiles"]:
        for example in group["examples"]:
            assert len(example["tokens"]) == len(example["tokens_acts_list"])
            assert example["tokens_acts_list"][example["train_token_ind"]] > 0
