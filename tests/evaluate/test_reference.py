"""Which dictionary ours is compared with, and that it reads the rows as it was trained to or is refused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cache.reader import CacheReader
from common.errors import MismatchError, UsageError
from common.progress import Silent
from evaluate.reference import (
    IMPORTED,
    CompareRequest,
    check_belongs,
    open_reference,
    reading_the_cache,
    reference_fields,
)
from transcoder.formats.native import load_transcoder, save_transcoder
from transcoder.transcoder import Transcoder

HERE = Path("transcoder")


@pytest.fixture
def reader(toy_cache: Path) -> CacheReader:
    return CacheReader.open(toy_cache)


@pytest.fixture
def ours(toy_transcoder: Path) -> Transcoder:
    return load_transcoder(toy_transcoder)


def opened(reader: CacheReader, ours: Transcoder, **request: Any) -> Any:
    return open_reference(reader, evaluated=ours, l0=20.0, request=CompareRequest(**request), progress=Silent())


def test_a_run_of_ours_is_taken_as_it_was_trained(reader: CacheReader, ours: Transcoder, toy_transcoder: Path) -> None:
    for path in (toy_transcoder, toy_transcoder / "transcoder.safetensors"):
        found = opened(reader, ours, against=path)
        assert found.is_own_run
        assert torch.equal(found.dictionary.W_enc, ours.W_enc)
        assert "one of our own runs" in found.convention(20.0, force=False)
    fields = reference_fields(found)
    assert fields["dict_size"] == ours.dict_size
    assert fields["tokens_trained"] == 12345
    assert fields["top_k"] == 20


def test_two_references_or_a_missing_one_are_usage_errors(reader: CacheReader, ours: Transcoder) -> None:
    with pytest.raises(UsageError, match="Both --gemma-scope and --against"):
        opened(reader, ours, gemma_scope="x", against=HERE)
    with pytest.raises(UsageError, match="nothing"):
        opened(reader, ours, against=Path("nothing/there"))


def test_nothing_is_downloaded_for_widths_that_google_does_not_have(reader: CacheReader, ours: Transcoder) -> None:
    with pytest.raises(MismatchError, match="2304 to 2304 dimensions"):
        opened(reader, ours, gemma_scope="download")


def test_the_gain_is_folded_into_an_encoder_of_normalised_rows(reader: CacheReader, ours: Transcoder) -> None:
    """``x`` stored is ``n * gain + bias``: on ``x`` the folded encoder gives what the plain one gives on ``n``."""
    normalised = ours.replaced(source_view="ln2_normalized")
    folded = reading_the_cache(normalised, reader)
    rows = reader.split("held_out").rows(slice(1, 16)).source.float()
    gain, bias = (torch.from_numpy(np.array(reader.arrays[name])) for name in ("gain", "bias"))
    expected = normalised.encode((rows - bias) / gain)
    torch.testing.assert_close(folded.encode(rows), expected, atol=1e-4, rtol=1e-4)


def test_rows_of_its_own_site_need_no_folding(reader: CacheReader, ours: Transcoder) -> None:
    reader.identity["source_site"] = "ln2_normalized"
    read = reading_the_cache(ours.replaced(source_view="ln2_normalized"), reader)
    assert read.source_view == "mlp_in"
    assert torch.equal(read.W_enc, ours.W_enc)


@pytest.mark.parametrize(
    ("identity", "problem"),
    [
        ({"target_site": "resid_post"}, "The cache's target is resid_post; the dictionary reconstructs mlp_out."),
        ({"source_site": "resid_mid"}, "The cache's source is resid_mid; the dictionary reads ln2_normalized."),
    ],
)
def test_other_sites_are_refused(reader: CacheReader, ours: Transcoder, identity: dict[str, str], problem: str) -> None:
    reader.identity.update(identity)
    with pytest.raises(MismatchError, match=problem):
        reading_the_cache(ours.replaced(source_view="ln2_normalized"), reader)


def test_a_cache_without_gain_cannot_feed_normalised_rows(reader: CacheReader, ours: Transcoder) -> None:
    reader.arrays.clear()
    with pytest.raises(MismatchError, match="has no gain"):
        reading_the_cache(ours.replaced(source_view="ln2_normalized"), reader)


def test_a_transcoder_belongs_to_the_cache_that_it_was_trained_on(
    reader: CacheReader, ours: Transcoder, tmp_path: Path
) -> None:
    check_belongs(ours, reader, path=HERE, force=False)
    save_transcoder(ours, tmp_path, config={"cache_fingerprint": "0" * 32})
    transcoder = load_transcoder(tmp_path)
    with pytest.raises(MismatchError, match="trained on the cache 000"):
        check_belongs(transcoder, reader, path=HERE, force=False)
    check_belongs(transcoder, reader, path=HERE, force=True)


def test_an_imported_transcoder_needs_the_sites_that_its_files_named(reader: CacheReader, ours: Transcoder) -> None:
    imported = ours.replaced(config=ours.config | {IMPORTED: {}, "source_site": "mlp_in", "target_site": "resid_post"})
    with pytest.raises(MismatchError, match="reconstructs resid_post"):
        check_belongs(imported, reader, path=HERE, force=True)
