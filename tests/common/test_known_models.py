"""One line in the table makes a model known to every stage."""

import pytest

from common.known_models import KNOWN_MODELS, KnownModel, repository_of
from harvest.plan import which_fit
from nestcoder.commands.doctor import model_facts
from train.config import TrainSettings, presets
from train.resolved import resolve


def test_the_short_names_are_those_of_the_hub_s_repositories() -> None:
    assert repository_of("gemma-2-2b") == "google/gemma-2-2b"
    assert repository_of("someone/else") == "someone/else"
    assert set(KNOWN_MODELS) >= {"gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl", "gemma-2-9b", "gemma-2-27b"}


def test_a_new_model_needs_only_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(KNOWN_MODELS, "toy", KnownModel("someone/toy", width=32, parameters=1000, top_k=8))
    assert repository_of("toy") == "someone/toy"
    assert which_fit(2500)["toy"] == {
        "float32": {"bytes": 4000, "fits": False},
        "bfloat16": {"bytes": 2000, "fits": True},
    }
    assert model_facts([{"device": "cpu", "free_bytes": 10**6}])["toy"]["cache_bytes_per_million_tokens"] == 128_000_000
    assert presets()["toy"] == {"group_sizes": (32, 64, 128, 288), "top_k": 8}
    chosen = resolve(TrainSettings(), model="someone/toy", d_target=32)
    assert (chosen.prefixes, chosen.top_k) == ((32, 96, 224, 512), 8)
