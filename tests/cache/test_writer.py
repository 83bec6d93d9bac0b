import json

import numpy as np
import pytest
import torch
import zarr

from cache.order import derive_key, permute
from cache.reader import CacheReader
from common import disk
from common.errors import CapacityError, InUseError, MismatchError, NumericalError, UsageError


def test_rows_come_back_bit_for_bit(stream, tmp_path):
    stream.write(tmp_path)
    reader = CacheReader.open(tmp_path)
    source, target, tokens, document, position = stream.expected(stream.Text(), 11, held_out=True)
    rows = reader.split("held_out").rows(slice(None))
    assert torch.equal(rows.source.float(), torch.from_numpy(source))
    assert torch.equal(rows.target.float(), torch.from_numpy(target))
    assert (rows.tokens == tokens).all()
    assert (rows.document == document).all()
    assert (rows.position == position).all()
    assert rows.source.dtype == torch.bfloat16
    assert len(reader.split("held_out")) == 11


def test_training_rows_are_where_the_permutation_says(stream, tmp_path):
    stream.write(tmp_path, shuffle_seed=7)
    split = CacheReader.open(tmp_path).split("train")
    source, _, tokens, *_ = stream.expected(stream.Text(), 50, held_out=False)
    slots = np.concatenate(
        [16 * k + permute(np.arange(n, dtype=np.int64), n, key=derive_key(7, k)) for k, n in enumerate((16, 16, 16, 2))]
    )
    rows = split.rows(slots)
    assert torch.equal(rows.source.float(), torch.from_numpy(source))
    assert (rows.tokens == tokens).all()
    assert not (split.tokens == tokens).all()


def test_every_bfloat16_pattern_but_the_non_finite_ones_survives(stream, tmp_path):
    bits = np.arange(65536, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80].reshape(-1, 32)
    values = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    rows = len(values)
    text = stream.Text(32, 32)
    with stream.open_writer(
        tmp_path, text=text, train_rows=0, held_out_rows=rows, shard_rows=1024, segment_rows=4096
    ) as writer:
        column = np.zeros(rows, np.int64)
        writer.append(values, values, column.astype(np.int32), column, column.astype(np.int32), held_out=True, cursor=0)
        assert writer.complete
    back = CacheReader.open(tmp_path).split("held_out").rows(slice(None)).target
    assert (back.view(torch.int16).numpy().view(np.uint16) == bits).all()


def test_zarr_opens_the_rows(stream, tmp_path):
    stream.write(tmp_path)
    group = zarr.open_group(tmp_path / "rows.zarr", mode="r")
    split = CacheReader.open(tmp_path).split("train")
    bits = group["train/source"][:]
    assert bits.shape == (50, 8)
    assert bits.dtype == np.uint16
    assert (bits == split.rows(slice(None)).source.view(torch.int16).numpy().view(np.uint16)).all()
    assert (group["train/tokens"][:] == split.tokens).all()
    assert group["parameters/gain"][:].shape == (8,)


@pytest.mark.parametrize("stop", range(0, 24))
def test_a_run_that_goes_on_ends_with_the_bytes_of_one_that_did_not_stop(stream, tmp_path, stop):
    stream.write(tmp_path / "whole", batch=2)
    with stream.open_writer(tmp_path / "broken") as writer:
        stream.feed(writer, batch=2, stop=stop)
    with stream.open_writer(tmp_path / "broken") as writer:
        stream.feed(writer, batch=2)
    assert stream.tree(tmp_path / "broken") == stream.tree(tmp_path / "whole")


def test_the_size_of_a_batch_changes_no_row(stream, tmp_path):
    stream.write(tmp_path / "one")
    stream.write(tmp_path / "many", batch=7)
    single, several = stream.tree(tmp_path / "one"), stream.tree(tmp_path / "many")
    assert all(single[path] == several[path] for path in single if not path.startswith(("journal", "seals")))


def test_the_number_of_threads_changes_no_byte(stream, tmp_path, monkeypatch):
    stream.write(tmp_path / "one")
    monkeypatch.setattr("cache.writer._WRITING_THREADS", 3)
    monkeypatch.setattr("cache.format.statistics._THREADS", 3)
    monkeypatch.setattr("cache.format.statistics._BLOCK_VALUES", 32)
    monkeypatch.setattr("cache.format.statistics._PIECE_BLOCKS", 2)
    stream.write(tmp_path / "three")
    monkeypatch.setattr("cache.format.statistics._THREADS", 1)
    stream.write(tmp_path / "blocks")
    assert stream.tree(tmp_path / "three") == stream.tree(tmp_path / "blocks")
    monkeypatch.undo()
    monkeypatch.setattr("cache.writer._WRITING_THREADS", 3)
    stream.write(tmp_path / "written by three")
    assert stream.tree(tmp_path / "written by three") == stream.tree(tmp_path / "one")


def test_partitions_fill_one_store(stream, tmp_path):
    writers = [
        stream.open_writer(tmp_path, partition=partition, partitions=2, train_rows=64, held_out_rows=16)
        for partition in range(2)
    ]
    for partition, writer in enumerate(writers):
        stream.feed(writer, stride=2, offset=partition)
        writer.close()
    reader = CacheReader.open(tmp_path)
    assert len(reader.split("train")) == 64
    seen = np.sort(reader.split("train").document)
    assert len(seen) == 64
    assert (seen >= 0).all()


def test_a_second_writer_is_refused_by_name(stream, tmp_path):
    with stream.open_writer(tmp_path), pytest.raises(InUseError, match=r"process [0-9]+ on "):
        stream.open_writer(tmp_path)
    stream.open_writer(tmp_path).close()


def test_another_cache_in_the_folder_is_refused_naming_the_field(stream, tmp_path):
    stream.open_writer(tmp_path).close()
    with pytest.raises(MismatchError, match=r"identity\.layer is 3, not 4"):
        stream.open_writer(tmp_path, identity={"model": "toy", "layer": 4})
    stream.open_writer(tmp_path, identity={"model": "toy", "layer": 3, "proof": {"error": 1e-3}}).close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_naming_document_and_position(stream, tmp_path, value):
    source, target, tokens, document, position = stream.Text().rows(6)
    target[2, 1] = value
    with (
        stream.open_writer(tmp_path) as writer,
        pytest.raises(NumericalError, match=r"target.*\n.*document 3, position 2"),
    ):
        writer.append(source, target, tokens, document, position, held_out=False, cursor=0)


def test_float16_that_overflows_is_refused(stream, tmp_path):
    source, target, *rest = stream.Text(dtype=torch.float32).rows(0)
    target[0, 0] = 70000.0
    with stream.open_writer(tmp_path, dtype="float16") as writer, pytest.raises(NumericalError, match="bfloat16"):
        writer.append(source, target, *rest, held_out=False, cursor=0)


def test_columns_of_different_lengths_and_widths_are_refused(stream, tmp_path):
    source, target, tokens, document, position = stream.Text().rows(0)
    with stream.open_writer(tmp_path) as writer:
        with pytest.raises(UsageError, match="same number of rows"):
            writer.append(source, target, tokens[:2], document, position, held_out=False, cursor=0)
        with pytest.raises(UsageError, match="width 6"):
            writer.append(target, target, tokens, document, position, held_out=False, cursor=0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_float_types_come_back_as_they_are(stream, tmp_path, dtype):
    text = stream.Text(dtype=torch.float32)
    stream.write(tmp_path, dtype=dtype, text=text)
    rows = CacheReader.open(tmp_path).split("held_out").rows(slice(None))
    kept = getattr(torch, dtype)
    assert torch.equal(rows.source, torch.from_numpy(stream.expected(text, 11, held_out=True)[0]).to(kept))
    array = zarr.open_group(tmp_path / "rows.zarr", mode="r")["held_out/target"]
    assert (torch.from_numpy(array[:]) == rows.target).all()
    assert np.isnan(array.fill_value)


def test_an_unfinished_cache_is_no_cache_yet(stream, tmp_path):
    with stream.open_writer(tmp_path) as writer:
        stream.feed(writer, stop=8)
    with pytest.raises(UsageError, match="of 7 segments"):
        CacheReader.open(tmp_path)


def test_a_missing_shard_reads_as_nan_in_zarr(stream, tmp_path):
    stream.open_writer(tmp_path).close()
    assert (zarr.open_group(tmp_path / "rows.zarr", mode="r")["train/source"][:] == 0x7FC0).all()


def test_the_manifest_is_plain_json_that_says_what_the_cache_is(stream, tmp_path):
    stream.write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["identity"]["proof"] == {"error": 0.0}
    assert manifest["fingerprint"] == CacheReader.open(tmp_path).fingerprint


def test_what_will_not_fit_is_refused_before_anything_is_written(stream, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda _: 1000)
    with pytest.raises(CapacityError, match=r"needs .* kB more; 1 kB are free"):
        stream.open_writer(tmp_path / "cache")
    assert [path for path in (tmp_path / "cache").rglob("*") if path.is_file() and path.parent.name != "locks"] == []
    monkeypatch.undo()
    stream.write(tmp_path / "cache")
    monkeypatch.setattr(disk, "free_bytes", lambda _: 0)
    stream.open_writer(tmp_path / "cache").close()


@pytest.mark.parametrize("settings", [{}, {"dtype": "int8"}, {"dtype": "float32", "chunk_rows": 128}])
def test_the_size_that_is_announced_is_the_size_that_is_written(make_toy, tmp_path, settings):
    sizes = {"train_rows": 5000, "held_out_rows": 500, "d_source": 64, "d_target": 48}
    small = {"dtype": "bfloat16", "chunk_rows": 64, "shard_rows": 1024, "segment_rows": 2048}
    make_toy(**sizes, **small | settings).write(tmp_path)
    stated = CacheReader.open(tmp_path).manifest.geometry.size_bytes
    written = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    rows = sum(path.stat().st_size for path in tmp_path.rglob("c.*") if "parameters" not in path.parts)
    assert stated == rows
    assert written == pytest.approx(stated, abs=0.01 * stated + 60_000), "beside rows there are kilobytes"
