"""The held-out FVU of a training of several layers, against the definition by a dictionary of all of them."""

import pytest
import torch

from train.arrays.parameters import random_parameters
from train.config import TrainSettings
from train.kinds.joint_held_out import joint_held_out_fvu
from train.kinds.joint_state import JointState
from train.kinds.joint_step import JointRecipe
from train.kinds.single import fresh_state
from train.objective import Recipe
from train.record.held_out_fvu import HeldOut
from train.resolved import resolve
from transcoder.cross_layer import CrossLayerTranscoder, Reach, over_all_layers
from transcoder.rules.topk import TopK
from transcoder.sharded import UNSHARDED
from transcoder.transcoder import Transcoder

LAYERS, WIDTH, DICT_SIZE, TOP_K, ROWS = 3, 6, 32, 4, 50


@pytest.mark.parametrize("over_layers", [False, True])
@pytest.mark.parametrize("balance", [0.0, 0.5])
def test_it_is_the_mean_over_layers(over_layers: bool, balance: float) -> None:
    generator = torch.Generator().manual_seed(0)
    stated = TrainSettings(
        kind="cross-layer",
        prefixes=(8, DICT_SIZE),
        top_k=TOP_K,
        steps=4,
        dimension_balance=balance,
        select_over="layers" if over_layers else "layer",
    )
    settings = resolve(stated, model="", d_target=WIDTH)
    reach = Reach(LAYERS, 1, WIDTH)
    weights = [random_parameters(WIDTH, reach.wide(n), dict_size=DICT_SIZE, seed=n) for n in range(LAYERS)]
    variances = torch.rand(LAYERS, WIDTH, generator=generator) + 0.1
    recipes = tuple(Recipe.from_settings(settings, variance=variance, device="cpu") for variance in variances)
    state = JointState(tuple(fresh_state(own, settings) for own in weights), tuple(range(LAYERS)))
    source, target = (torch.randn(ROWS, LAYERS * WIDTH, generator=generator) for _ in range(2))
    variation = (target - target.mean(dim=0)).double().square().sum(dim=0)
    found = joint_held_out_fvu(
        state,
        HeldOut(source, target, variation),
        by_layer=lambda rows: [layer_rows.contiguous() for layer_rows in rows.split(WIDTH, dim=1)],
        recipe=JointRecipe(recipes, reach, over_layers),
        shard=UNSHARDED,
    )

    rule = over_all_layers(TOP_K, layers=LAYERS, dict_size=DICT_SIZE) if over_layers else TopK(TOP_K)
    pieces = [Transcoder(**own.transcoder_arrays(), rule=rule, prefixes=(8, DICT_SIZE)) for own in weights]
    dictionary = CrossLayerTranscoder(pieces, layers=range(LAYERS), window=1, top_k=TOP_K, over_layers=over_layers)
    reconstructed = dictionary.reconstructions([x.contiguous() for x in source.split(WIDTH, dim=1)]).double()
    expected = torch.zeros(2, dtype=torch.float64)
    for layer in range(LAYERS):
        counts = 1 - balance + balance * variances[layer].double().mean() / variances[layer].double()
        layer_rows = target[:, layer * WIDTH : (layer + 1) * WIDTH].double()
        total = ((layer_rows - layer_rows.mean(dim=0)).square() * counts).sum()
        expected += ((reconstructed[layer] - layer_rows[:, None]).square() * counts).sum(dim=(0, 2)) / total / LAYERS
    assert found == pytest.approx(expected.tolist(), rel=1e-5)
