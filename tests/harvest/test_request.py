"""A request: one process by default, the layers in the order given."""

from pathlib import Path

from cache.config import CacheSettings
from harvest.config import HarvestSettings
from harvest.request import HarvestRequest


def test_defaults_are_one_process_with_the_default_settings():
    request = HarvestRequest("gpt2", {3: Path("c"), 1: Path("a")})
    assert request.layers == [3, 1]
    assert (request.device, request.rank, request.world) == ("auto", 0, 1)
    assert (request.settings, request.cache) == (HarvestSettings(), CacheSettings())
