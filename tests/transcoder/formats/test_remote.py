"""Dictionaries below a URL: what is fetched, what is refused before that, and what a bad connection leaves."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch

from common.errors import DiskError, MismatchError, UsageError
from common.progress import Silent
from transcoder.formats import remote
from transcoder.formats.about import About
from transcoder.formats.fetch import fetched
from transcoder.formats.foreign import Wanted, read_foreign
from transcoder.formats.peers.saelens import write_saelens
from transcoder.transcoder import Transcoder

URL = "memory://bucket/dictionaries/layer08"


@pytest.fixture
def system(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "copies"))
    memory = fsspec.filesystem("memory")
    yield memory
    memory.rm("/bucket", recursive=True)


@pytest.fixture
def trained(system: Any, tmp_path: Path, make_transcoder: Callable[..., Transcoder], about: About) -> Transcoder:
    """It is below ``URL``, beside code."""
    transcoder = make_transcoder()
    write_saelens(tmp_path / "written", transcoder, about)
    for file in (tmp_path / "written").iterdir():
        system.pipe_file(f"{URL}/{file.name}", file.read_bytes())
    system.pipe_file(f"{URL}/run.py", b"raise SystemExit")
    return transcoder


def get(url: str = URL) -> Path:
    return fetched(url, layer=8, progress=Silent())


@pytest.mark.parametrize("named", ["", "/", "/sae_weights.safetensors"])
def test_the_fetched_dictionary_is_the_same_and_no_code_is_fetched(trained: Transcoder, named: str) -> None:
    path = get(URL + named)
    read = read_foreign(path, Wanted(layer=8))
    assert all(torch.equal(array, read.arrays()[name]) for name, array in trained.arrays().items())
    folder = path.parent if path.is_file() else path
    assert sorted(file.name for file in folder.iterdir()) == ["cfg.json", "sae_weights.safetensors"]


def test_it_is_fetched_once_and_again_when_it_has_changed(trained: Transcoder, system: Any) -> None:
    first = get()
    written = (first / "cfg.json").stat().st_mtime_ns
    assert get() == first
    assert (first / "cfg.json").stat().st_mtime_ns == written
    system.pipe_file(f"{URL}/cfg.json", b"{}")
    assert (get() / "cfg.json").read_bytes() == b"{}"


@pytest.mark.parametrize("limit", ["LIMIT_BYTES", "JSON_LIMIT_BYTES"])
def test_a_file_over_the_limit_is_refused_before_a_byte_is_fetched(
    trained: Transcoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    monkeypatch.setattr(remote, limit, 100)
    with pytest.raises(MismatchError, match="at most 100"):
        get()
    assert not (tmp_path / "copies").exists()


@pytest.mark.parametrize("change", [-1, 1])
def test_other_bytes_than_announced_are_not_kept(
    trained: Transcoder, system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: int
) -> None:
    honest = system.info

    def info(_: Any, path: str, **options: Any) -> dict[str, Any]:
        found = honest(path, **options)
        return found | {"size": found["size"] + change} if found["type"] == "file" else found

    monkeypatch.setattr(type(system), "info", info)
    with pytest.raises(DiskError, match="announced"):
        get()
    assert {file.name for file in (tmp_path / "copies").rglob("*") if file.is_file()} == set()


def test_a_connection_that_breaks_is_named(
    trained: Transcoder, system: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise ConnectionResetError("reset by peer")

    with monkeypatch.context() as broken:
        broken.setattr(type(system), "_open", refuse)
        with pytest.raises(DiskError, match="reset by peer"):
            get()
    assert {file.name for file in (tmp_path / "copies").rglob("*") if file.is_file()} == set()
    assert read_foreign(get(), Wanted(layer=8)).dict_size == trained.dict_size


def test_a_missing_folder_and_an_unknown_file_system_are_refused(system: Any) -> None:
    system.pipe_file("memory://bucket/README.md", b"")
    with pytest.raises(UsageError, match="no files of a dictionary here"):
        get("memory://bucket")
    with pytest.raises(UsageError, match="not an address"):
        get("nothing://bucket")


def test_a_server_that_does_not_answer_is_not_an_empty_one(system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """As fsspec's HTTP does: after any failure it says that there is no such file."""

    def info(*_: Any, **__: Any) -> dict[str, Any]:
        raise FileNotFoundError(URL) from ConnectionRefusedError("connection refused")

    system.pipe_file("memory://bucket/README.md", b"")
    monkeypatch.setattr(type(system), "info", info)
    with pytest.raises(DiskError, match="ConnectionRefusedError: connection refused"):
        get("memory://bucket/nothing")


def test_a_file_of_unknown_size_is_refused(trained: Transcoder, system: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def info(*_: Any, **__: Any) -> dict[str, Any]:
        return {"size": None, "type": "directory"}

    with monkeypatch.context() as silent:
        silent.setattr(type(system), "info", info)
        with pytest.raises(UsageError, match="how large"):
            get()
