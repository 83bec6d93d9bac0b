"""FVU and L0 of an export are those of the report."""

from pathlib import Path

import pytest

from cache.reader import CacheReader
from common.progress import Silent
from evaluate.held_out import open_held_out
from evaluate.interop.fidelity import fidelity
from evaluate.replay import Replay
from transcoder.formats.native import load_transcoder


def test_fvu_and_l0_are_the_definition_on_the_stated_number_of_rows(toy_cache: Path, toy_transcoder: Path) -> None:
    reader, trained = CacheReader.open(toy_cache), load_transcoder(toy_transcoder)
    replay = Replay(open_held_out(reader), 256, "cpu", Silent())
    found = fidelity(replay, trained, rows=10_000)
    held_out = replay.held_out
    rows = held_out.view.rows(slice(0, len(held_out.view)))
    source, target = rows.source[~held_out.special].float(), rows.target[~held_out.special].double()
    assert found.rows == len(target)
    for index, prefix in enumerate(trained.prefixes):
        errors = (target - trained(source, prefix=prefix).double()).square().sum()
        assert found.fvu[index] == pytest.approx(float(errors / (target - target.mean(0)).square().sum()), rel=1e-6)
        firing = (trained.encode(source)[:, :prefix] > 0).sum(dim=1).double().mean()
        assert found.of_prefix(index)["l0"] == pytest.approx(float(firing))


def test_fewer_rows_are_spread_over_all_rows(toy_cache: Path, toy_transcoder: Path) -> None:
    replay = Replay(open_held_out(CacheReader.open(toy_cache)), 64, "cpu", Silent())
    trained = load_transcoder(toy_transcoder)
    sampled = fidelity(replay, trained, rows=200)
    assert 200 <= sampled.rows + 4 * 4 <= 260  # four batches of 64, without their special rows
    assert sampled.fvu[-1] == pytest.approx(fidelity(replay, trained, rows=10_000).fvu[-1], rel=0.2)
