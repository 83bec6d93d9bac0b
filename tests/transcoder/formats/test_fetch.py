"""The folder of a dictionary that is named by a path or by its address on the Hub."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.progress import Silent
from tests.helpers.progress import Notes
from transcoder.formats import fetch
from transcoder.formats.fetch import fetched

FILES = [
    "README.md",
    "config.json",
    "run.py",
    "sae/h.8.mlp/cfg.json",
    "sae/h.8.mlp/sae.safetensors",
    "set/config.yaml",
    "set/layer_0.safetensors",
    "set/layer_8.safetensors",
    "old/config.json",
    "old/checkpoints/final.pt",
    "gpt2_blocks.8.pt",
    "gpt2_blocks.9.pt",
    "scope/hyperparams.json",
    "scope/checkpoints/final.safetensors",
    "many/README.md",
    *(f"many/layer{layer}/sae.safetensors" for layer in range(8)),
    "many/old/checkpoints/final.pt",
]


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A repository on disk instead of the Hub's; the names that were fetched."""
    fetched_names: list[str] = []

    class Repository:
        def __init__(self, name: str, **_: object) -> None:
            assert name == "user/repo"

        def paths(self) -> list[str]:
            return FILES

        def fetch(self, name: str) -> Path:
            fetched_names.append(name)
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.touch()
            return file

    monkeypatch.setattr(fetch, "HubRepository", Repository)
    return fetched_names


@pytest.mark.parametrize(
    ("path", "folder", "files"),
    [
        ("hf:user/repo/sae/h.8.mlp", "sae/h.8.mlp", FILES[3:5]),
        ("hf:user/repo/sae/h.8.mlp/", "sae/h.8.mlp", FILES[3:5]),
        ("https://huggingface.co/user/repo/tree/main/set", "set", ["set/layer_8.safetensors", "set/config.yaml"]),
        ("hf:user/repo/old", "old", ["old/config.json", "old/checkpoints/final.pt"]),
        ("hf:user/repo/scope", "scope", ["scope/hyperparams.json", "scope/checkpoints/final.safetensors"]),
        ("hf:user/repo/gpt2_blocks.8.pt", "gpt2_blocks.8.pt", ["gpt2_blocks.8.pt"]),
        ("hf:user/repo/set/layer_0.safetensors", "set/layer_0.safetensors", [FILES[6], FILES[5]]),
    ],
)  # fmt: skip
def test_only_what_is_needed_is_fetched(
    tmp_path: Path, hub: list[str], path: str, folder: str, files: list[str]
) -> None:
    assert fetched(path, layer=8, progress=Silent()) == tmp_path / folder
    assert hub == files


def test_the_one_folder_with_weights_is_taken(tmp_path: Path, hub: list[str]) -> None:
    notes = Notes()
    assert fetched("hf:user/repo/sae", layer=8, progress=notes) == tmp_path / "sae" / "h.8.mlp"
    assert hub == FILES[3:5]
    assert notes.texts == ["hf:user/repo/sae has files of weights only in sae/h.8.mlp; they are used."]


def test_code_is_never_fetched(hub: list[str]) -> None:
    fetched("hf:user/repo", layer=8, progress=Silent())
    assert "run.py" not in hub


def test_an_address_that_does_not_exist_is_refused(hub: list[str]) -> None:
    assert fetched("some/folder", layer=8, progress=Silent()) == Path("some/folder")
    with pytest.raises(UsageError, match="no dictionary"):
        fetched("hf:user/repo/nowhere", layer=8, progress=Silent())
    with pytest.raises(
        UsageError, match=r"no dictionary in 'many', and several below it: many/layer0, .*many/layer5\."
    ):
        fetched("hf:user/repo/many", layer=8, progress=Silent())
    for path in ("nothing://somewhere/x", "hf:user"):
        with pytest.raises(UsageError, match="not an address"):
            fetched(path, layer=8, progress=Silent())
