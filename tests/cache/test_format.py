"""FORMAT.md against the code: its blocks run, its tree is the tree, and other libraries open what it describes."""

import asyncio
import json
import re
from pathlib import Path

import numpy as np
import pytest
import tensorstore
import torch
import zarr

from cache import order
from cache.format.dtypes import to_array
from cache.format.layout import GROUPS
from cache.format.manifest import VERSION
from cache.reader import CacheReader

PAGE = (Path(__file__).parents[2] / "cache" / "FORMAT.md").read_text()


@pytest.fixture(scope="module")
def blocks():
    """What the page's Python blocks define."""
    defined = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        exec(block, defined)
    return defined


@pytest.fixture(scope="module", params=["bfloat16", "float16", "float32"])
def stored(request, stream, tmp_path_factory):
    path = tmp_path_factory.mktemp(request.param)
    stream.write(path, dtype=request.param, text=stream.Text(dtype=torch.float32))
    return path


def test_the_page_is_of_this_version():
    assert PAGE.startswith(f"# The cache format, version {VERSION}\n")


def test_the_tree_of_the_page_is_that_of_a_cache(stored):
    named = re.findall(r"^(\S+)  ", re.search(r"```\n(manifest.*?)```", PAGE, re.DOTALL)[1], re.MULTILINE)
    patterns = [re.escape(name).replace("<shard>", r"\d+").replace("<segment>", r"\d+") for name in named]
    patterns = [pattern.replace("<name>", r"\w+") for pattern in patterns]
    patterns += [pattern.replace("/train/", "/held_out/") for pattern in patterns]
    files = [file.relative_to(stored).as_posix() for file in stored.rglob("*") if file.is_file()]
    for file in files:
        bound = file.endswith("/zarr.json") or "/parameters/" in file
        assert bound or any(re.fullmatch(pattern, file) for pattern in patterns), file
    gone_with_their_writers = ("locks", "drafts")
    for pattern in (pattern for pattern in patterns if not pattern.startswith(gone_with_their_writers)):
        assert any(re.match(pattern, file) for file in files), pattern


def test_the_twenty_line_reader_of_the_page_reads_what_the_code_reads(stored, blocks):
    reader = CacheReader.open(stored)
    for group in GROUPS:
        rows = reader.split(group).rows(slice(None))
        for name in ("source", "target"):
            assert (blocks["read_rows"](stored, group, name) == to_array(getattr(rows, name))).all()


@pytest.mark.parametrize("size", [1, 2, 7, 100, 1025])
def test_the_pages_permutation_is_the_codes(blocks, size):
    key = blocks["derive_key"](5, size)
    assert key == order.derive_key(5, size)
    page = [blocks["permute"](index, size, key) for index in range(size)]
    assert page == order.permute(np.arange(size), size, key=key).tolist()


def test_zarr_and_tensorstore_open_every_array(stored):
    reader, store = CacheReader.open(stored), zarr.open_group(stored / "rows.zarr", mode="r")
    for name, group in reader.manifest.geometry.groups.items():
        assert {array for array, _ in store[name].arrays()} == set(group.arrays)
        for array in group.arrays.values():
            ours = reader.split(name).columns[array.name]
            ours.need_all()
            ours = ours.values[: array.rows]
            np.testing.assert_array_equal(store[array.path.removeprefix("rows.zarr/")][:], ours)
            np.testing.assert_array_equal(asyncio.run(read_with_tensorstore(stored / array.path)), ours)
    np.testing.assert_array_equal(store["parameters/gain"][:], reader.arrays["gain"])


async def read_with_tensorstore(path):
    kvstore = {"driver": "file", "path": f"{path}/"}
    array = await tensorstore.open({"driver": "zarr3", "kvstore": kvstore}, read=True)
    return await array.read()


def test_the_journals_lines_have_the_fields_of_the_table(stored):
    lines = [json.loads(line[17:]) for line in (stored / "journal/part-00000.jsonl").read_text().splitlines()]
    tables = {kind: re.findall(r"`(\w+)`", row) for kind, row in re.findall(r"\| (\S.*?) \| (.*?) \|", PAGE)}
    assert set(lines[0]) == set(tables["the first"])
    assert all(set(line) == set(tables["a commit"]) for line in lines[1:])
    assert set(lines[1]["files"][0]) == {"path", "size_bytes", "xxh3", "chunks"}
    assert set(lines[1]["from"]) == set(lines[1]["next"]) == {"cursor", "train", "held_out"}


def test_the_manifest_has_the_fields_of_the_page(stored):
    manifest = json.loads((stored / "manifest.json").read_text())
    for field in manifest.keys() - {"format_name"}:
        assert f"`{field}`" in PAGE
