"""A dictionary that lies in a folder inside the one that was named."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.progress import Silent
from transcoder.formats.inside import DEPTH, dictionary_in
from transcoder.formats.wanted import Wanted

EIGHT = Wanted(8)


class Notes(Silent):
    """Progress that keeps what it is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


def place(folder: Path, name: str) -> Path:
    """A folder of the layout that a file of this name tells of."""
    folder.mkdir(parents=True)
    (folder / name).touch()
    return folder


@pytest.mark.parametrize(
    ("inside", "file"),
    [
        ("circuit_tracer", "W_enc_0.safetensors"),
        ("circuit_tracer", "layer_8.safetensors"),
        ("saelens/blocks.8.mlp_out", "sae_weights.safetensors"),
        ("runs/dictionary_learning/trainer_0", "ae.pt"),
    ],
)
def test_the_only_one_is_taken_and_named(tmp_path: Path, inside: str, file: str) -> None:
    found = place(tmp_path / inside, file)
    (tmp_path / "logs").mkdir()
    place(tmp_path / ".cache", file)
    heard = Notes()
    assert dictionary_in(tmp_path, EIGHT, progress=heard) == found
    assert heard.notes == [f"{tmp_path} has one dictionary, in {inside}; it is used."]
    heard.notes.clear()
    assert dictionary_in(found, EIGHT, progress=heard) == found
    assert not heard.notes


def test_what_is_one_itself_or_has_none_inside_stays_what_it_is(tmp_path: Path) -> None:
    own = place(tmp_path / "own", "sae_weights.safetensors")
    place(own / "older", "sae_weights.safetensors")
    assert dictionary_in(own, EIGHT, progress=Silent()) == own
    place(tmp_path / "empty" / "inside", "README.md")
    for path in (tmp_path / "empty", own / "sae_weights.safetensors", tmp_path / "absent"):
        assert dictionary_in(path, EIGHT, progress=Silent()) == path
    deep = tmp_path / "deep"
    place(deep.joinpath(*"abcdef"[: DEPTH + 1]), "sae_weights.safetensors")
    assert dictionary_in(deep, EIGHT, progress=Silent()) == deep


def test_several_are_refused_by_name(tmp_path: Path) -> None:
    for number in range(8):
        place(tmp_path / f"blocks.{number}", "sae_weights.safetensors")
    with pytest.raises(UsageError, match=r"holds 8 dictionaries of known tools: blocks.0, .*, blocks.5 and 2 more"):
        dictionary_in(tmp_path, EIGHT, progress=Silent())


def test_a_link_that_leads_back_ends(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    assert dictionary_in(tmp_path, EIGHT, progress=Silent()) == tmp_path
