"""Before a model is loaded: another process at work is refused, and asking leaves nothing behind."""

import pytest

from common import disk
from common.errors import InUseError
from harvest.load import refuse_second_process
from harvest.request import HarvestRequest


def test_asking_leaves_nothing_behind_and_a_holder_is_refused(tmp_path):
    request = HarvestRequest("model", {1: tmp_path / "cache"}, rank=3, world=4)
    refuse_second_process(request, 1)
    assert not (tmp_path / "cache").exists()
    with disk.lock(tmp_path / "cache" / "locks" / "part-00003"), pytest.raises(InUseError):
        refuse_second_process(request, 1)
    refuse_second_process(request, 1)
