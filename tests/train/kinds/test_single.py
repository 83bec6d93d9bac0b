"""One layer's dictionary: what is counted before a run; the saved one is the trained one, in the cache's units."""

from pathlib import Path

import pytest
import torch

from common.distributed import Ranks
from common.progress import Silent
from train.config import TrainSettings
from train.context import TrainingContext
from train.kinds.single import Single, plain_weights
from train.kinds.source import Source
from train.resolved import resolve
from transcoder.formats.native import load_transcoder
from transcoder.sharded import UNSHARDED


@pytest.fixture(params=["transcoder", "sae"])
def kind(request: pytest.FixtureRequest, small_cache: Path, quick: TrainSettings) -> Single:
    array = "target" if request.param == "sae" else "source"
    settings = quick.model_copy(update={"kind": request.param, "side": array})
    source = Source.open([small_cache], settings, None, device="cpu")
    context = TrainingContext(source.reader, source.readers, source.units, None, "cpu", Ranks(), UNSHARDED, Silent())
    return Single(resolve(settings, model="tiny", d_target=8), context)


def test_counts_are_those_of_the_arrays(kind: Single) -> None:
    state = kind.first_state()
    arrays = state.weights.tensors()
    assert Single.parameters(kind.settings, kind.context.units) == sum(array.numel() for array in arrays.values())
    assert Single.features(kind.settings, kind.context.units) == 64


def test_a_checkpoints_arrays_give_the_state_back(kind: Single) -> None:
    state = kind.first_state()
    again = kind.state_of(kind.arrays_of(state), step=7, tokens=9)
    assert (again.step, again.tokens) == (7, 9)
    for name, array in state.weights.tensors().items():
        assert torch.equal(again.weights.tensors()[name], array)


def test_the_saved_dictionary_computes_in_the_caches_units_what_was_trained(kind: Single, tmp_path: Path) -> None:
    state = kind.first_state()
    config = kind.save(state, tmp_path, config=kind.facts())
    assert (config["kind"], config["layer"]) == (kind.settings.kind, 3)
    saved = load_transcoder(tmp_path)
    units = kind.context.units
    rows = kind.context.reader.split("train").rows(slice(0, 200))
    predicted = units.target(saved.forward(rows.source.float()))
    x = units.source(rows.source.float())
    weights = plain_weights(state.weights, kind.settings)
    pre = x @ weights.W_enc.T + weights.b_enc
    code = pre.relu() * torch.zeros_like(pre).scatter_(1, pre.topk(4).indices, 1.0)
    torch.testing.assert_close(predicted, code @ weights.W_dec + weights.b_dec, atol=1e-4, rtol=1e-3)


def test_a_step_can_be_timed_without_rows(kind: Single) -> None:
    step = Single.timed_step(kind.settings, kind.context.units, device="cpu")
    assert float(step().l2_loss) > 0
