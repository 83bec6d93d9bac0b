"""A small campaign over all files of a run: every flipped bit is found or changes no number."""

import io
import json
import os
import random
import shutil
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import pytest
from click.testing import CliRunner

from common.errors import DamagedError, UsageError
from common.progress import Silent
from nestcoder.cli import command_line
from nestcoder.commands.verify import verify

FLIPS_A_FILE = 4
# Files that no number is read from: locks, and a record of the site proof that is in the manifest too.
NO_NUMBERS = {"locks", "proof-00000.json", ".lock"}


@pytest.fixture
def runs(tiny_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr("nestcoder.commands.verify.shown_progress", lambda: nullcontext(Silent()))
    return Path(shutil.copytree(tiny_run, tmp_path / "runs"))


def files_of(runs: Path) -> Iterator[Path]:
    return (path for path in sorted(runs.rglob("*")) if path.is_file() and not NO_NUMBERS & set(path.parts))


def stage_folder(path: Path, runs: Path) -> Path:
    """The cache, transcoder or report folder of a layer that contains the file."""
    return runs.joinpath(*path.relative_to(runs).parts[:3])


def test_an_unchanged_run_is_sound(runs: Path) -> None:
    done = CliRunner().invoke(command_line, ["--json", "verify", str(runs)])
    assert done.exit_code == 0
    found = {entry["kind"]: entry for entry in json.loads(done.stdout)}
    assert found.keys() == {"cache", "transcoder", "report"}
    assert not any(entry["faults"] for entry in found.values())
    text = CliRunner().invoke(command_line, ["verify", "--fast", str(runs / "gpt2-stdlib" / "layer08")]).stdout
    assert [line.split()[-1] for line in text.splitlines()[1:]] == ["sound"] * 3


def test_every_flipped_bit_is_found(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    random_numbers = random.Random(0)
    missed: list[str] = []
    for path in files_of(runs):
        data = path.read_bytes()
        for _ in range(FLIPS_A_FILE):
            index = random_numbers.randrange(len(data))
            flipped = bytearray(data)
            flipped[index] ^= 1 << random_numbers.randrange(8)
            path.write_bytes(flipped)
            _, damage = verify([str(stage_folder(path, runs))], fast=False)
            if damage is None:
                missed.append(f"{path.relative_to(runs)} byte {index}: {data[max(0, index - 20) : index + 20]!r}")
        path.write_bytes(data)
    assert not missed, "\n".join(missed)


def test_what_is_damaged_is_named_with_what_to_do(runs: Path) -> None:
    layer = runs / "gpt2-stdlib" / "layer08"
    for path in (layer / "report" / "main" / "metrics.json", layer / "transcoder" / "main" / "transcoder.safetensors"):
        path.write_bytes(path.read_bytes()[:-1])
    done = CliRunner().invoke(command_line, ["verify", str(runs)])
    assert isinstance(done.exception, DamagedError)
    assert done.exception.exit_code == 3
    text = str(done.exception)
    for words in ("2 folders are damaged", "metrics.json: damaged", "transcoder.safetensors", "nestcoder evaluate"):
        assert words in text
    assert "1 fault" in done.stdout
    assert "sound" in done.stdout


def test_what_cannot_be_checked_is_named(runs: Path, tmp_path: Path) -> None:
    (runs / "gpt2-stdlib" / "layer08" / "report" / "main" / "checksums.json").unlink()
    result, damage = verify([str(runs)], fast=True)
    assert damage is None
    assert "written before reports had checksums" in result.text
    with pytest.raises(UsageError, match="no such folder"):
        verify([str(tmp_path / "absent")], fast=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(UsageError, match="no cache, probe"):
        verify([str(tmp_path / "empty")], fast=True)


def test_a_file_without_permission_is_one_sentence(runs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each file in turn cannot be opened, as without permission; root could open it, so opening is refused here."""
    refused: list[Path] = []

    def guarded(opener):
        def opened(path, *arguments, **options):
            if refused and not isinstance(path, int) and Path(path) == refused[0]:
                raise PermissionError(13, "Permission denied", str(path))
            return opener(path, *arguments, **options)

        return opened

    monkeypatch.setattr("io.open", guarded(io.open))
    monkeypatch.setattr("builtins.open", guarded(io.open))
    monkeypatch.setattr("os.open", guarded(os.open))
    for path in files_of(runs):
        refused[:] = [path]
        _, damage = verify([str(stage_folder(path, runs))], fast=False)
        assert damage is not None, path
        assert str(path) in str(damage) or path.name in str(damage)
