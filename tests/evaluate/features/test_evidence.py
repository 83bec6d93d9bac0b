"""Evidence on disk: written, read, and refused if it is damaged or of another dictionary."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from common.errors import DamagedError, MismatchError, UsageError
from evaluate.features.evidence import ARRAYS_FILE, HEAD_FILE, TOKENS_FILE, made_of, read_evidence, write_evidence
from transcoder.formats.native import read_config, save_transcoder


@pytest.fixture
def folder(toy, tmp_path: Path) -> Path:
    write_evidence(tmp_path, toy.evidence)
    return tmp_path


def test_evidence_is_read_as_it_was_written(toy, folder: Path) -> None:
    read = read_evidence(folder)
    assert read.words == dict(toy.evidence.words)
    assert {key: value for key, value in read.head.items() if key != "format_version"} == toy.evidence.head
    assert read.arrays.keys() == toy.evidence.arrays.keys()
    for name, array in toy.evidence.arrays.items():
        np.testing.assert_allclose(read.arrays[name], array, rtol=1e-6, err_msg=name)


def test_two_runs_write_the_same_bytes(toy, folder: Path, tmp_path: Path) -> None:
    write_evidence(tmp_path / "again", toy.evidence)
    for name in (ARRAYS_FILE, TOKENS_FILE, HEAD_FILE):
        assert (folder / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


@pytest.mark.parametrize("name", [ARRAYS_FILE, TOKENS_FILE])
def test_a_flipped_bit_is_found(folder: Path, name: str) -> None:
    data = bytearray((folder / name).read_bytes())
    data[len(data) // 2] ^= 1
    (folder / name).write_bytes(data)
    with pytest.raises(DamagedError):
        read_evidence(folder)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{", DamagedError),
        ("[]", MismatchError),
        ('{"format_version": 99}', MismatchError),
        ('{"format_version": 2}', DamagedError),
    ],
)
def test_evidence_with_another_head_is_refused(folder: Path, text: str, error: type[Exception]) -> None:
    (folder / HEAD_FILE).write_text(text)
    with pytest.raises(error):
        read_evidence(folder)


def test_a_folder_without_evidence_is_refused_with_the_command_to_run(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="nestcoder features"):
        read_evidence(tmp_path)


def test_evidence_of_other_weights_is_refused(toy, folder: Path, tmp_path: Path) -> None:
    evidence = read_evidence(folder)
    same = tmp_path / "same"
    changed = tmp_path / "other"
    save_transcoder(toy.trained, same, config={})
    save_transcoder(toy.trained.replaced(b_enc=toy.trained.b_enc.detach() + 1), changed, config={})
    evidence = replace(evidence, head=evidence.head | {"transcoder": {"weights": read_config(same)["weights"]}})
    assert made_of(evidence, [], path=folder) is None
    assert made_of(evidence, [changed, same], path=folder) == same
    with pytest.raises(MismatchError, match="other weights"):
        made_of(evidence, [changed], path=folder)
    unnamed = replace(evidence, head=evidence.head | {"transcoder": {"weights": None}})
    assert made_of(unnamed, [changed], path=folder) == changed


def test_values_of_a_window_are_those_of_the_dense_code(toy) -> None:
    for feature in (2, 33):
        for row in toy.evidence.arrays["context_strongest"][feature]:
            first, end = toy.text.window(int(row), toy.settings.context_tokens)
            values = toy.evidence.values(feature, first, end)
            np.testing.assert_allclose(values, toy.dense[first:end, feature], atol=1e-5)
