"""A dictionary in a folder inside the one that was named."""

from pathlib import Path

import pytest

from common.errors import UsageError
from common.progress import Silent
from tests.helpers.progress import Notes
from transcoder.formats.inside import DEPTH, dictionary_in
from transcoder.formats.wanted import Wanted

EIGHT = Wanted(8)


def make_folder(folder: Path, name: str) -> Path:
    """A folder of the layout that a file of this name belongs to."""
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
def test_the_only_dictionary_inside_is_taken_and_named(tmp_path: Path, inside: str, file: str) -> None:
    found = make_folder(tmp_path / inside, file)
    (tmp_path / "logs").mkdir()
    make_folder(tmp_path / ".cache", file)
    notes = Notes()
    assert dictionary_in(tmp_path, EIGHT, progress=notes) == found
    assert notes.texts == [f"{tmp_path} has one dictionary, in {inside}; it is used."]
    notes.texts.clear()
    assert dictionary_in(found, EIGHT, progress=notes) == found
    assert not notes.texts


def test_a_folder_that_is_a_dictionary_or_has_none_inside_is_returned_itself(tmp_path: Path) -> None:
    own = make_folder(tmp_path / "own", "sae_weights.safetensors")
    make_folder(own / "older", "sae_weights.safetensors")
    assert dictionary_in(own, EIGHT, progress=Silent()) == own
    make_folder(tmp_path / "empty" / "inside", "README.md")
    for path in (tmp_path / "empty", own / "sae_weights.safetensors", tmp_path / "absent"):
        assert dictionary_in(path, EIGHT, progress=Silent()) == path
    deep = tmp_path / "deep"
    make_folder(deep.joinpath(*"abcdef"[: DEPTH + 1]), "sae_weights.safetensors")
    assert dictionary_in(deep, EIGHT, progress=Silent()) == deep


def test_several_dictionaries_are_refused_by_name(tmp_path: Path) -> None:
    for number in range(8):
        make_folder(tmp_path / f"blocks.{number}", "sae_weights.safetensors")
    with pytest.raises(UsageError, match=r"holds 8 dictionaries of known tools: blocks.0, .*, blocks.5 and 2 more"):
        dictionary_in(tmp_path, EIGHT, progress=Silent())


def test_a_link_to_a_folder_above_does_not_loop(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "again").symlink_to(tmp_path)
    assert dictionary_in(tmp_path, EIGHT, progress=Silent()) == tmp_path
