import json

import numpy as np
import pytest
import torch
import zarr

from cache.config import CacheSettings
from cache.errors import InUseError, MismatchError, NumericalError, UsageError
from cache.order import derive_key, permute
from cache.reader import CacheReader
from cache.writer import CacheWriter

SMALL = {"chunk_rows": 4, "shard_rows": 8, "segment_rows": 16, "held_out_fraction": 0.25}
SPECIAL = 0


class Text:
    """A deterministic stream of contexts of 5 rows, every fourth of them held out; the cursor counts contexts."""

    def __init__(self, d_source=8, d_target=6, dtype=torch.bfloat16, context=5):
        self.shape, self.dtype, self.context = (d_source, d_target), dtype, context

    def rows(self, number):
        generator = torch.Generator().manual_seed(number)
        source, target = (torch.randn(self.context, width, generator=generator).to(self.dtype) for width in self.shape)
        tokens = torch.randint(1, 50, (self.context,), generator=generator).numpy().astype(np.int32)
        tokens[0] = SPECIAL
        document = np.full(self.context, number // 2, np.int64)
        return source, target, tokens, document, np.arange(self.context, dtype=np.int32)

    @staticmethod
    def held_out(number):
        return number % 4 == 3


def open_writer(path, *, train_rows=50, held_out_rows=11, text=None, part=0, parts=1, identity=None, **settings):
    text = text or Text()
    return CacheWriter(
        path,
        identity=identity or {"model": "toy", "layer": 3, "proof": {"error": 0.0}},
        settings=CacheSettings(**SMALL | settings),
        d_source=text.shape[0],
        d_target=text.shape[1],
        train_rows=train_rows,
        held_out_rows=held_out_rows,
        special_ids=[SPECIAL],
        arrays={
            "gain": np.linspace(0.5, 2, text.shape[0], dtype=np.float32),
            "bias": np.ones(text.shape[0], np.float32),
        },
        part=part,
        parts=parts,
    )


def feed(writer, text=None, *, batch=1, stop=None, stride=1, offset=0):
    """Append batches of contexts from the writer's cursor until it is complete, or ``stop`` contexts were given."""
    text, number = text or Text(), writer.cursor or 0
    given = 0
    while not writer.complete and (stop is None or given < stop):
        cursor, contexts = number, range(number, number + batch)
        for held_out in (False, True):
            for context in contexts:
                if text.held_out(context) == held_out:
                    writer.append(*text.rows(context * stride + offset), held_out=held_out, cursor=cursor)
        number, given = number + batch, given + batch


def write(path, **options):
    text, batch = options.get("text"), options.pop("batch", 1)
    with open_writer(path, **options) as writer:
        feed(writer, text, batch=batch)
        assert writer.complete


def tree(path):
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def expected(text, rows, *, held_out):
    contexts = [number for number in range(1000) if text.held_out(number) == held_out]
    columns = [
        np.concatenate([np.asarray(text.rows(c)[i].float() if i < 2 else text.rows(c)[i]) for c in contexts[:60]])
        for i in range(5)
    ]
    return [column[:rows] for column in columns]


def test_rows_come_back_bit_for_bit(tmp_path):
    write(tmp_path)
    reader = CacheReader.open(tmp_path)
    source, target, tokens, document, position = expected(Text(), 11, held_out=True)
    rows = reader.split("held_out").rows(slice(None))
    assert torch.equal(rows.source.float(), torch.from_numpy(source))
    assert torch.equal(rows.target.float(), torch.from_numpy(target))
    assert (rows.tokens == tokens).all()
    assert (rows.document == document).all()
    assert (rows.position == position).all()
    assert rows.source.dtype == torch.bfloat16
    assert len(reader.split("held_out")) == 11


def test_training_rows_lie_where_the_permutation_says(tmp_path):
    write(tmp_path, shuffle_seed=7)
    split = CacheReader.open(tmp_path).split("train")
    source, _, tokens, *_ = expected(Text(), 50, held_out=False)
    slots = np.concatenate(
        [16 * k + permute(np.arange(n, dtype=np.int64), n, key=derive_key(7, k)) for k, n in enumerate((16, 16, 16, 2))]
    )
    rows = split.rows(slots)
    assert torch.equal(rows.source.float(), torch.from_numpy(source))
    assert (rows.tokens == tokens).all()
    assert not (split.tokens == tokens).all()


def test_every_bfloat16_pattern_but_the_non_finite_ones_survives(tmp_path):
    bits = np.arange(65536, dtype=np.uint16)
    bits = bits[(bits & 0x7F80) != 0x7F80].reshape(-1, 32)
    values = torch.from_numpy(bits.view(np.int16)).view(torch.bfloat16)
    rows = len(values)
    text = Text(32, 32)
    with open_writer(
        tmp_path, text=text, train_rows=0, held_out_rows=rows, shard_rows=1024, segment_rows=4096
    ) as writer:
        column = np.zeros(rows, np.int64)
        writer.append(values, values, column.astype(np.int32), column, column.astype(np.int32), held_out=True, cursor=0)
        assert writer.complete
    back = CacheReader.open(tmp_path).split("held_out").rows(slice(None)).target
    assert (back.view(torch.int16).numpy().view(np.uint16) == bits).all()


def test_zarr_opens_the_rows(tmp_path):
    write(tmp_path)
    group = zarr.open_group(tmp_path / "rows.zarr", mode="r")
    split = CacheReader.open(tmp_path).split("train")
    bits = group["train/source"][:]
    assert bits.shape == (50, 8)
    assert bits.dtype == np.uint16
    assert (bits == split.rows(slice(None)).source.view(torch.int16).numpy().view(np.uint16)).all()
    assert (group["train/tokens"][:] == split.tokens).all()
    assert group["parameters/gain"][:].shape == (8,)


@pytest.mark.parametrize("stop", range(0, 24))
def test_a_run_that_goes_on_ends_with_the_bytes_of_one_that_did_not_stop(tmp_path, stop):
    write(tmp_path / "whole", batch=2)
    with open_writer(tmp_path / "broken") as writer:
        feed(writer, batch=2, stop=stop)
    with open_writer(tmp_path / "broken") as writer:
        feed(writer, batch=2)
    assert tree(tmp_path / "broken") == tree(tmp_path / "whole")


def test_the_size_of_a_batch_changes_no_row(tmp_path):
    write(tmp_path / "one")
    write(tmp_path / "many", batch=7)
    one, many = tree(tmp_path / "one"), tree(tmp_path / "many")
    assert all(one[path] == many[path] for path in one if not path.startswith("journal"))


def test_parts_fill_one_store(tmp_path):
    writers = [open_writer(tmp_path, part=part, parts=2, train_rows=64, held_out_rows=16) for part in range(2)]
    for part, writer in enumerate(writers):
        feed(writer, stride=2, offset=part)
        writer.close()
    reader = CacheReader.open(tmp_path)
    assert len(reader.split("train")) == 64
    seen = np.sort(reader.split("train").document)
    assert len(seen) == 64
    assert (seen >= 0).all()


def test_a_second_writer_is_refused_by_name(tmp_path):
    with open_writer(tmp_path), pytest.raises(InUseError, match=r"process [0-9]+ on "):
        open_writer(tmp_path)
    open_writer(tmp_path).close()


def test_another_cache_in_the_folder_is_refused_naming_the_field(tmp_path):
    open_writer(tmp_path).close()
    with pytest.raises(MismatchError, match=r"identity\.layer is 3, not 4"):
        open_writer(tmp_path, identity={"model": "toy", "layer": 4})
    open_writer(tmp_path, identity={"model": "toy", "layer": 3, "proof": {"error": 1e-3}}).close()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_refused_naming_document_and_position(tmp_path, value):
    source, target, tokens, document, position = Text().rows(6)
    target[2, 1] = value
    with open_writer(tmp_path) as writer, pytest.raises(NumericalError, match=r"target.*\n.*document 3, position 2"):
        writer.append(source, target, tokens, document, position, held_out=False, cursor=0)


def test_float16_that_overflows_is_refused(tmp_path):
    source, target, *rest = Text(dtype=torch.float32).rows(0)
    target[0, 0] = 70000.0
    with open_writer(tmp_path, dtype="float16") as writer, pytest.raises(NumericalError, match="bfloat16"):
        writer.append(source, target, *rest, held_out=False, cursor=0)


def test_columns_of_different_lengths_and_widths_are_refused(tmp_path):
    source, target, tokens, document, position = Text().rows(0)
    with open_writer(tmp_path) as writer:
        with pytest.raises(UsageError, match="same number of rows"):
            writer.append(source, target, tokens[:2], document, position, held_out=False, cursor=0)
        with pytest.raises(UsageError, match="width 6"):
            writer.append(target, target, tokens, document, position, held_out=False, cursor=0)


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_float_types_come_back_as_they_are(tmp_path, dtype):
    text = Text(dtype=torch.float32)
    write(tmp_path, dtype=dtype, text=text)
    rows = CacheReader.open(tmp_path).split("held_out").rows(slice(None))
    kept = getattr(torch, dtype)
    assert torch.equal(rows.source, torch.from_numpy(expected(text, 11, held_out=True)[0]).to(kept))
    array = zarr.open_group(tmp_path / "rows.zarr", mode="r")["held_out/target"]
    assert (torch.from_numpy(array[:]) == rows.target).all()
    assert np.isnan(array.fill_value)


def test_an_unfinished_cache_is_no_cache_yet(tmp_path):
    with open_writer(tmp_path) as writer:
        feed(writer, stop=8)
    with pytest.raises(UsageError, match="of 7 segments"):
        CacheReader.open(tmp_path)


def test_a_missing_shard_reads_as_nan_in_zarr(tmp_path):
    open_writer(tmp_path).close()
    assert (zarr.open_group(tmp_path / "rows.zarr", mode="r")["train/source"][:] == 0x7FC0).all()


def test_the_manifest_is_plain_json_that_says_what_the_cache_is(tmp_path):
    write(tmp_path)
    manifest = json.loads((tmp_path / "manifest.json").read_text())
    assert manifest["identity"]["proof"] == {"error": 0.0}
    assert manifest["fingerprint"] == CacheReader.open(tmp_path).fingerprint
