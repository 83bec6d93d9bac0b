"""Memory and disk arithmetic."""

import torch

from harvest.memory import check_disk, missing_bytes, token_bytes
from harvest.model.source import find_model


def test_eager_attention_is_counted(model_folder):
    source = find_model(str(model_folder))
    lean = token_bytes(source, torch.float32, context=64, sites=2, eager=False)
    assert token_bytes(source, torch.float32, context=64, sites=2, eager=True) == lean + 3 * 4 * 64 * 4


def test_what_is_there_already_is_not_needed_again(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(1000))
    assert missing_bytes(1500, tmp_path) == 500
    check_disk(1500, [tmp_path])
