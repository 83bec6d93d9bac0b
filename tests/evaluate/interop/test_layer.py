"""One layer of an export: at which sites its transcoder works, and which rows it is checked on."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.errors import UsageError
from common.progress import Silent
from evaluate.interop.layer import ExportLayer, ExportRequest, LayerSource
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.rules.topk import TopK
from transcoder.transcoder import Transcoder, random_arrays


def opened(cache: Path, transcoder: Path) -> ExportLayer:
    source = LayerSource(3, cache, transcoder)
    return ExportLayer(source, ExportRequest(to=("saelens",), out=Path("out")), "cpu", Silent(), None)


def test_sites_come_from_the_transcoder_or_else_from_its_cache(
    tmp_path: Path, toy_cache: Path, toy_transcoder: Path
) -> None:
    layer = opened(toy_cache, toy_transcoder)
    assert (layer.about.source_site, layer.about.target_site) == ("mlp_in", "mlp_out")
    assert layer.norm is not None
    seen = load_transcoder(toy_transcoder).replaced(source_view="ln2_normalized")
    save_transcoder(seen, tmp_path / "seen", config={})
    assert opened(toy_cache, tmp_path / "seen").about.source_site == "ln2_normalized"
    own = Transcoder(**random_arrays(12, 12, dict_size=64), rule=TopK(4))
    save_transcoder(own, tmp_path / "own", config={"kind": "sae", "side": "source"})
    assert opened(toy_cache, tmp_path / "own").about.is_autoencoder


def test_rows_of_special_tokens_are_not_checked(toy_cache: Path, toy_transcoder: Path) -> None:
    layer = opened(toy_cache, toy_transcoder)
    rows = layer.checked_rows(layer.trained)
    assert len(rows) == 256
    assert rows.abs().max() < 300


def test_what_cannot_be_written_is_refused_before_any_row_is_read(
    write_toy_cache: Callable[..., Path], toy_cache: Path, toy_transcoder: Path
) -> None:
    with pytest.raises(UsageError, match="one width"):
        opened(toy_cache, toy_transcoder).check()  # 12 to 10
