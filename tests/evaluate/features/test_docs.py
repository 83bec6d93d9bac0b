"""docs/features.md names every array that is written, and none that is not."""

import re
from pathlib import Path

PAGE = Path(__file__).resolve().parents[3] / "docs" / "features.md"


def test_every_array_is_described(toy) -> None:
    table = PAGE.read_text().partition("## The arrays")[2]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    named = {name for cell in cells for name in re.findall(r"`([a-z_0-9]+)`", cell)}
    written = {name for name in toy.evidence.arrays if not re.fullmatch(r"context_interval_[1-9]\d*", name)}
    logits = {f"{direction}_{kind}" for direction in ("raised", "lowered") for kind in ("token", "logit")}
    formed = {f"formed_{kind}" for kind in ("step", "firings", "largest", "token")}
    # The toy cache stores neither the MLP nor the unembedding, no training wrote samples, and it writes to one layer.
    elsewhere = {"logit_histogram", "neuron_index", "neuron_cosine", "written_share"}
    assert named == written | logits | formed | elsewhere
