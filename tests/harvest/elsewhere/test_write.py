"""Tensors become a cache: the rows given, whole documents held out, a killed call ending with the same bytes."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from cache.config import CacheSettings
from cache.reader import CacheReader
from cache.tools.info import cache_info
from common import disk
from common.errors import CapacityError, MismatchError, NumericalError, UsageError
from harvest.elsewhere.write import held_out_documents, write_cache

SETTINGS = CacheSettings(dtype="float32", chunk_rows=8, shard_rows=16, segment_rows=32, held_out_fraction=0.3)
FACTS = {"model": "theirs", "layer": 3, "source_site": "mlp_in", "target_site": "mlp_out"}


def batches(count: int = 20) -> list[dict[str, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "source": torch.randn(10, 4, generator=generator),
            "target": torch.randn(10, 6, generator=generator),
            "tokens": torch.randint(0, 50, (10,), generator=generator),
            "document": torch.full((10,), number // 2),
            "position": torch.arange(10),
        }
        for number in range(count)
    ]


def sizes(given: list[dict[str, torch.Tensor]]) -> tuple[int, int]:
    document = torch.cat([batch["document"] for batch in given]).numpy()
    apart = held_out_documents(document, fraction=0.3, seed=0)
    return int((~apart).sum()), int(apart.sum())


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write(path: Path, given: object, **changes: object) -> dict[str, object]:
    train, held_out = sizes(batches())
    options = {"train_rows": train, "held_out_rows": held_out, "settings": SETTINGS, **FACTS, **changes}
    return write_cache(path, given, **options)


def test_the_rows_come_back_and_the_cache_says_that_they_are_not_proved(tmp_path: Path) -> None:
    given = batches()
    done = write(tmp_path / "cache", given, special_ids=[7])
    reader = CacheReader.open(tmp_path / "cache")
    assert reader.identity["provenance"] == done["provenance"] == "unproved"
    assert reader.special_ids == (7,)
    columns = {name: torch.cat([batch[name] for batch in given]) for name in given[0]}
    apart = torch.from_numpy(held_out_documents(columns["document"].numpy(), fraction=0.3, seed=0))
    held_out = reader.split("held_out").rows(slice(None))
    assert torch.equal(held_out.source, columns["source"][apart])
    assert torch.equal(held_out.target, columns["target"][apart])
    assert np.array_equal(held_out.document, columns["document"][apart].numpy())
    train = reader.split("train").rows(slice(None))
    order = np.lexsort((train.position, train.source[:, 0].numpy()))
    expected = columns["source"][~apart]
    assert torch.equal(train.source[order], expected[expected[:, 0].argsort()])
    assert not set(train.document.tolist()) & set(held_out.document.tolist())


def test_a_rerun_after_a_kill_ends_with_the_same_bytes(tmp_path: Path) -> None:
    write(tmp_path / "whole", batches())

    def killed() -> Iterator[dict[str, torch.Tensor]]:
        yield from batches()[:13]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "killed", killed())
    write(tmp_path / "killed", batches())
    assert files(tmp_path / "killed") == files(tmp_path / "whole")


def test_pairs_and_sources_alone_are_batches_too(tmp_path: Path) -> None:
    pairs = ((batch["source"], batch["target"]) for batch in batches())
    write_cache(tmp_path / "pairs", pairs, train_rows=120, held_out_rows=20, settings=SETTINGS, **FACTS)
    reader = CacheReader.open(tmp_path / "pairs")
    assert set(reader.split("train").tokens.tolist()) == {-1}
    assert len(np.unique(reader.split("held_out").document)) == 2, "each batch is a document"
    alone = FACTS | {"source_site": "resid_post", "target_site": "none"}
    sources = (batch["source"].numpy() for batch in batches())
    write_cache(tmp_path / "alone", sources, train_rows=120, held_out_rows=20, settings=SETTINGS, **alone)
    assert cache_info(str(tmp_path / "alone")).complete
    sources_only = CacheReader.open(tmp_path / "alone")
    assert sources_only.split("train").rows(slice(0, 5)).target.shape == (5, 1)


def test_a_dry_run_says_what_would_be_written_and_refuses_what_a_run_would_refuse(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    planned = write(tmp_path / "cache", batches(), dry_run=True)
    assert list(tmp_path.iterdir()) == []
    done = write(tmp_path / "cache", batches())
    assert {key: planned[key] for key in done} == done
    rows = (path for path in (tmp_path / "cache/rows.zarr").rglob("c.*") if "parameters" not in path.parts)
    assert planned["bytes"] == sum(path.stat().st_size for path in rows)
    assert (planned["d_source"], planned["d_target"]) == (4, 6)

    train, _ = sizes(batches())
    with pytest.raises(UsageError, match=f"There are only {train} training rows"):
        write(tmp_path / "short", batches(), train_rows=train + 1, dry_run=True)
    with pytest.raises(MismatchError, match="layer"):
        write(tmp_path / "cache", batches(), layer=4, dry_run=True)
    with monkeypatch.context() as patch:
        patch.setattr(disk, "free_bytes", lambda _: 1000)
        with pytest.raises(CapacityError, match="1 kB are free"):
            write(tmp_path / "large", batches(), dry_run=True)
    wider = [*batches()[:3], {"source": torch.zeros(2, 5), "target": torch.zeros(2, 6)}]
    with pytest.raises(UsageError, match="Batch 3: the source has width 5, in earlier batches 4"):
        write(tmp_path / "wider", wider, dry_run=True)
    for write_it in (True, False):
        bad = [*batches()[:3], {"source": torch.zeros(2, 4), "target": torch.full((2, 6), torch.inf)}]
        with pytest.raises(NumericalError, match="target contains NaN or infinity as float32"):
            write(tmp_path / f"bad-{write_it}", bad, dry_run=not write_it)


def test_what_cannot_be_written_is_named(tmp_path: Path) -> None:
    train, held_out = sizes(batches())
    with pytest.raises(UsageError, match=f"only {train} training rows and {held_out} held-out rows") as raised:
        write(tmp_path / "short", batches(), train_rows=train + 1)
    assert f"train_rows={train}, held_out_rows={held_out}" in raised.value.remedy
    with pytest.raises(UsageError, match="no batches"):
        write(tmp_path / "none", [])
    with pytest.raises(UsageError, match="it needs source"):
        write(tmp_path / "other", [{"target": torch.zeros(2, 2)}])
    with pytest.raises(UsageError, match="all others"):
        write(tmp_path / "ragged", [{"source": torch.zeros(2, 2), "tokens": torch.zeros(3)}])
    write(tmp_path / "whole", batches())
    with pytest.raises(MismatchError, match="layer"):
        write(tmp_path / "whole", batches(), layer=4)
