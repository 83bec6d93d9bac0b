"""A probe cache is read completely or refused in one sentence."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from common.errors import DamagedError, MismatchError, UsageError
from common.hashing import hash_bytes
from common.sealed.document import with_checksum
from evaluate.absorption.probe_set import read_probe_set


def write(folder: Path, *, words: int = 4, about: dict | None = None, **changed: torch.Tensor) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        "source": torch.randn(words, 6).bfloat16(),
        "target": torch.randn(words, 5).bfloat16(),
        "letter": torch.arange(words),
        "split": torch.tensor([0, 1] * (words // 2), dtype=torch.uint8),
    }
    save_file(tensors | changed, folder / "probe.safetensors")
    known = {"version": 1, "kind": "first-letter", "words": ["a"] * words, "fingerprint": "f"}
    (folder / "probe.json").write_text(json.dumps(known | (about or {})))
    return folder


def test_reads_what_was_written(tmp_path: Path) -> None:
    words = read_probe_set(write(tmp_path), fingerprint="f")
    assert words.source.shape == (4, 6)
    assert words.target.dtype == torch.float32
    assert words.test.tolist() == [False, True, False, True]
    assert words.about["words"] == ["a"] * 4


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"letter": torch.tensor([0, 1, 2, 26])}, "0..25"),
        ({"letter": torch.zeros(3, dtype=torch.long)}, "4 words"),
        ({"split": torch.tensor([0, 1, 2, 0])}, "0..1"),
        ({"source": torch.full((4, 6), float("nan"))}, "NaN"),
        ({"source": torch.zeros(4, 6, dtype=torch.long)}, "float matrices"),
        ({"letter": torch.zeros(4)}, "integer vectors"),
    ],
)
def test_wrong_arrays_are_damage(tmp_path: Path, changed: dict[str, torch.Tensor], told: str) -> None:
    with pytest.raises(DamagedError, match=told):
        read_probe_set(write(tmp_path, **changed))


def test_another_caches_probe_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MismatchError, match="another activation cache"):
        read_probe_set(write(tmp_path), fingerprint="g")


@pytest.mark.parametrize("about", [{"version": 3}, {"kind": "spelling"}])
def test_an_unknown_version_or_kind_is_refused(tmp_path: Path, about: dict) -> None:
    with pytest.raises(MismatchError, match="version"):
        read_probe_set(write(tmp_path, about=about))


def sealed(folder: Path) -> Path:
    write(folder)
    data = (folder / "probe.safetensors").read_bytes()
    known = json.loads((folder / "probe.json").read_text())
    weights = {"bytes": len(data), "xxh3_128": hash_bytes(data)}
    (folder / "probe.json").write_text(json.dumps(with_checksum(known | {"version": 2, "weights": weights})))
    return folder


@pytest.mark.parametrize("name", ["probe.json", "probe.safetensors"])
def test_no_flipped_bit_changes_a_sealed_probe(tmp_path: Path, name: str) -> None:
    folder = sealed(tmp_path)
    assert read_probe_set(folder, fingerprint="f").source.shape == (4, 6)
    intact = (folder / name).read_bytes()
    for position in range(0, len(intact), 7):
        flipped = bytearray(intact)
        flipped[position] ^= 1 << position % 8
        (folder / name).write_bytes(flipped)
        try:
            assert read_probe_set(folder, fingerprint="f").about == json.loads(intact)
        except (DamagedError, MismatchError):
            continue


def test_missing_and_broken_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        read_probe_set(tmp_path)
    folder = write(tmp_path / "probe")
    (folder / "probe.safetensors").write_bytes(b"nonsense")
    with pytest.raises(DamagedError):
        read_probe_set(folder)
    (folder / "probe.json").write_text("[1]")
    with pytest.raises(DamagedError, match="JSON object"):
        read_probe_set(folder)
