"""What a crash, or anything else, does to the file of a draft: its sound rows are used, and no row is wrong."""

import random
import shutil

import pytest
import torch

from cache.format.journal import Point
from cache.format.manifest import read_manifest
from cache.storage.draft import Draft, draft_path, remove_drafts
from cache.storage.segment import SegmentBuffer


@pytest.fixture(scope="module")
def begun(make_toy, tmp_path_factory):
    """A cache with a draft of several blocks, and the same one finished."""
    path = tmp_path_factory.mktemp("begun")
    toy = make_toy()
    toy.write(path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cache.drafts._SECONDS", 0.0)
        patch.setattr("cache.drafts._SHARE", float("inf"))
        patch.setattr("cache.storage.draft._BLOCK_ROWS", 3)
        toy.write(path / "begun", stop=11)
    return path


@pytest.fixture
def cut(begun, tmp_path):
    shutil.copytree(begun / "begun", tmp_path / "cut")
    return tmp_path / "cut"


def draft_of(cache):
    (path,) = (cache / "drafts").glob("part-00000.train.*")
    return path


def goes_on(cache, begun, make_toy, tree):
    """Finish the cache; the context at which that began."""
    with make_toy().writer(cache) as writer:
        cursor = writer.cursor
    make_toy().write(cache)
    assert tree(cache) == tree(begun / "whole")
    return cursor or 0


def test_a_sound_draft_is_continued(cut, begun, make_toy, tree):
    assert goes_on(cut, begun, make_toy, tree) == 10


def test_a_draft_that_was_cut_counts_up_to_the_cut(cut, begun, make_toy, tree, folder):
    draft = draft_of(cut).read_bytes()
    found = set()
    for length in range(0, len(draft), len(draft) // 12):
        path = folder / str(length)
        shutil.copytree(cut, path)
        draft_of(path).write_bytes(draft[:length])
        found.add(goes_on(path, begun, make_toy, tree))
        shutil.rmtree(path)
    assert found == {8, 9}, "the segment begins at 8, was kept at 9 and 10, and no cut leaves all of it"


def test_a_flipped_bit_of_a_draft_changes_no_byte_of_the_cache(cut, begun, make_toy, tree, flip, folder):
    dice = random.Random(0)
    size = draft_of(cut).stat().st_size
    for number in range(12):
        path = folder / str(number)
        shutil.copytree(cut, path)
        flip(draft_of(path), dice.randrange(8 * size))
        assert goes_on(path, begun, make_toy, tree) < 10
        shutil.rmtree(path)


def test_bytes_behind_the_end_of_a_draft_are_cut_off(cut, begun, make_toy, tree):
    path = draft_of(cut)
    draft = path.read_bytes()
    path.write_bytes(draft + bytes(4096))
    with make_toy().writer(cut) as writer:
        assert writer.cursor == 10
    assert path.read_bytes() == draft
    path.write_bytes(draft + draft[-100:] + b"\n")
    assert goes_on(cut, begun, make_toy, tree) == 10


def test_a_draft_of_another_cache_or_segment_is_not_used(cut, begun, make_toy, tree):
    other_cache = cut.with_name("other")
    toy = make_toy(shuffle_seed=7)
    toy.write(other_cache, stop=1)
    shutil.copytree(cut / "drafts", other_cache / "drafts")
    with toy.writer(other_cache) as writer:
        assert not writer.cursor
    moved = draft_of(cut)
    moved.rename(moved.with_name("part-00000.train.3"))
    assert goes_on(cut, begun, make_toy, tree) < 10


def test_blocks_come_back_as_they_were_given(make_toy, begun, tmp_path):
    manifest = read_manifest(begun / "whole")
    group = manifest.geometry.groups["train"]
    toy = make_toy()
    source, target, tokens, document, position = (column[:10] for column in toy.text)
    block = {"source": source, "target": target, "tokens": tokens, "document": document, "position": position}
    errors = {"source_error": source[:, 0].astype(float), "target_error": target[:, 0].astype(float)}
    written = SegmentBuffer(group, manifest)
    sides = {name: torch.from_numpy(block[name]) for name in ("source", "target")}
    written.put(1, 0, block | sides | errors)
    path = draft_path(tmp_path, 0, "train", 1)
    Draft(path, written, {"segment": 1}, tag="part-00000").add(10, Point("here", 26, 3))

    found = SegmentBuffer(group, manifest)
    draft = Draft(path, found, {"segment": 1}, tag="part-00000")
    draft.restore(1)
    assert (draft.rows, draft.point) == (10, Point("here", 26, 3))
    for name, values in found.take(0, 10).items():
        assert (values == (block | errors)[name]).all(), name
    remove_drafts(tmp_path, 0)
    assert not path.exists()
