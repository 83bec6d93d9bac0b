"""The tokenizer: how a context begins, what is special, what is refused."""

import json
import shutil

import pytest

from common.errors import DamagedError, MismatchError, UsageError
from harvest.model.source import find_model
from harvest.model.tokenizer import load_tokenizer


def test_bos_and_special_tokens(model_folders):
    gpt2, gemma2 = (load_tokenizer(find_model(str(model_folders[name]))) for name in ("gpt2", "gemma2"))
    assert (gpt2.bos, gpt2.special_ids) == (0, (0,))
    assert (gemma2.bos, gemma2.special_ids) == (2, (0, 1, 2))
    assert gpt2.hash != gemma2.hash


def test_a_tokenizer_larger_than_the_embedding_is_refused(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(MismatchError, match="257 entries"):
        load_tokenizer(find_model(str(copied)))


@pytest.fixture
def edited(model_folders, tmp_path):
    """A copy of the tiny GPT-2 whose tokenizer.json is changed."""

    def make(**changes):
        folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
        described = json.loads((folder / "tokenizer.json").read_text())
        (folder / "tokenizer.json").write_text(json.dumps(described | changes))
        return find_model(str(folder))

    return make


def test_truncation_and_padding_in_the_file_are_switched_off_with_a_note(edited, model_folders):
    source = edited(
        truncation={"direction": "Right", "max_length": 4, "strategy": "LongestFirst", "stride": 0},
        padding={
            "strategy": {"Fixed": 12}, "direction": "Right", "pad_to_multiple_of": None, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<|endoftext|>",
        },
    )  # fmt: skip
    tokenizer = load_tokenizer(source)
    plain = load_tokenizer(find_model(str(model_folders["gpt2"])))
    for text in ("ab", "a longer text"):
        assert tokenizer.backend.encode(text).ids == plain.backend.encode(text).ids
    assert [note.split(" in ")[0] for note in tokenizer.notes] == [
        "Switched off the truncation to 4 tokens", "Switched off the padding",
    ]  # fmt: skip
    assert tokenizer.hash == plain.hash


def test_a_folder_without_a_tokenizer_is_refused(model_folders, tmp_path):
    folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UsageError, match="has no tokenizer"):
        load_tokenizer(find_model(str(folder)))


def test_a_tokenizer_that_cannot_be_read_is_refused(edited):
    source = edited(model={"type": "Nonsense"})
    with pytest.raises(DamagedError, match="tokenizer cannot be read"):
        load_tokenizer(source)


@pytest.mark.parametrize(("plain", "ids"), [(True, False), (False, True)])
def test_a_control_token_spelled_in_the_text_is_text_unless_the_setting_says_otherwise(model_folders, plain, ids):
    tokenizer = load_tokenizer(find_model(str(model_folders["gpt2"])), plain_text=plain)
    (encoded,) = tokenizer.backend.encode_batch_fast(["a<|endoftext|>b"], add_special_tokens=False)
    assert (0 in encoded.ids) == ids
    assert tokenizer.backend.decode(encoded.ids, skip_special_tokens=False) == "a<|endoftext|>b"


def test_bos_follows_the_tokenizer_unless_it_is_set(model_folders, tmp_path):
    source = find_model(str(model_folders["gemma2"]))
    assert load_tokenizer(source).begins_with_bos
    assert not load_tokenizer(source, bos="never").begins_with_bos
    folder = shutil.copytree(model_folders["gemma2"], tmp_path / "model")
    described = json.loads((folder / "tokenizer.json").read_text())
    (folder / "tokenizer.json").write_text(json.dumps(described | {"post_processor": None}))
    source = find_model(str(folder))
    tokenizer = load_tokenizer(source)
    assert not tokenizer.begins_with_bos
    assert any("begin without BOS" in note for note in tokenizer.notes)
    assert load_tokenizer(source, bos="always").begins_with_bos
    assert tokenizer.beginning("auto") == "no BOS (harvest.bos: auto)"
    assert load_tokenizer(source, bos="always").beginning("always") == "<bos> (harvest.bos: always)"
    assert load_tokenizer(find_model(str(model_folders["gpt2"]))).begins_with_bos  # its BOS is its end-of-text


def test_a_tokenizer_of_another_model_is_noted(model_folders, tmp_path):
    folder = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    described = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(described | {"vocab_size": 5000, "bos_token_id": 7}))
    notes = " ".join(load_tokenizer(find_model(str(folder))).notes)
    assert "257 entries and the model's embedding 5,000" in notes
    assert "BOS is 0 in the tokenizer and 7 in config.json" in notes
