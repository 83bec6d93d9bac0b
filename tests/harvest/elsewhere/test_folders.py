"""Each form of folder, as the tool that leaves it writes it, read example by example."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Array2D, Dataset, Features, Sequence, Value
from safetensors.torch import save_file

from common.errors import DamagedError, UsageError
from harvest.elsewhere.folders import Paired, open_folder
from harvest.elsewhere.write import Batch

ROWS = torch.arange(2 * 3 * 4, dtype=torch.float32).view(2, 3, 4)


def batches(paired: Paired) -> list[Batch]:
    return [Batch.from_given(given, number=number) for number, given in enumerate(paired.batches())]


def test_safetensors_with_contexts_and_with_rows(tmp_path: Path) -> None:
    tokens = torch.tensor([[5, 6, 7], [8, 9, 10]])
    save_file({"source": ROWS, "target": ROWS + 1, "tokens": tokens}, tmp_path / "a.safetensors")
    save_file({"anything": torch.zeros(1500, 4)}, tmp_path / "b.safetensors")
    found = list(Paired(open_folder(tmp_path, layer=0)).batches())
    assert [len(example["source"]) for example in found] == [3, 3, 1024, 476]
    batch = Batch.from_given(found[1], number=1)
    assert torch.equal(batch.source, ROWS[1])
    assert torch.equal(batch.target, ROWS[1] + 1)
    assert (batch.tokens.tolist(), batch.document.tolist(), batch.position.tolist()) == ([8, 9, 10], [1] * 3, [0, 1, 2])


def test_npy_with_targets_and_tokens_in_folders_of_their_own(tmp_path: Path) -> None:
    for name, values in (("source", ROWS), ("target", ROWS * 2), ("tokens", torch.arange(6).view(2, 3))):
        (tmp_path / name).mkdir()
        np.save(tmp_path / name / "0.npy", values.numpy())
    folders = [open_folder(tmp_path / name, layer=0) for name in ("source", "target", "tokens")]
    first, second = batches(Paired(*folders))
    assert torch.equal(second.target, 2 * ROWS[1])
    assert (first.tokens.tolist(), second.tokens.tolist()) == ([0, 1, 2], [3, 4, 5])
    np.save(tmp_path / "target" / "1.npy", ROWS.numpy())
    with pytest.raises(UsageError, match="target folder has more examples"):
        batches(Paired(*folders))
    np.save(tmp_path / "source" / "1.npy", np.zeros((3, 3, 4), np.float32))
    with pytest.raises(UsageError, match="fewer than the source"):
        batches(Paired(folders[0], folders[1]))


def test_a_dataset_of_saelens(tmp_path: Path) -> None:
    hook = "blocks.8.mlp.hook_in"
    features = Features({hook: Array2D((3, 4), "float32"), "token_ids": Sequence(Value("int32"))})
    rows = {hook: ROWS.numpy(), "token_ids": [[1, 2, 3], [4, 5, 6]]}
    Dataset.from_dict(rows, features=features).save_to_disk(tmp_path / "in")
    folder = open_folder(tmp_path / "in", layer=8)
    assert (folder.kind, folder.hook) == ("saelens", hook)
    first, second = batches(Paired(folder))
    assert torch.equal(second.source, ROWS[1])
    assert first.tokens.tolist() == [1, 2, 3]
    mismatched = rows | {"token_ids": [[1, 2, 3], [4, 5, 7]]}
    Dataset.from_dict(mismatched, features=features).save_to_disk(tmp_path / "out")
    with pytest.raises(UsageError, match="Example 1: the tokens of source and target differ"):
        batches(Paired(folder, open_folder(tmp_path / "out", layer=8)))


def test_shards_of_saev(tmp_path: Path) -> None:
    """Two shards of (examples, layers, tokens, d), as its protocol says."""
    everything = np.random.default_rng(0).normal(size=(3, 2, 5, 4)).astype(np.float32)
    everything[:2].tofile(tmp_path / "acts000000.bin")
    everything[2:].tofile(tmp_path / "acts000001.bin")
    about = {
        "layers": [3, 7],
        "patches_per_ex": 4,
        "cls_token": True,
        "d_model": 4,
        "n_examples": 3,
        "dtype": "float32",
    }
    shards = [{"name": "acts000000.bin", "n_examples": 2}, {"name": "acts000001.bin", "n_examples": 1}]
    (tmp_path / "metadata.json").write_text(json.dumps(about))
    (tmp_path / "shards.json").write_text(json.dumps(shards))
    found = batches(Paired(open_folder(tmp_path, layer=7)))
    assert len(found) == 3
    for example, batch in enumerate(found):
        assert np.array_equal(batch.source.numpy(), everything[example, 1])
    with pytest.raises(UsageError, match=r"have the layers \[3, 7\], but not 5"):
        batches(Paired(open_folder(tmp_path, layer=5)))
    (tmp_path / "acts000001.bin").write_bytes(b"short")
    with pytest.raises(DamagedError, match="does not have the"):
        batches(Paired(open_folder(tmp_path, layer=3)))


def test_an_unknown_form_and_damaged_files_are_refused_in_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no safetensors or npy files"):
        open_folder(tmp_path, layer=0)
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(DamagedError, match="not a plain NumPy array"):
        batches(Paired(open_folder(tmp_path, layer=0)))
