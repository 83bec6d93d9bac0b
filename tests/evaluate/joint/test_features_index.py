"""The page over all layers: names are text with any characters, and links are relative."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from evaluate.features.evidence import write_evidence
from evaluate.joint.features_index import write_index


def test_names_are_text_and_links_are_relative(toy, tmp_path: Path) -> None:
    evidence = toy.evidence
    share = np.tile(np.array([[0.75, 0.25]], dtype=np.float32), (evidence.dict_size, 1))
    arrays = {**evidence.arrays, "written_share": share}
    pages = {3: tmp_path / "layer03" / "features" / "clt", 4: tmp_path / "layer04" / "features" / "clt"}
    for folder in pages.values():
        write_evidence(folder, replace(evidence, arrays=arrays))
    out = tmp_path / "layers03-04" / "features" / "clt"
    write_index(out, "<b>clt", dict.fromkeys(pages, evidence.head), pages)
    page = (out / "index.html").read_text()
    assert "<b>" not in page
    assert '<a href="../../../layer03/features/clt/index.html">layer 3</a>' in page
    assert "75.0% to its own layer" in page
    assert "http" not in page
