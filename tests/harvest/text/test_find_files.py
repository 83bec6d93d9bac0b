"""Which files a name means: splits, hidden files, brackets, saved datasets."""

import pytest
from datasets import Dataset, DatasetDict

from common.errors import UsageError
from harvest.text.find_files import find_local_text


def touch(folder, *names):
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "a"}\n')


def found(name, split="train"):
    text = find_local_text(str(name), split=split)
    return text and sorted(path.name for path in text.files)


def test_a_folder_gives_the_files_of_the_split_alone(tmp_path):
    touch(tmp_path, "train/a.jsonl", "test/b.jsonl", "validation/c.jsonl", "train/more/d.jsonl")
    assert found(tmp_path) == ["a.jsonl", "d.jsonl"]
    assert found(tmp_path, "test") == ["b.jsonl"]
    assert found(tmp_path, "validation") == ["c.jsonl"]
    assert find_local_text(str(tmp_path), split="train").left_out == 2
    with pytest.raises(UsageError, match="no files of the split 'other'; it has: test, train, validation"):
        found(tmp_path, "other")


def test_files_beside_a_test_folder_are_the_training_text(tmp_path):
    touch(tmp_path, "a.jsonl", "b-test-notes.jsonl", "test/c.jsonl", "dev.jsonl", "test-00000-of-00002.jsonl")
    assert found(tmp_path) == ["a.jsonl", "b-test-notes.jsonl"]
    assert found(tmp_path, "test") == ["c.jsonl", "test-00000-of-00002.jsonl"]


def test_a_folder_without_splits_is_read_completely_for_any_split(tmp_path):
    touch(tmp_path, "a.jsonl", "deep/b.jsonl")
    assert found(tmp_path) == found(tmp_path, "other") == ["a.jsonl", "b.jsonl"]


def test_hidden_files_are_no_text(tmp_path):
    touch(tmp_path, "a.jsonl", "._a.jsonl", ".ipynb_checkpoints/a-checkpoint.jsonl", ".hidden.jsonl")
    assert found(tmp_path) == ["a.jsonl"]
    assert found(tmp_path / "*.jsonl") == ["a.jsonl"]


def test_a_path_with_brackets_that_is_there_is_no_pattern(tmp_path):
    touch(tmp_path, "a[1].jsonl", "a1.jsonl", "texts [old]/b.jsonl")
    assert found(tmp_path / "a[1].jsonl") == ["a[1].jsonl"]
    assert found(tmp_path / "texts [old]") == ["b.jsonl"]
    assert found(tmp_path / "a[0-9].jsonl") == ["a1.jsonl"]


def test_a_saved_dataset_is_recognised(tmp_path):
    rows = Dataset.from_list([{"text": "a"}, {"text": "b"}])
    rows.save_to_disk(str(tmp_path / "one"))
    assert find_local_text(str(tmp_path / "one"), split="train").kind == "arrow"
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "two"))
    text = find_local_text(str(tmp_path / "two"), split="test")
    assert {path.parent.name for path in text.files} == {"test"}
    with pytest.raises(UsageError, match="no split 'dev'; it has: test, train"):
        find_local_text(str(tmp_path / "two"), split="dev")
    rows.shuffle(seed=0).save_to_disk(str(tmp_path / "three"))
    find_local_text(str(tmp_path / "three"), split="train")


def test_a_hub_name_is_no_local_text():
    assert find_local_text("someone/some-text", split="train") is None
