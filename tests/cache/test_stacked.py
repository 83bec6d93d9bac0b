"""Caches of several layers as one, against the caches themselves; and what is refused."""

import numpy as np
import pytest
import torch

from cache.loader import Loader
from cache.open import open_cache
from cache.stacked import stacked
from common.errors import MismatchError


def write(toy, path):
    with toy.writer(path) as writer:
        toy.feed(writer)
    return path


@pytest.fixture
def readers(make_toy, tmp_path):
    """Two layers of one text: the same tokens, other numbers and widths."""
    layers = [make_toy(), make_toy(d_source=5, d_target=7)]
    layers[1].text = (*make_toy(d_source=5, d_target=7).text[:2], *layers[0].text[2:])
    return [open_cache(write(toy, tmp_path / str(number))) for number, toy in enumerate(layers)]


def test_rows_of_the_layers_are_side_by_side(readers):
    combined = stacked(readers)
    for name in ("train", "held_out"):
        rows = combined.split(name).rows(slice(None))
        by_layer = [reader.split(name).rows(slice(None)) for reader in readers]
        assert torch.equal(rows.source, torch.cat([layer_rows.source for layer_rows in by_layer], dim=1))
        assert torch.equal(rows.target, torch.cat([layer_rows.target for layer_rows in by_layer], dim=1))
        assert np.array_equal(rows.tokens, by_layer[1].tokens)
    assert (combined.d_source, combined.d_target) == (8 + 5, 6 + 7)
    assert combined.identity["layers"] == [3, 3]
    assert combined.fingerprint not in {reader.fingerprint for reader in readers}
    assert stacked(readers).fingerprint == combined.fingerprint != stacked(readers[::-1]).fingerprint


def test_a_loader_serves_the_same_rows_as_from_one_cache(readers):
    with Loader(stacked(readers), batch_rows=8, seed=3, epochs=1) as batches:
        both = list(batches)
    with Loader(readers[0], batch_rows=8, seed=3, epochs=1) as batches:
        for batch, alone in zip(both, batches, strict=True):
            assert torch.equal(batch.source[:, :8], alone.source)
            assert torch.equal(batch.target[:, :6], alone.target)


def test_other_tokens_are_refused(make_toy, tmp_path, readers):
    other_toy = make_toy()
    source, target, tokens, *rest = other_toy.text
    other_toy.text = (source, target, np.where(tokens == 7, 8, tokens).astype(np.int32), *rest)
    with pytest.raises(MismatchError, match="differ in tokens"):
        stacked([readers[0], open_cache(write(other_toy, tmp_path / "other"))])


@pytest.mark.parametrize(
    ("change", "named"), [({"train_rows": 40}, "rows of train"), ({"segment_rows": 32}, "segment")]
)
def test_another_number_or_order_of_rows_is_refused(make_toy, tmp_path, readers, change, named):
    with pytest.raises(MismatchError, match=named):
        stacked([readers[0], open_cache(write(make_toy(**change), tmp_path / "other"))])
