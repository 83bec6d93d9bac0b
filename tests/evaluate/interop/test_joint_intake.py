"""Refusals of an import of several layers; ``test_joint_export.py`` exports and imports again."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import MismatchError
from common.progress import Silent
from evaluate.interop.joint_intake import JointImport, import_cross_layer
from evaluate.joint.opened import JointSource
from transcoder.cross_layer import CrossLayerTranscoder, Reach
from transcoder.formats.about import About
from transcoder.formats.peers.circuit_tracer_clt import write_circuit_tracer_clt
from transcoder.rules.relu import ReLU
from transcoder.transcoder import Transcoder, random_arrays


@pytest.mark.parametrize(("width", "reason"), [(7, "maps 7 dimensions to 7, the cache has"), (0, "of layers 0, 1")])
def test_other_widths_and_layers_are_refused(
    write_toy_cache: Callable[..., Path],
    tmp_path: Path,
    width: int,
    reason: str,
) -> None:
    caches = {layer: write_toy_cache(tmp_path / str(layer)) for layer in range(2 if width else 3)}
    wide = width or 12
    reach = Reach(2, 1, wide)
    pieces = [Transcoder(**random_arrays(wide, reach.wide(n), dict_size=8), rule=ReLU()) for n in range(2)]
    made = CrossLayerTranscoder(pieces, layers=(0, 1), window=1)
    about = About(model="toy", layer=0, source_site="mlp_in", target_site="mlp_out", layers_of_model=2)
    write_circuit_tracer_clt(tmp_path / "theirs", made, about)
    request = JointImport(tmp_path / "theirs", JointSource(caches, tmp_path / "out"))
    with pytest.raises(MismatchError, match=reason):
        import_cross_layer(request, device="cpu", progress=Silent())
    assert not (tmp_path / "out" / "config.json").exists()
