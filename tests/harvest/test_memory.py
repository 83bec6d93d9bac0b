"""Memory and disk arithmetic."""

import torch

from cache.config import CacheSettings
from cache.format.manifest import make_geometry
from harvest.memory import buffer_bytes, check_disk, missing_bytes, own_loss_bytes, token_bytes
from harvest.model.source import find_model


def test_eager_attention_is_counted(model_folder):
    source = find_model(str(model_folder))
    lean = token_bytes(source, torch.float32, context=64, sites=2, eager=False)
    assert token_bytes(source, torch.float32, context=64, sites=2, eager=True) == lean + 3 * 4 * 64 * 4


def test_rows_that_are_on_disk_need_no_room(tmp_path):
    (tmp_path / "rows").write_bytes(bytes(1000))
    assert missing_bytes(1500, tmp_path) == 500
    check_disk(1500, [tmp_path])


def test_rows_of_an_unfinished_segment_are_counted_once_a_layer():
    settings = CacheSettings(chunk_rows=16, shard_rows=64, segment_rows=1024)
    sizes = {"d_source": 8, "d_target": 4, "train_rows": 5000, "held_out_rows": 100, "partitions": 1}
    geometry = make_geometry(settings, **sizes)
    held_out = min(geometry.groups["held_out"].segment_rows, 100)
    assert buffer_bytes(geometry, layers=3) == 3 * (1024 + held_out) * (8 + 4) * 2


def test_the_own_loss_takes_one_context_of_logits(model_folder):
    source = find_model(str(model_folder))
    assert own_loss_bytes(source, torch.bfloat16, context=10_000) == source.vocabulary * (512 * 2 + 2 * 64 * 4)
