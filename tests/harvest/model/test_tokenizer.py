"""The tokenizer: how a context begins, what is special, what is refused."""

import json
import shutil

import pytest

from common.errors import MismatchError
from harvest.model.source import find_model
from harvest.model.tokenizer import load_tokenizer


def test_bos_and_special_tokens(model_folders):
    gpt2, gemma2 = (load_tokenizer(find_model(str(model_folders[name]))) for name in ("gpt2", "gemma2"))
    assert (gpt2.bos, gpt2.special_ids) == (0, (0,))
    assert (gemma2.bos, gemma2.special_ids) == (2, (0, 1, 2))
    assert gpt2.hash != gemma2.hash


def test_a_tokenizer_larger_than_the_embedding(model_folders, tmp_path):
    copied = shutil.copytree(model_folders["gpt2"], tmp_path / "model")
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    with pytest.raises(MismatchError, match="257 entries"):
        load_tokenizer(find_model(str(copied)))
